"""What is served in the serving benchmark: the published config of a feed, its baseline as models, users' pages."""

from __future__ import annotations

import os
import random
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from benchmarks.shares import BenchmarkError
from model_export.candidate import (
    BOOTSTRAP,
    MODEL,
    PARAMETERS,
    RECORD,
    decode_candidate,
    encode_candidate,
    file_digests,
)
from pageturn.processes import Process, pageturn
from pipeline.agent.agent import PageRequest
from pipeline.agent.buckets import bucket_table, slot_of
from pipeline.config.reading import load_config
from pipeline.config.schema import FeatureConfig
from pipeline.features.moments import Moments
from pipeline.features.snapshot import Snapshot
from pipeline.features.stored_vectors import load_vectors
from pipeline.records import Item
from pipeline.serving.launch import free_ports, running_server
from pipeline.stores.opening import open_store

CONFIG = Path(__file__).resolve().parents[1] / "feature_configs" / "guess_you_like.yaml"
QUICKLY = {"every: 1m": "every: 1s", "min_transitions: 1000": "min_transitions: 1"}  # one version right after another
TABLE, SHOPS = "shop", 20_000
CANDIDATES, CLICKS = 100, 20
ONE_THREAD = {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1", "OMP_NUM_THREADS": "1"}
_START_S = 120.0


class Place(NamedTuple):
    config: FeatureConfig
    config_path: Path
    folder: Path
    store_url: str
    server: str

    @property
    def staging(self) -> Path:
        return self.folder / "staging"

    @property
    def models(self) -> Path:
        return self.folder / "models"

    @property
    def logs(self) -> Path:
        return self.folder / "logs"


@contextmanager
def place(folder: Path) -> Iterator[Place]:
    """Store, vectors, version 1 of each policy, and a model server that serves them."""
    text = CONFIG.read_text()
    for usual, quick in QUICKLY.items():
        text = text.replace(usual, quick)
    path = folder / "config.yaml"
    path.write_text(text)
    config = load_config(path)
    with ExitStack() as stack:
        store_url = stack.enter_context(redis_server(folder))
        with closing(open_store(store_url)) as store:
            load_vectors(store, config.kv_prefix, TABLE, "e1", *_vectors())
        made = Place(config, path, folder, store_url, "")
        words = ("--config", path, "--store", store_url, "--staging", made.staging, "--models", made.models)
        bootstrap = Process("bootstrap", pageturn("bootstrap", *map(str, words)), made.logs)
        bootstrap.wait(_START_S, threading.Event())
        running = stack.enter_context(running_server(made.models / "models.config"))
        yield made._replace(server=running.target)


def _vectors() -> tuple[list[str], np.ndarray]:
    rng = np.random.default_rng(1)
    return [str(i) for i in range(SHOPS)], rng.standard_normal((SHOPS, 32), np.float32)


@contextmanager
def redis_server(folder: Path, *words: str) -> Iterator[str]:
    """The URL of an empty Redis, on a port of its own, that keeps nothing on disk."""
    [port] = free_ports(1)
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder), *words]
    if shutil.which(command[0]) is None:
        message = "expected redis-server on the PATH, found none"
        raise BenchmarkError(message)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        _await_port(port, process)
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.terminate()
        process.wait()


def _await_port(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _START_S
    while process.poll() is None and time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    message = f"{process.args}: expected a server on port {port}, found none"
    raise BenchmarkError(message)


@contextmanager
def agent_process(place: Place) -> Iterator[tuple[str, int]]:
    """As `pageturn agent` serves it; its address and process."""
    [port] = free_ports(1)
    words = ("--config", place.config_path, "--log", f"file://{place.folder}/log", "--store", place.store_url)
    more = ("--server", place.server, "--port", port, "--drain-s", 0)
    process = Process("agent", pageturn("agent", *map(str, (*words, *more))), place.logs)
    try:
        yield f"127.0.0.1:{port}", process.pid
    finally:
        process.stop()


@contextmanager
def controller_process(place: Place) -> Iterator[None]:
    words = ("--config", place.config_path, "--store", place.store_url, "--staging", place.staging)
    more = ("--models", place.models, "--server", place.server)
    process = Process("controller", pageturn("control", *map(str, (*words, *more))), place.logs)
    try:
        yield
    finally:
        process.stop()


# What is asked -----------------------------------------------------------------------------------------------------


def tour(config: FeatureConfig) -> Iterator[PageRequest]:
    """Pages that between them have nearly every shop. An agent's memory has room for all of them, but it takes tens of
    thousands of pages to fill: after the tour it is as it is after a day. What was left out are new shops."""
    for page, start in zip(pages(config, 0), range(0, SHOPS * 99 // 100, CLICKS), strict=False):
        clicks = tuple(map(str, range(start, start + CLICKS)))
        yield msgspec.structs.replace(
            page, request_id=f"tour-{page.request_id}", user={**page.user, "recent_clicks": clicks}
        )


def pages(config: FeatureConfig, seed: int) -> Iterator[PageRequest]:
    """Pages of learned buckets, without end: 100 candidates, the last 20 clicks. Shops are popular in Zipf's manner."""
    rng, table = random.Random(seed), bucket_table(config.buckets)
    learned = config.learned_policies()
    shops = np.random.default_rng(seed).zipf(1.2, 1_000_000) % SHOPS
    number = 0
    while True:
        number += 1
        user = f"u{rng.randrange(10**9)}"
        if table[slot_of(config.buckets, user)].policy in learned:
            start = rng.randrange(len(shops) - CLICKS)
            yield _page(f"{os.getpid()}-{seed}-{number}", user, shops[start : start + CLICKS].tolist(), rng)


def _page(name: str, user: str, clicks: list[int], rng: random.Random) -> PageRequest:
    items = tuple(Item(f"i{rng.randrange(10**6)}-{k}", rng.random(), rng.random()) for k in range(CANDIDATES))
    history = {
        "ctr_7d": rng.random(), "orders_30d": float(rng.randrange(20)), "last_clicked_shop": str(clicks[-1]),
        "active_hours": rng.getrandbits(48), "recent_clicks": tuple(map(str, clicks)),
    }  # fmt: skip
    context = {"city": f"c{rng.randrange(300)}", "hour": rng.randrange(24), "device_model": f"d{rng.randrange(900)}"}
    return PageRequest(name, user, f"s-{user}", 0, items, user=history, context=context, page={"page_index": 0.0})


# What is published -------------------------------------------------------------------------------------------------


def candidate(place: Place, policy: str, number: int) -> str:
    """The baseline's model again, with parameters of its own: as much to load and to follow as any version. Its id."""
    folder = place.staging / policy
    copy = folder / f".tmp-{number}"
    shutil.copytree(folder / BOOTSTRAP / MODEL, copy / MODEL)
    first = Snapshot.initial(place.config)
    moments = first.moments | {"user_ctr_7d": Moments(2_000, 1e-6 * number, 2_000.0)}
    snapshot = Snapshot(first.config_sha, moments, first.vocabularies, first.epochs)
    (copy / MODEL / PARAMETERS).write_bytes(snapshot.to_bytes())
    record = msgspec.structs.replace(
        decode_candidate(folder / BOOTSTRAP / RECORD),
        id=f"{1_000 * number:012d}-bench", parameters=snapshot.sha256, created_ms=time.time_ns() // 1_000_000,
        transitions=1_000 * number, first_transition="first", last_transition=f"t{number}",
        files=file_digests(copy / MODEL),
    )  # fmt: skip
    (copy / RECORD).write_bytes(encode_candidate(record))
    copy.rename(folder / record.id)
    return record.id
