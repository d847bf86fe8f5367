"""The file of a trainer's rounds: a line that a kill has torn spoils no other."""

from __future__ import annotations

from pathlib import Path

from pipeline.learning.metrics import MetricsFile


def test_a_torn_line_is_closed_before_the_next(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"transitions":64}\n{"transi')
    MetricsFile(path).append({"transitions": 128})
    assert path.read_bytes() == b'{"transitions":64}\n{"transi\n{"transitions":128}\n'


def test_a_full_file_is_put_aside(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    metrics = MetricsFile(path, limit_bytes=10)
    for number in range(3):
        metrics.append({"transitions": 10_000 * number})
    assert path.read_bytes() == b'{"transitions":20000}\n'
    assert path.with_name("metrics.jsonl.1").read_bytes() == b'{"transitions":10000}\n'
