"""A loop for faults: real Redis, real model server, real controllers in processes of their own; an agent with pages at
all times; and a trainer that makes a candidate when it is told to."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from itertools import count
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple
from urllib.request import urlopen

import click
import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from model_export.bootstrap import bootstrap
from model_export.desired import read_desired
from model_export.verdicts import read_verdicts
from pageturn.embeddings import embeddings
from pipeline.agent.agent import Agent, PageRequest
from pipeline.errors import PageturnError
from pipeline.logs.log import EVENTS, ensure_topic
from pipeline.logs.opening import open_log
from pipeline.records import Item
from pipeline.serving.client import ModelServer, Prediction
from pipeline.serving.launch import free_ports, server_command
from pipeline.stores.opening import open_store
from pipeline.stores.published import Pointer, read_pointers
from pipeline.stores.store import StoreError
from tests.e2e.faulty_controller import Post, control
from tests.e2e.faulty_trainer import CONFIG, KNOWN, POLICY, PREFIX, VECTORS, Trainer

PATIENCE_S = 300.0  # nothing rests on it: a test ends if what it waits for never comes
DEADLINE_S = 2.0  # of a page: long, for a machine that hesitates; half of it, for look-ups, is less than a slow Redis
ENOUGH = 60  # pages of the learned bucket, to take a share of
REFILL_S = 1.0
ITEMS = (Item("p", 0.1, 0.5), Item("q", 0.9, 0.01), Item("r", 0.5, 0.2))
ONE_THREAD = {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1", "OMP_NUM_THREADS": "1"}


class Page(NamedTuple):
    decided_by: str
    bucket: str
    version: int | None


def eventually(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline, f"{what}: not within {PATIENCE_S:.0f} s"
        time.sleep(0.02)


class Tampered:
    """The model server's answers on their way to the agent."""

    def __init__(self, client: ModelServer) -> None:
        self.client = client
        self.change: Callable[[Prediction], Prediction] | None = None
        self.metadata = client.metadata

    def predict(
        self, model: str, inputs: Mapping[str, np.ndarray], *, version: int | None = None, timeout_s: float
    ) -> Prediction:
        found = self.client.predict(model, inputs, version=version, timeout_s=timeout_s)
        return self.change(found) if self.change else found


