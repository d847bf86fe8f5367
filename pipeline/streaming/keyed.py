"""State and timers of one step, by key: what Beam's DoFnRunner asks its runner for.

Values are the live objects that the DoFn wrote; coders are called when a snapshot is taken. Timers are whole
milliseconds, rounded up, so that none fires early.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from typing import Any

from apache_beam.transforms import userstate
from apache_beam.utils.timestamp import Timestamp

from pipeline.streaming.progress import SavedStep, Timer

_STALE_ALLOWED = 1_000


class TimerQueue:
    """Armed timers, earliest first. Setting one again replaces it."""

    def __init__(self) -> None:
        self._armed: dict[tuple[str, str, str], int] = {}
        self._heap: list[Timer] = []  # also holds timers that were replaced; they are skipped

    def set(self, name: str, key: str, tag: str, due_ms: int) -> None:
        if self._armed.get((name, key, tag)) == due_ms:
            return
        self._armed[name, key, tag] = due_ms
        heapq.heappush(self._heap, (due_ms, name, key, tag))
        if len(self._heap) > 2 * len(self._armed) + _STALE_ALLOWED:
            self._heap = self.armed()

    def clear(self, name: str, key: str, tag: str) -> None:
        self._armed.pop((name, key, tag), None)

    def pop(self, watermark_ms: int) -> Timer | None:
        """The next timer that is due, disarmed."""
        if not self.due(watermark_ms):
            return None
        timer = heapq.heappop(self._heap)
        del self._armed[timer[1:]]
        return timer

    def due(self, watermark_ms: int) -> bool:
        while self._heap and self._armed.get(self._heap[0][1:]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return bool(self._heap) and self._heap[0][0] <= watermark_ms

    def armed(self) -> list[Timer]:
        """All armed timers in order; a sorted list is a heap."""
        return sorted((due_ms, *timer) for timer, due_ms in self._armed.items())


class KeyedState(userstate.UserStateContext):
    """The user state of one stateful step, in the global window."""

    def __init__(self, states: Iterable[userstate.StateSpec], timers: Iterable[userstate.TimerSpec]) -> None:
        self._states = {spec.name: spec for spec in states}
        self.specs = {spec.name: spec for spec in timers}
        self.timers = TimerQueue()
        self._cells: dict[str, dict[str, Any]] = {name: {} for name in self._states}

    def get_state(self, state_spec: userstate.StateSpec, key: str, window: object) -> _Value | _Bag:
        kind = _Bag if isinstance(state_spec, userstate.BagStateSpec) else _Value
        return kind(self._cells[state_spec.name], key)

    def get_timer(self, timer_spec: userstate.TimerSpec, key: str, *_: object) -> _Timer:
        return _Timer(self.timers, timer_spec.name, key)

    def commit(self) -> None:
        """Nothing to do: writes are seen at once."""

    def reset(self) -> None:
        """Nothing to do: nothing is cached."""

    def save(self) -> SavedStep:
        cells = {
            name: {key: self._encode(name, value) for key, value in cell.items()} for name, cell in self._cells.items()
        }
        return SavedStep(cells, sorted(self.specs), self.timers.armed())

    def restore(self, saved: SavedStep) -> None:
        for name, cell in saved.cells.items():
            self._cells[name] = {key: self._decode(name, values) for key, values in cell.items()}
        for due_ms, name, key, tag in saved.timers:
            self.timers.set(name, key, tag, due_ms)

    def _encode(self, name: str, value: Any) -> list[bytes]:
        spec = self._states[name]
        return [spec.coder.encode(each) for each in (value if isinstance(spec, userstate.BagStateSpec) else [value])]

    def _decode(self, name: str, values: list[bytes]) -> Any:
        spec = self._states[name]
        decoded = [spec.coder.decode(value) for value in values]
        return decoded if isinstance(spec, userstate.BagStateSpec) else decoded[0]


class _Value(userstate.ReadModifyWriteRuntimeState):
    def __init__(self, cell: dict[str, Any], key: str) -> None:
        self._cell, self._key = cell, key

    def read(self) -> Any:
        return self._cell.get(self._key)

    def write(self, value: Any) -> None:
        self._cell[self._key] = value

    def clear(self) -> None:
        self._cell.pop(self._key, None)


class _Bag(userstate.BagRuntimeState):
    def __init__(self, cell: dict[str, list[Any]], key: str) -> None:
        self._cell, self._key = cell, key

    def read(self) -> list[Any]:
        return list(self._cell.get(self._key, ()))

    def add(self, value: Any) -> None:
        self._cell.setdefault(self._key, []).append(value)

    def clear(self) -> None:
        self._cell.pop(self._key, None)


class _Timer(userstate.BaseTimer):
    def __init__(self, queue: TimerQueue, name: str, key: str) -> None:
        self._queue, self._name, self._key = queue, name, key

    def set(self, timestamp: Timestamp, dynamic_timer_tag: str = "") -> None:
        due_ms = -(-Timestamp.of(timestamp).micros // 1000)
        self._queue.set(self._name, self._key, dynamic_timer_tag, due_ms)

    def clear(self, dynamic_timer_tag: str = "") -> None:
        self._queue.clear(self._name, self._key, dynamic_timer_tag)
