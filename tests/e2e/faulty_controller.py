"""A version controller in a process of its own that does as it is told: end, or stand still, after a step; or go by a
clock that is wrong."""

from __future__ import annotations

import os
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from model_export.controller import run_controller
from pipeline.config.reading import load_config
from pipeline.monitoring.catalogue import CONTROLLER
from pipeline.monitoring.metrics import Metrics, exposed
from pipeline.serving.client import ModelServer
from pipeline.signals import handle_signals
from pipeline.stores.opening import open_store

LEASE_MS = 6_000


class Post(NamedTuple):
    """Where a controller works, and how it is talked to."""

    config: Path
    store_url: str
    server: str
    staging: Path
    models: Path
    holder: str
    metrics_port: int
    offset_ms: Any  # shared: how wrong the clock is
    order: Any  # shared text, "NUMBER STEP...": the signal that it gives itself after these steps, one after another


def control(post: Post) -> None:
    def on_step(policy: str, step: str) -> None:
        number, *steps = post.order.value.decode().split() or [""]
        if steps[:1] == [step]:
            post.order.value = " ".join([number, *steps[1:]]).encode() if steps[1:] else b""
            if not steps[1:]:
                os.kill(os.getpid(), int(number))

    stop = threading.Event()
    handle_signals(stop)
    metrics = Metrics(CONTROLLER)
    with (
        closing(open_store(post.store_url)) as store,
        closing(ModelServer(post.server)) as server,
        exposed(metrics, f"127.0.0.1:{post.metrics_port}"),
    ):
        run_controller(
            load_config(post.config), store, [server], post.staging, post.models,
            holder=post.holder, clock_ms=lambda: time.time_ns() // 1_000_000 + post.offset_ms.value, stop=stop,
            on_step=on_step, metrics=metrics, lease_ms=LEASE_MS,
        )  # fmt: skip
