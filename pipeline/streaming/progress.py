"""What the embedded runner saves to go on later. No Beam here: counting and inspecting must not wait for it."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct, structs

Timer = tuple[int, str, str, str]  # due (ms), timer's name, key, dynamic tag


class SavedKey(Struct, frozen=True, array_like=True):
    """All that a step remembers of a key."""

    cells: dict[str, list[bytes]]  # by state's name: one value, or a bag's; encoded by the state's coder
    timers: list[tuple[str, str, int]]  # armed ones: name, dynamic tag, due (ms)


class SavedStep(Struct, frozen=True):
    """Keys of a stateful step. None: nothing is left of the key."""

    state_names: list[str]
    timer_names: list[str]
    keys: dict[str, SavedKey | None]

    @property
    def names(self) -> tuple[list[str], list[str]]:
        """What a step must agree in to take this over."""
        return self.state_names, self.timer_names


class Progress(Struct, frozen=True):
    """Where the runner is, and what its steps remember: all, or the keys that changed since it was last saved."""

    watermark_ms: int
    positions: dict[int, int]  # of the source: next offset by partition
    steps: dict[str, SavedStep]  # the stateful steps, by label
    read: int = 0  # records in all; positions do not say it, a log may begin later and have gaps


def whole(saved: Iterable[Progress]) -> Progress:
    """What was saved one after another, from the first time on, as one."""
    keys: dict[str, dict[str, SavedKey | None]] = {}
    for progress in saved:
        for label, step in progress.steps.items():
            keys.setdefault(label, {}).update(step.keys)
    steps = {label: structs.replace(step, keys=_left(keys[label])) for label, step in progress.steps.items()}
    return structs.replace(progress, steps=steps)


def _left(keys: dict[str, SavedKey | None]) -> dict[str, SavedKey | None]:
    return {key: saved for key, saved in keys.items() if saved is not None}
