"""Parts of a shape that are to stay down: a file of the name of each, which the process that has it up looks at."""

from __future__ import annotations

from pathlib import Path

from cluster.record import ShapeError
from pageturn.supervisor import Supervisor


def hold(folder: Path, part: str) -> None:
    _held(folder).mkdir(exist_ok=True)
    (_held(folder) / part).touch()


def release(folder: Path, part: str) -> None:
    try:
        (_held(folder) / part).unlink()
    except FileNotFoundError as error:
        message = f"{part}: is not held"
        raise ShapeError(message) from error


class Follower:
    """Carries it out."""

    def __init__(self, folder: Path, supervisor: Supervisor) -> None:
        self._folder, self._supervisor = folder, supervisor
        self._held: set[str] = set()

    def look(self) -> None:
        known = {state.name for state in self._supervisor.states()}
        wanted = {path.name for path in _held(self._folder).glob("*")} & known
        for part in wanted - self._held:
            self._supervisor.hold(part)
        for part in self._held - wanted:
            self._supervisor.release(part)
        self._held = wanted


def _held(folder: Path) -> Path:
    return folder / "held"
