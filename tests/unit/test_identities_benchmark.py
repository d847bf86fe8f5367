"""The benchmark of ids that come and go: at a size of no weight it does what it says it measures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import identities
from benchmarks.shares import BenchmarkError


def test_every_id_that_lost_its_row_is_put_away_and_read_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"AT_ONCE": 100, "FEW": 10, "WRITES": 2, "PORTION": 200}.items():
        monkeypatch.setattr(identities, name, value)
    found = identities.measure(2_000, 2, 403, tmp_path)  # 400 rows of ids
    written = 2 * (100 + 10)
    # Twice 403 come in portions of 100, so 900 each round; as many lose their rows.
    assert [each.rows - 2_000 - (i + 1) * written for i, each in enumerate(found.rounds)] == [900, 1_800]
    assert 400 < found.counted <= 5 * 403 + 400
    assert found.file_gb * 1e9 == pytest.approx((tmp_path / identities.FILE).stat().st_size, abs=5e5)
    assert found.rounds[1].bytes_per_row > identities.ROW_BYTES
    assert f"{found.rounds[1].rows:,}" in identities.table(found)
    assert len(capsys.readouterr().err.splitlines()) == 3


def test_ids_are_distinct_and_spread() -> None:
    ids = identities._ids(0, 10_000)
    assert len(np.unique(ids)) == 10_000
    assert 0 not in ids
    assert abs(float((ids >> np.uint64(63)).mean()) - 0.5) < 0.02
    assert identities.contents(ids[:2]) == [each.tobytes() * 24 for each in ids[:2]]


@pytest.mark.parametrize("sizes", [(100_000, 0, 10_000), (100_000, 1, 100), (100, 1, 10_000)])
def test_sizes_at_which_nothing_can_be_measured_are_refused(sizes: tuple[int, int, int], tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match="expected --rounds"):
        identities.measure(*sizes, tmp_path)
