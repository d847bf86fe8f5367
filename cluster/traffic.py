"""Simulated users for the shape: `python -m cluster.traffic FOLDER`; they come until it is stopped."""

from __future__ import annotations

import logging
import sys
import time
from contextlib import closing
from pathlib import Path

from cluster.record import FEATURE_CONFIG, read_record
from pageturn.options import stop_signal
from pageturn.simulating import simulate
from pipeline.config.reading import load_config
from pipeline.simulation.flow import Flow
from pipeline.simulation.tables import load_items
from pipeline.stores.opening import open_store

_PATIENCE_S = 2.0  # a laptop that runs all of it is slower than what it shows


def main(folder: Path) -> None:
    logging.basicConfig(level=logging.INFO)
    record, stop = read_record(folder), stop_signal()
    config = load_config(folder / FEATURE_CONFIG)
    with closing(open_store(record.store_url)) as store:  # as user `loader`, by the environment
        load_items(config, store)
    flow = Flow(seed=1, visits_per_s=record.visits_per_s, prefix=f"up{time.time_ns() // 1_000_000:x}")
    simulate(config, lambda: record.agent, folder / "traffic", flow, stop, decide_s=_PATIENCE_S)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
