"""What the embedded runner saves to go on later. No Beam here: counting and inspecting must not wait for it."""

from __future__ import annotations

from msgspec import Struct

Timer = tuple[int, str, str, str]  # due (ms), timer's name, key, dynamic tag


class SavedStep(Struct, frozen=True):
    """State and timers of a step, encoded by the coders of its state."""

    cells: dict[str, dict[str, list[bytes]]]  # by state's name (also where empty) and key; one value, or a bag's
    timer_names: list[str]
    timers: list[Timer]

    @property
    def names(self) -> tuple[list[str], list[str]]:
        """Of its states and timers: what a step must agree in to take this over."""
        return sorted(self.cells), sorted(self.timer_names)


class Progress(Struct, frozen=True):
    """Where the runner is, and what its steps remember."""

    watermark_ms: int
    positions: dict[int, int]  # of the source: next offset by partition
    steps: dict[str, SavedStep]  # of the stateful steps, by label
    read: int = 0  # records in all; positions do not say it, a log may begin later and have gaps
