"""Users' mistakes on the command line: a message that says what and where, an exit status that is not 0, no
traceback."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest
from click.testing import CliRunner, Result
from msgspec.structs import replace

from model_export.controller import Summary
from pageturn.__main__ import _verdicts, main
from pageturn.run import new_run
from pipeline.durable import exclusive
from pipeline.logs.log import EVENTS, OUTPUTS, Entry, ensure_topic
from pipeline.logs.opening import open_log
from pipeline.stores.opening import open_store
from pipeline.stores.published import (
    GoBack,
    Pointer,
    Served,
    VersionRecord,
    change_pointer,
    read_pointers,
    version_key,
)

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "feature_configs" / "ebnerd.yaml"
USAGE, ERROR = 2, 1
PATIENCE_S = 250  # nothing rests on it


@pytest.fixture(autouse=True)
def _the_signals_of_pytest() -> Iterator[None]:
    """Commands take SIGTERM and Ctrl-C for themselves."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a config, a file where folders should be, and what is broken in some usual ways."""
    text = CONFIG.read_text()
    (tmp_path / "good.yaml").write_text(text)
    (tmp_path / "misspelt.yaml").write_text(text.replace("stream:", "streem:"))
    (tmp_path / "policy.yaml").write_text(text.replace("policy: rl_a", "policy: rl_z"))
    (tmp_path / "type.yaml").write_text(text.replace("gamma: 0.9", "gamma: high"))
    (tmp_path / "torn.yaml").write_text("features: [1,\n b: }")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "empty.yaml").touch()
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "empty").mkdir()
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "before").touch()
    (tmp_path / "models").mkdir()
    (tmp_path / "down").mkdir()
    (tmp_path / "down" / "run.json").write_text('{"name": "down", "created_ms": 1, "seed": 1, "redis": false}')
    (tmp_path / "models" / "models.config").touch()
    return tmp_path


def run(place: Path, line: str) -> Result:
    words = [word.replace("@", str(place)) for word in line.split()]
    return CliRunner().invoke(main, words)


def check(result: Result, status: int, message: str) -> None:
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == status, result.output
    assert re.search(message, result.output), result.output
    assert "Traceback" not in result.output


class Mistake(NamedTuple):
    line: str  # @ is the folder
    message: str
    status: int = ERROR


GOOD, LOG, STORE = "--config @/good.yaml", "--log file://@/log", "--store sqlite:///@/store.db"
VOLUME, STATE = "--staging @/staging --models @/models", "--state @/state"
IDLE = "--until-idle"

