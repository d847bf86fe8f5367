"""The stream in a process of its own, to be killed: stream_process.py CONFIG_JSON LOG_URL STATE_DIR."""

import sys
import threading
from pathlib import Path

import msgspec

from pipeline.config.schema import FeatureConfig
from pipeline.signals import handle_signals
from pipeline.streaming.embedded import Limits
from pipeline.streaming.run import run_stream

LIMITS = Limits(records_per_bundle=40, timers_per_bundle=40, snapshot_after_records=300)

if __name__ == "__main__":
    config, url, state = sys.argv[1:]
    stop = threading.Event()
    handle_signals(stop)
    parsed = msgspec.json.decode(Path(config).read_bytes(), type=FeatureConfig)
    counts = run_stream(parsed, url, Path(state), until_idle=True, stop=stop, limits=LIMITS)
    print("stopped" if counts is None else counts.read)
