"""SIGKILL at any moment loses nothing and writes nothing twice; SIGTERM ends the stream after its bundle."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from pipeline.config.schema import FeatureConfig
from pipeline.logs.files import FileLog
from pipeline.logs.log import EVENTS, OUTPUTS, Entry
from pipeline.streaming.outputs import identity, read_all
from pipeline.streaming.run import run_stream
from pipeline.streaming.snapshot import SnapshotStore

SCRIPT = Path(__file__).with_name("stream_process.py")
PATIENCE_S = 250  # nothing rests on it
TRIES = 10
Outputs = Callable[[FileLog], dict[str, list[bytes]]]
pytestmark = pytest.mark.timeout(1_800)


class Place:
    """A folder with a config and a log, and streams started on it."""

    def __init__(self, folder: Path, config: FeatureConfig, entries: list[Entry]) -> None:
        folder.mkdir()
        self._folder, self.state, self.url = folder, folder / "state", f"file://{folder}/log"
        (folder / "config.json").write_bytes(msgspec.json.encode(config))
        self.log = FileLog(folder / "log")
        self.log.create(EVENTS, 3)
        self.log.append(EVENTS, entries)
        for topic in OUTPUTS:
            self.log.create(topic, 2)

    def start(self) -> subprocess.Popen[str]:
        command = [sys.executable, SCRIPT, self._folder / "config.json", self.url, self.state]
        return subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def written(self) -> int:
        return sum(end for topic in OUTPUTS for end in self.log.end_offsets(topic).values())


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.001)


def test_killed_three_times_it_writes_each_output_once(
    tmp_path: Path, config: FeatureConfig, traffic: Callable[..., list[Entry]], outputs: Outputs
) -> None:
    entries = traffic(7, 250)
    whole = Place(tmp_path / "whole", config, entries)
    run_stream(config, whole.url, whole.state, until_idle=True, stop=threading.Event())
    total = whole.written()

    def killed_thrice(number: int) -> Place | None:
        """None: the machine was busy with something else, and it was done before it could be killed."""
        place, rng = Place(tmp_path / f"killed-{number}", config, entries), random.Random(20)
        for share in sorted(rng.uniform(0.02, 0.9) for _ in range(3)):
            child = place.start()
            wait_for(lambda share=share, child=child: place.written() >= share * total or child.poll() is not None)
            child.send_signal(signal.SIGKILL)
            _, complaints = child.communicate()
            assert complaints == ""
            if child.returncode != -signal.SIGKILL or place.written() == total:
                return None
        return place

    killed = next(filter(None, map(killed_thrice, range(TRIES))))
    assert killed.written() < total

    child = killed.start()
    said, complaints = child.communicate(timeout=PATIENCE_S)
    assert (said, complaints) == (f"{len(entries)}\n", "")
    names = [(topic, identity(topic, record.payload)) for topic in OUTPUTS for record in read_all(killed.log, topic)]
    assert len(names) == len(set(names))
    assert outputs(killed.log) == outputs(whole.log)


def test_sigterm_takes_a_snapshot_and_ends_it(
    tmp_path: Path, config: FeatureConfig, traffic: Callable[..., list[Entry]], outputs: Outputs
) -> None:
    entries = traffic(8, 250)
    for number in range(TRIES):
        place = Place(tmp_path / f"term-{number}", config, entries)
        child = place.start()
        wait_for(lambda place=place, child=child: place.written() > 0 or child.poll() is not None)
        child.send_signal(signal.SIGTERM)
        said, complaints = child.communicate(timeout=PATIENCE_S)
        if said != f"{len(entries)}\n":  # the machine was busy with something else, and it was done before
            break
    assert (child.returncode, said, complaints) == (0, "stopped\n", "")
    snapshot = SnapshotStore(place.state).load()
    assert snapshot is not None
    assert snapshot.sinks == {topic: place.log.end_offsets(topic) for topic in OUTPUTS}


def test_a_stream_that_never_idles_ends_on_its_stop(
    tmp_path: Path, config: FeatureConfig, traffic: Callable[..., list[Entry]]
) -> None:
    """Live: events that come while it runs are processed; the stop alone ends it."""
    place = Place(tmp_path / "live", config, traffic(9, 20))
    stop = threading.Event()
    thread = threading.Thread(
        target=run_stream, args=(config, place.url, place.state), kwargs={"until_idle": False, "stop": stop}
    )
    thread.start()
    try:
        wait_for(lambda: place.written() > 100)
        before = place.written()
        place.log.append(EVENTS, [Entry("k", b"one more")])
        wait_for(lambda: place.written() > before)
    finally:
        stop.set()
        thread.join(PATIENCE_S)
    assert not thread.is_alive()
