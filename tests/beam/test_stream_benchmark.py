"""The benchmark compares like with like: all contenders make the same outputs of the same log."""

from __future__ import annotations

import threading
from contextlib import closing

import pytest

from benchmarks import stream
from benchmarks.events import simulated
from benchmarks.shares import BenchmarkError
from pipeline.logs.files import FileLog
from pipeline.logs.log import DUPLICATES, EPISODES, EVENTS, OUTPUTS, SAMPLES, TRANSITIONS, Entry
from pipeline.streaming.counts import count
from pipeline.streaming.run import follow


def test_all_contenders_make_the_same_outputs() -> None:
    result = stream.measure(40, 2, stream.CONTENDERS)
    assert [row.name for row in result.rows] == list(stream.CONTENDERS)
    assert all(len(row.events_per_cpu_s) == len(row.ratios) == 2 for row in result.rows)
    assert result.rows[0].ratios == (1.0, 1.0)
    assert min(result.outputs[topic] for topic in (SAMPLES, TRANSITIONS, EPISODES, DUPLICATES)) > 0
    assert "embedded runner" in stream.table(result)


def test_a_contender_that_leaves_something_out_is_told_of() -> None:
    class Forgetful(FileLog):
        def append(self, topic: str, entries: list[Entry]) -> None:
            super().append(topic, entries[1:] if topic == SAMPLES else entries)

    def forgetful(task: stream.Task) -> None:
        with closing(Forgetful(task.folder)) as log:
            stream.plain_loop(task.config, log)

    contenders = {stream.YARDSTICK: stream.CONTENDERS[stream.YARDSTICK], "sloppy": stream.in_this_process(forgetful)}
    with pytest.raises(BenchmarkError, match="sloppy: its samples differ"):
        stream.measure(20, 1, contenders)


def test_the_traffic_has_what_a_log_has(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("traffic")
    with closing(FileLog(folder / "log")) as log:
        log.create(EVENTS, 4)
        log.append(EVENTS, simulated(400))
        for topic in OUTPUTS:
            log.create(topic, 1)
        (folder / "state").mkdir()
        follow(stream.MINUTES, log, folder / "state", until_idle=True, stop=threading.Event())
        counts = count(log, folder / "state")
    assert min(counts.joined, counts.duplicate, counts.late, counts.dead, counts.terminal) > 0
    assert counts.read == counts.joined + counts.duplicate + counts.late + counts.orphan + counts.dead + counts.open
    assert counts.open == 0
