"""A process that is watched leaves its signs of life in a file, from the first turn of its loop on."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from pageturn.options import HEARTBEAT, _Heart, stop_signal


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_only_a_process_that_is_told_to_leaves_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(HEARTBEAT, raising=False)
    assert not isinstance(stop_signal(), _Heart)


@pytest.mark.parametrize("ask", [lambda stop: stop.is_set(), lambda stop: stop.wait(0)])
def test_asking_whether_to_stop_is_a_sign_of_life(ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    file = tmp_path / "alive"
    file.write_text("of the process before")
    monkeypatch.setenv(HEARTBEAT, str(file))
    monkeypatch.setattr(_Heart, "_EVERY_S", 0.0)
    stop = stop_signal()
    assert not file.exists()
    assert ask(stop) is False
    assert file.exists()
    file.unlink()
    ask(stop)
    assert file.exists()


def test_a_busy_loop_does_not_touch_the_disk_at_every_turn(tmp_path: Path) -> None:
    heart = _Heart(tmp_path / "alive")
    heart._EVERY_S = 3600.0  # type: ignore[misc]
    heart._beaten_s = -heart._EVERY_S
    heart.is_set()
    (tmp_path / "alive").unlink()
    heart.is_set()
    assert not (tmp_path / "alive").exists()


def test_it_stops_like_any_other(tmp_path: Path) -> None:
    heart = _Heart(tmp_path / "alive")
    heart.set()
    assert heart.is_set()
    assert heart.wait(0)


def test_a_file_that_cannot_be_is_named(tmp_path: Path) -> None:
    with pytest.raises(click.ClickException, match="PAGETURN_HEARTBEAT: expected a file that can be made, found"):
        _Heart(tmp_path)
