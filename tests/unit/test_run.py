"""The folder of a run."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from pageturn.run import RunError, new_run, open_run
from pipeline.config.editing import with_seed
from pipeline.config.reading import load_config, parse_config
from pipeline.durable import exclusive

CONFIGS = sorted((Path(__file__).resolve().parents[2] / "feature_configs").glob("*.yaml"))
CONFIG = next(path for path in CONFIGS if path.stem == "simulated")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_another_seed_changes_nothing_else(path: Path) -> None:
    before, after = load_config(path), parse_config(with_seed(path.read_text(), 77))
    assert after.algorithm.seed == 77
    expected = msgspec.structs.replace(before.algorithm, seed=77)
    assert after == msgspec.structs.replace(before, algorithm=expected)
    comments = [line.partition("#")[2] for line in path.read_text().splitlines() if "#" in line]
    kept = with_seed(path.read_text(), 77)
    assert all(comment in kept for comment in comments)


def test_a_run_is_found_again_by_its_folder_or_as_the_newest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first = new_run(tmp_path / "runs" / "one", CONFIG, seed=5)
    second = new_run(tmp_path / "runs" / "two", CONFIG, redis=True)
    os.utime(first.folder / "run.json", (1, 1))
    assert open_run(first.folder).record == first.record
    assert open_run(None).folder == second.folder
    first.save(redis_port=17)
    assert open_run(None).folder == first.folder
    assert open_run(None).record.redis_port == 17
    assert (first.record.seed, first.config().algorithm.seed) == (5, 5)
    assert second.record.seed == load_config(CONFIG).algorithm.seed  # where none is given, that of the config
    assert first.store_url == f"sqlite:///{first.folder}/store.db"
    assert second.store_url.startswith("redis://127.0.0.1:")


def test_without_any_run_it_says_how_to_make_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunError, match="`pageturn demo` and `pageturn up` make one"):
        open_run(None)


def test_a_torn_record_is_named(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"name": "x"')
    with pytest.raises(RunError, match=r"expected the folder of a run, with a run\.json: Input data was truncated"):
        open_run(tmp_path)


def test_whoever_has_the_loop_up_is_known(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run", CONFIG)
    assert run.holder is None
    with exclusive(run.folder):
        assert run.holder == os.getpid()
    assert run.holder is None