class Loop:
    def __init__(self, folder: Path, redis_binary: str, config: str = CONFIG) -> None:
        (folder / "config.yaml").write_text(config)
        np.save(folder / "vectors.npy", VECTORS)
        (folder / "ids.txt").write_text("\n".join(KNOWN))
        self.folder, self.models, self._redis_binary = folder, folder / "models", redis_binary
        self.trainer = Trainer(folder)
        self.config = self.trainer.config
        self._redis_port, self._server_port = free_ports(2)
        self._store_url = f"redis://127.0.0.1:{self._redis_port}/0"
        self._context = get_context("forkserver")  # processes that begin with everything imported
        self._context.set_forkserver_preload(["tests.e2e.faulty_controller"])
        self.offset_ms = self._context.Value("q", 0)
        self._servers: dict[str, subprocess.Popen[bytes]] = {}
        self._controllers: dict[str, Any] = {}
        self._posts: dict[str, Post] = {}
        self.pages: list[Page] = []
        self.asked: set[str] = set()
        self.failed: list[BaseException] = []
        self._stop, self._rest = threading.Event(), ExitStack()

    # Coming and going

    def start(self) -> None:
        self.models.mkdir()
        self.start_redis()
        self.store = self._rest.enter_context(closing(open_store(self._store_url)))
        self._fill_vectors()
        self.trainer.candidate()
        bootstrap(self.config, self.trainer.staging, self.models, self.store, clock_ms=self.now_ms)
        self.start_server()
        self.log = self._rest.enter_context(closing(open_log(f"file://{self.folder}/log")))
        ensure_topic(self.log, EVENTS, 1)
        self.server = Tampered(self._rest.enter_context(ModelServer(f"127.0.0.1:{self._server_port}")))
        self.server.client.wait_until_ready(PATIENCE_S)
        self.agent = self._rest.enter_context(self.new_agent("agent-0"))
        assert self.agent.wait_ready(PATIENCE_S)
        self.start_controller("one")
        eventually(lambda: self.told("holds_lease") == 1, "a controller in charge")
        for number in range(3):
            self._begin(lambda number=number: self._visit(number))
        self._begin(self._keep_vectors)
        self._rest.callback(self._stop.set)

    def stop(self) -> None:
        """What was decided is in the log then. Can be repeated."""
        for holder in list(self._controllers):
            self.signal_controller(holder, signal.SIGKILL)
            self._controllers.pop(holder).join()
        self._rest.close()
        for process in self._servers.values():
            process.kill()
            process.wait()

    def _begin(self, work: Callable[[], None]) -> None:
        thread = threading.Thread(target=work)
        thread.start()
        self._rest.callback(thread.join)

    def new_agent(self, name: str) -> Agent:
        return Agent(self.config, self.store, self.server, self.log, agent_id=name, clock_ms=self.now_ms)

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000 + self.offset_ms.value

    def start_redis(self) -> None:
        folder = self.folder / "redis"
        folder.mkdir(exist_ok=True)
        options = {
            "port": self._redis_port, "bind": "127.0.0.1", "dir": folder, "save": "",
            "appendonly": "yes", "appendfsync": "always",
        }  # fmt: skip
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        self._servers["redis"] = subprocess.Popen([self._redis_binary, *words], stdout=subprocess.DEVNULL)
        eventually(self._redis_answers, "Redis")

    def _redis_answers(self) -> bool:
        try:
            with closing(open_store(self._store_url)):
                return True
        except StoreError:
            return False

    def start_server(self) -> None:
        command = server_command(self._server_port, self.models / "models.config")
        with (self.folder / "server.log").open("ab") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | ONE_THREAD)
        self._servers["model server"] = process

    def start_controller(self, holder: str, order: str = "") -> None:
        """`order`: see `Post`."""
        post = Post(
            self.folder / "config.yaml", self._store_url, f"127.0.0.1:{self._server_port}", self.trainer.staging,
            self.models, holder, free_ports(1)[0], self.offset_ms, self._context.Array("c", 40),
        )  # fmt: skip
        post.order.value = order.encode()
        self._posts[holder] = post
        self._controllers[holder] = self._context.Process(target=control, args=(post,))
        self._controllers[holder].start()

    def dismiss_controller(self, holder: str) -> None:
        self.signal_controller(holder, signal.SIGTERM)
        self._controllers.pop(holder).join()

    # Users, and what runs beside them

    def _visit(self, user: int) -> None:
        rng = random.Random(user)
        for number in count():
            if self._stop.wait(0.01):
                return
            request = self.request(f"{user}-{number}", rng)
            try:
                decided = self.agent.decide(request, DEADLINE_S).decision
            except BaseException as error:
                self.failed.append(error)
                return
            self.asked.add(request.request_id)
            self.pages.append(Page(decided.decided_by.value, decided.bucket, decided.model_version))

    def request(self, name: str, rng: random.Random) -> PageRequest:
        """Every page asks for a vector that no page asked for before: it needs the store."""
        clicks = (rng.choice(KNOWN), f"new-{name}")
        return PageRequest(name, "u", f"session-{name}", 0, ITEMS, user={"x": rng.gauss(0, 1), "clicks": clicks})

    def policy_decides(self, since: int, version: int | None = None) -> bool:
        """At least nine in ten of the newest pages since then; given a version, by this one."""
        pages = [page for page in self.pages[since:] if page.bucket == "treated"][-ENOUGH:]
        by_policy = [page for page in pages if page.decided_by == "policy" and version in (None, page.version)]
        return len(pages) == ENOUGH and len(by_policy) >= 0.9 * ENOUGH

    def _keep_vectors(self) -> None:
        while not self._stop.wait(REFILL_S):
            with suppress(PageturnError, click.ClickException):  # a job that failed runs again
                self._fill_vectors()

    def _fill_vectors(self) -> None:
        """What is to be run every few minutes."""
        source = [str(self.folder / "vectors.npy"), "--ids", str(self.folder / "ids.txt")]
        where = ["--config", str(self.folder / "config.yaml"), "--store", self._store_url]
        embeddings.main(["load", *source, *where, "--if-missing"], standalone_mode=False)

    # Harm

    def kill(self, server: str) -> None:
        self._servers[server].kill()
        self._servers[server].wait()

    def signal_server(self, number: signal.Signals) -> None:
        self._servers["model server"].send_signal(number)

    def signal_controller(self, holder: str, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.controller_pid(holder), number)

    @contextmanager
    def controller_stopped(self, holder: str = "one") -> Iterator[None]:
        self.signal_controller(holder, signal.SIGSTOP)
        try:
            eventually(lambda: self.stands_still(holder), "a controller that stands still")
            yield
        finally:
            self.signal_controller(holder, signal.SIGCONT)

    def order(self, holder: str, order: str) -> None:
        self._posts[holder].order.value = order.encode()

    def bring_back(self, holder: str = "one") -> None:
        """A controller without orders, whatever became of it."""
        self.order(holder, "")
        self.signal_controller(holder, signal.SIGCONT)
        if self.ended(holder) is not None:
            self.start_controller(holder)

    # What can be seen

    def controller_pid(self, holder: str = "one") -> int:
        pid: int = self._controllers[holder].pid
        return pid

    def ended(self, holder: str) -> int | None:
        return self._controllers[holder].exitcode

    def stands_still(self, holder: str) -> bool:
        stat = Path(f"/proc/{self.controller_pid(holder)}/stat").read_text()
        return stat.rpartition(")")[2].split()[0] == "T"

    def told(self, name: str, holder: str = "one", **labels: str) -> float:
        """A controller's metric as Prometheus sees it; 0 where there is no controller."""
        try:
            with urlopen(f"http://127.0.0.1:{self._posts[holder].metrics_port}/metrics", timeout=5) as answer:
                families = list(text_string_to_metric_families(answer.read().decode()))
        except OSError:
            return 0.0
        full = {f"pageturn_controller_{name}", f"pageturn_controller_{name}_total"}
        samples = [sample for family in families for sample in family.samples]
        return sum(s.value for s in samples if s.name in full and labels.items() <= s.labels.items())

    def pointer(self) -> Pointer:
        return read_pointers(self.store, PREFIX, (POLICY,))[POLICY]

    def fence(self) -> int:
        """The token of the controller that wrote the desired state."""
        state = read_desired(self.models)
        assert state is not None
        return state.fence

    def lease_left_ms(self) -> int:
        left_ms: int = self.store._client.pttl(f"{PREFIX}:controller!lease")
        return left_ms

    def verdicts(self) -> dict[str, str]:
        """Of each candidate: accepted, or why not."""
        return {v.candidate: v.reason or v.outcome for v in read_verdicts(self.models)}

    def version_of(self, candidate: str) -> int | None:
        return next((v.version for v in read_verdicts(self.models) if v.candidate == candidate), None)

    def candidates(self) -> dict[int, str]:
        """Of each version that went out, its candidate."""
        return {v.version: v.candidate for v in read_verdicts(self.models) if v.outcome == "accepted" and v.version}
