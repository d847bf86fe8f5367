"""DRN on a real log: imported, initialised offline, and ranking lists it has not learned from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.ebnerd import CONFIG, auc, ndcg, run
from pageturn.ebnerd import _rows
from pageturn.ebnerd_items import item_features
from pipeline.config.reading import load_config


def test_the_figures_of_a_list() -> None:
    clicked = np.array([False, True, False, False])
    assert auc(np.array([0.0, 3.0, 1.0, 2.0]), clicked) == 1.0
    assert auc(np.array([0.0, 1.0, 1.0, 2.0]), clicked) == pytest.approx(0.5)  # ahead of one, level with one
    assert ndcg(np.array([0.0, 3.0, 1.0, 2.0]), clicked) == 1.0
    assert ndcg(np.array([3.0, 2.0, 1.0, 0.0]), clicked) == pytest.approx(1 / np.log2(3))


def test_what_is_known_of_an_article_is_known_before_its_page(ebnerd_dir: Path) -> None:
    behaviors = sorted(_rows(ebnerd_dir, "behaviors.parquet"), key=lambda r: (r["impression_time"], r["impression_id"]))
    whole, half = item_features(behaviors, {}), item_features(behaviors[:500], {})
    assert all(whole[impression] == features for impression, features in half.items())
    assert {known["read_before"] for features in whole.values() for known in features} == {0, 1}
    assert max(known["clicks"] for features in whole.values() for known in features) > 1


def test_a_log_becomes_rankings(ebnerd_dir: Path) -> None:
    rows, sizes = run(ebnerd_dir, load_config(CONFIG))
    by_name = {row.method: row for row in rows}
    assert list(by_name) == ["random", "popularity", "FTRL", "LinUCB", "DRN"]
    assert sizes["lists"] == 1046
    assert sizes["lists judged"] > 250
    assert 500 < sizes["pages learned from"] < 0.8 * 1046  # none whose next request came later
    assert by_name["random"].auc.low < 0.5 < by_name["random"].auc.high
    for row in rows:
        assert 0.3 < row.auc.low < row.auc.mean < row.auc.high < 1
        assert 0 < row.ndcg.mean < 1
    assert by_name["popularity"].auc_ahead.mean == 0
    assert by_name["DRN"].auc.mean not in (0.5, by_name["popularity"].auc.mean)  # it has learned something of its own