MISTAKES = {
    # a config
    "no config": Mistake("config validate @/none.yaml", r"@/none\.yaml: cannot be read: No such file"),
    "config is a folder": Mistake("config validate @/empty", "@/empty: cannot be read: Is a directory"),
    "torn YAML": Mistake("config validate @/torn.yaml", r"@/torn\.yaml:2: not YAML, column 5: .*found '}'"),
    "binary config": Mistake("config validate @/binary.yaml", r"@/binary\.yaml:1: is not UTF-8: byte 0xff"),
    "empty config": Mistake("config validate @/empty.yaml", "is empty; a config is a mapping"),
    "unknown key": Mistake(
        "config validate @/misspelt.yaml", r'misspelt\.yaml:\d+: unknown key "streem" \(did you mean "stream"\?\)'
    ),
    "unknown policy": Mistake(
        "config validate @/policy.yaml", r'buckets\.assign\[a\]\.policy: no policy "rl_z" \(did you mean "rl_b"\?\)'
    ),
    "wrong type": Mistake("config validate @/type.yaml", r"algorithm\.gamma: must be a number, got 'high'"),
    **{
        f"{command} with a wrong config": Mistake(f"{command} --config @/policy.yaml {more}", 'no policy "rl_z"')
        for command, more in {
            "stream": f"{LOG} {STATE}",
            "train": f"{LOG} {STORE} {STATE} --staging @/staging",
            "bootstrap": f"{STORE} {VOLUME}",
            "control": f"{STORE} {VOLUME} --server 127.0.0.1:1",
            "agent": f"{LOG} {STORE} --server 127.0.0.1:1",
            "import ebnerd @/empty": f"{LOG} {STORE}",
            "replay": "--run @/run",
            "demo": "--run @/run",
            "up": "--run @/run",
        }.items()
    },
    # the log
    "log of another kind": Mistake(f"archive --log http://x/y --to @/a {IDLE}", "expected file:///absolute/folder"),
    "log without a scheme": Mistake(f"archive --log log --to @/a {IDLE}", "expected file:///absolute/folder"),
    "nothing to archive": Mistake(f"archive {LOG} --to @/a {IDLE}", "no topic 'events' in @/log"),
    "nothing to count": Mistake(f"counts {LOG} {STATE}", "no topic 'samples' in @/log"),
    "an agent whose log is a file": Mistake(
        f"agent {GOOD} --log file://@/file {STORE} --server 127.0.0.1:1", "@/file.*; a file is where a folder"
    ),
    "an import into a file": Mistake(
        f"import ebnerd @/empty {GOOD} --log file://@/file/log {STORE}", "@/file/log.*; a file is where a folder"
    ),
    "an import into a place of no files": Mistake(
        f"import ebnerd @/empty {GOOD} --log file:///proc/log {STORE}", "file log /proc/log: No such file"
    ),
    "an archive in a file": Mistake(f"archive {LOG} --to @/file/a {IDLE}", "@/file/a"),
    # the source
    "no source": Mistake(f"import ebnerd @/none {GOOD} {LOG} {STORE}", r"@/none/behaviors\.parquet: no such file"),
    "an empty source": Mistake(f"import ebnerd @/empty {GOOD} {LOG} {STORE}", r"holds behaviors\.parquet and history"),
    # the store
    "store of another kind": Mistake(
        f"control {GOOD} --store mysql://x/y {VOLUME} --server 127.0.0.1:1", "expected sqlite:.*found mysql://"
    ),
    "relative store": Mistake(
        f"control {GOOD} --store sqlite://s.db {VOLUME} --server 127.0.0.1:1", "expected sqlite:///absolute/path"
    ),
    "store in no folder": Mistake(
        f"control {GOOD} --store sqlite:///@/none/s.db {VOLUME} --server 127.0.0.1:1", "@/none does not exist"
    ),
    "store of other bytes": Mistake(
        f"control {GOOD} --store sqlite:///@/file {VOLUME} --server 127.0.0.1:1",
        "sqlite store @/file: the file exists but is not a SQLite database",
    ),
    "store out of reach": Mistake(
        f"control {GOOD} --store redis://127.0.0.1:1/0 {VOLUME} --server 127.0.0.1:1",
        "127.0.0.1:1/0: cannot be reached",
    ),
    # the model volume and its servers
    "a volume in a file": Mistake(
        f"control {GOOD} {STORE} --staging @/staging --models @/file/m --server 127.0.0.1:1 {IDLE}", "@/file/m"
    ),
    "a server without a port": Mistake(
        f"control {GOOD} {STORE} {VOLUME} --server localhost", "expected HOST:PORT.*found 'localhost'", USAGE
    ),
    "a port that is none": Mistake(
        f"agent {GOOD} {LOG} {STORE} --server localhost:99999", "expected HOST:PORT.*found 'localhost:99999'", USAGE
    ),
    "an unknown mode": Mistake(
        f"agent {GOOD} {LOG} {STORE} --server localhost:1 --mode lve", "'lve' is not one of 'live', 'shadow'", USAGE
    ),
    "nothing to serve": Mistake(
        "model-server --models @/empty", r"@/empty/models\.config: no such file; `pageturn boot"
    ),
    # switches
    "a switch of the baseline": Mistake(
        f"switch off base {GOOD} {STORE}", r"no learned policy 'base'; expected one of rl_a, rl_b"
    ),
    "nothing to go back to": Mistake(
        f"switch rollback rl_a {GOOD} {STORE}", "expected a previous version to go back to"
    ),
    # a run
    "a run over another": Mistake(
        "up --config @/good.yaml --run @/taken", "@/taken: expected a new or an empty folder"
    ),
    "a run in a file": Mistake("up --config @/good.yaml --run @/file/run", "@/file/run: cannot be used for a run"),
    "a run of nothing": Mistake(
        "replay --config @/good.yaml --data @/empty --run @/run",
        r"import ended with status 1(.|\n)*Error: @/empty/behaviors\.parquet: no such file",
    ),
    "a demo of a feed that cannot be simulated": Mistake(
        "demo --config @/good.yaml --run @/run", r"reward\.weights: expected click and order for the simulated feed"
    ),
    "users of no run": Mistake("simulate --run @/empty", r"@/empty: expected the folder of a run, with a run\.json"),
    "users of a run that is down": Mistake("simulate --run @/down --visits 1", "@/down: is not up"),
    "a report on no run": Mistake("report --run @/empty", r"@/empty: expected the folder of a run, with a run\.json"),
    "a stop of no run": Mistake("down --run @/none", r"@/none: expected the folder of a run, with a run\.json"),
    "a status of half a loop": Mistake(
        f"status {GOOD} {STORE}", "expected --config, --store and --models together, or --run", USAGE
    ),
    "a switch of half a loop": Mistake(f"switch off rl_a {GOOD}", "expected --config and --store together, or", USAGE),
    "a switch of nobody": Mistake(f"switch off {GOOD} {STORE}", "expected policies or --all, found neither", USAGE),
    "a switch of all and one": Mistake(f"switch off rl_a --all {GOOD} {STORE}", "or --all, found both", USAGE),
    "one version of all": Mistake(f"switch pin --all --to 2 {GOOD} {STORE}", "--to: .* expected one policy", USAGE),
    "a switch of a run that is down": Mistake("switch off rl_a --run @/down", "@/down: is not up; `pageturn up --run"),
    # the command line itself
    "no such command": Mistake("strem", "No such command 'strem'. Did you mean 'stream'", USAGE),
    "an option left out": Mistake(f"archive {LOG}", "Missing option '--to'", USAGE),
    "two ends": Mistake("simulate --minutes 1 --until 2", "expected --minutes or --until, found both", USAGE),
    "a stream of no state": Mistake(f"stream {GOOD} {LOG}", "expected --log and --state; or, for a range", USAGE),
    "no partitions": Mistake(f"stream {GOOD} {LOG} {STATE} --partitions 0", "0 is not in the range x>=1", USAGE),
}


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_explained(place: Path, mistake: Mistake) -> None:
    check(run(place, mistake.line), mistake.status, mistake.message.replace("@", re.escape(str(place))))


