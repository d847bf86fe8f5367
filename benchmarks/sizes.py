"""What an event of the simulated feed takes, in the log and in the archive. Sizes only: any machine finds the same.

python -m benchmarks.sizes [--visits 1000] [--json FILE]
"""

from __future__ import annotations

import argparse
import tempfile
import threading
from contextlib import closing
from pathlib import Path

import msgspec
from msgspec import Struct

from benchmarks.events import MINUTES, simulated
from pipeline.events import parse
from pipeline.logs.files import FileLog
from pipeline.logs.log import EPISODES, EVENTS, SAMPLES, TRANSITIONS
from pipeline.records import Impression
from pipeline.streaming.archiver import archive
from pipeline.streaming.outputs import read_all
from pipeline.streaming.run import run_stream


class Sizes(Struct, frozen=True):
    events: int
    impressions: int
    transitions: int
    log_bytes: dict[str, float]  # by topic, per event
    archive_bytes: float  # per event, all tables


def measure(visits: int) -> Sizes:
    entries = simulated(visits)
    with tempfile.TemporaryDirectory() as name:
        folder, stop = Path(name), threading.Event()
        url = f"file://{folder}/log"
        with closing(FileLog(folder / "log")) as log:
            log.create(EVENTS, 1)
            log.append(EVENTS, entries)
            run_stream(MINUTES, url, folder / "state", until_idle=True, stop=stop)
            archive(url, folder / "archive", until_idle=True, stop=stop)
            topics = {t: [len(r.payload) for r in read_all(log, t)] for t in (EVENTS, SAMPLES, TRANSITIONS, EPISODES)}
        archived = sum(path.stat().st_size for path in (folder / "archive").glob("*/**/*.parquet"))
    events = len(entries)
    impressions = sum(isinstance(parse(e.payload, len(e.payload)), Impression) for e in entries)
    per_event = {topic: round(sum(sizes) / events, 1) for topic, sizes in topics.items()}
    return Sizes(events, impressions, len(topics[TRANSITIONS]), per_event, round(archived / events, 1))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sizes", description=__doc__)
    parser.add_argument("--visits", type=int, default=1_000)
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    given = parser.parse_args()
    found = msgspec.json.format(msgspec.json.encode(measure(given.visits)))
    print(found.decode())
    if given.json:
        given.json.write_bytes(found + b"\n")


if __name__ == "__main__":
    main()