@pytest.mark.parametrize("target", ["localhost:8500", "10.0.0.1:1", "[::1]:8500", "dns:///models:8500", "unix:/tmp/x"])
def test_targets_that_grpc_can_resolve_are_taken(place: Path, target: str) -> None:
    result = run(place, f"control --config @/policy.yaml {STORE} {VOLUME} --server {target}")
    check(result, ERROR, 'no policy "rl_z"')  # and not the target


def test_a_port_in_use_is_named(place: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        result = run(place, f"agent {GOOD} {LOG} {STORE} --server 127.0.0.1:1 --port {port}")
        check(result, ERROR, f"expected to listen on 127.0.0.1:{port}, which is taken or cannot be bound")
        taken = subprocess.run(
            [sys.executable, "-m", "pageturn", "model-server", "--models", place / "models", "--port", str(port)],
            capture_output=True, text=True, check=False,
            env={name: value for name, value in os.environ.items() if name != "PAGETURN_MODEL_SERVER"},
        )  # fmt: skip
    assert taken.returncode != 0
    assert f"cannot listen on 127.0.0.1:{port}: expected a free port, found it in use" in taken.stderr
    assert "Traceback" not in taken.stderr


def test_a_model_server_that_is_not_there_is_named(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAGETURN_MODEL_SERVER", str(place / "none"))
    result = run(place, "model-server --models @/models")
    check(result, ERROR, f"PAGETURN_MODEL_SERVER: expected the path of a program, found '{place}/none': No such file")


def test_an_option_from_the_environment_is_checked_as_well(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAGETURN_AGENT_PORT", "x")
    result = run(place, f"agent {GOOD} {LOG} {STORE} --server 127.0.0.1:1")
    check(result, USAGE, "Invalid value for '--port': 'x'")


def test_the_folder_of_another_stream_is_no_balance(place: Path) -> None:
    """All pages would be there and not one event read."""
    with_pages(f"file://{place}/log")
    check(run(place, f"counts {LOG} --state @/empty"), ERROR, f"{place}/empty: no snapshot of the stream that wrote")


def with_pages(url: str) -> None:
    page = b'{"impression":{"request_id":"r","session_id":"s"}}'
    log = open_log(url)
    for topic in (EVENTS, *OUTPUTS):
        ensure_topic(log, topic, 1)
    log.append("samples", [Entry("s", page)])
    log.close()


def test_a_topic_that_is_there_keeps_its_partitions(place: Path) -> None:
    log = open_log(f"file://{place}/log")
    ensure_topic(log, EVENTS, 3)
    ensure_topic(log, EVENTS, 4)
    assert log.partitions(EVENTS) == 3
    log.close()


def test_a_controllers_last_line_leaves_nothing_out() -> None:
    done = Summary(accepted=1, refused={"loss": 2, "drift": 1}, kept={"server_unreachable": 1})
    assert (
        _verdicts(done) == "1 accepted, 3 refused (1 drift, 2 loss), 1 kept back (1 server_unreachable), 0 superseded"
    )


def test_switches_reach_the_pointer_of_one_policy(place: Path) -> None:
    old, new = Served(1, "a"), Served(2, "b")
    store = open_store(f"sqlite:///{place}/store.db")
    record = VersionRecord("rl_a", 1, "ebn_rl_a", "a", "config", "candidate-1", 1)
    store.put(version_key("ebn", "rl_a", 1), msgspec.json.encode(record))
    change_pointer(store, "ebn", "rl_a", lambda _: Pointer(stable=new, previous=old))

    def switched(what: str) -> Pointer:
        name, *rest = what.split()
        result = run(place, f"switch {name} rl_a {' '.join(rest)} {GOOD} {STORE}")
        assert result.exit_code == 0, result.output
        assert result.output.startswith("rl_a: ")
        pointer = read_pointers(store, "ebn", ("rl_a",))["rl_a"]
        assert pointer.changes > 1
        return replace(pointer, changes=0)

    assert switched("off").off
    assert not switched("on").off
    assert switched("freeze").frozen
    assert not switched("release").frozen
    assert switched("pin --to 1") == Pointer(stable=old, previous=new, frozen=True, pinned=True)
    assert switched("release") == Pointer(stable=old, previous=new)
    change_pointer(store, "ebn", "rl_a", lambda _: Pointer(stable=new, previous=old))
    back = GoBack(1, "candidate-1")
    assert switched("rollback") == Pointer(stable=old, previous=new, frozen=True, back=back)
    assert read_pointers(store, "ebn", ("rl_b",))["rl_b"] == Pointer()
    store.close()


def test_one_command_switches_all_policies_and_one_that_cannot_keeps_no_other(place: Path) -> None:
    with closing(open_store(f"sqlite:///{place}/store.db")) as store:
        result = run(place, f"switch off --all {GOOD} {STORE}")
        assert (result.exit_code, result.output) == (0, "rl_a: off\nrl_b: off\n")
        assert all(pointer.off for pointer in read_pointers(store, "ebn", ("rl_a", "rl_b")).values())
        change_pointer(store, "ebn", "rl_b", lambda _: Pointer(stable=Served(1, "a")))
        result = run(place, f"switch pin rl_a rl_b {GOOD} {STORE}")
        assert result.exit_code == 1
        assert "rl_b: pinned to version 1" in result.output
        assert "policy 'rl_a': expected a version to pin" in result.output
        assert read_pointers(store, "ebn", ("rl_b",))["rl_b"].pinned


def test_a_switch_finds_the_store_of_a_run_that_is_up(place: Path) -> None:
    up = new_run(place / "up", place / "good.yaml")
    with exclusive(up.folder):
        assert run(place, "switch off rl_a --run @/up").output == "rl_a: off\n"
    with closing(open_store(up.store_url)) as store:
        assert read_pointers(store, "ebn", ("rl_a",))["rl_a"].off


def eventually(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_agent_ends_in_order(place: Path, number: signal.Signals) -> None:
    words = f"agent {GOOD} {LOG} {STORE} --server 127.0.0.1:1 --port 0 --drain-s 0".replace("@", str(place)).split()
    output = place / "output"
    with output.open("wb") as file:
        process = subprocess.Popen([sys.executable, "-um", "pageturn", *words], stdout=file, stderr=file)
    try:
        eventually(lambda: b"deciding pages on" in output.read_bytes())
        process.send_signal(number)
        assert process.wait(PATIENCE_S) == 0, output.read_text()
    finally:
        process.kill()
    assert "Traceback" not in output.read_text()


@pytest.mark.timeout(900)
def test_a_replay_that_is_told_to_stop_leaves_no_process_behind(place: Path) -> None:
    words = f"replay --config @/good.yaml --run @/run --data {slow_source(place)}".replace("@", str(place)).split()
    output = place / "output"
    with output.open("wb") as file:
        process = subprocess.Popen([sys.executable, "-um", "pageturn", *words], stdout=file, stderr=file)
    try:
        eventually(lambda: children_of(process.pid) != [])
        children = children_of(process.pid)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == ERROR
    finally:
        process.kill()
    assert "Error: stopped while import was running" in output.read_text()
    assert children
    assert not [child for child in children if Path(f"/proc/{child}").exists()]


def slow_source(place: Path) -> Path:
    """A source that is never read to its end: a pipe that nobody writes to."""
    folder = place / "slow"
    folder.mkdir()
    os.mkfifo(folder / "behaviors.parquet")
    return folder


def children_of(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in found.read_text().split()] if found.exists() else []
