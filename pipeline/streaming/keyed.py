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

from pipeline.streaming.progress import SavedKey, SavedStep, Timer

_STALE_ALLOWED = 1_000
_NONE: dict[tuple[str, str], int] = {}


class TimerQueue:
    """Armed timers, earliest first. Setting one again replaces it."""

    def __init__(self) -> None:
        self._armed: dict[str, dict[tuple[str, str], int]] = {}  # key -> (name, tag) -> due (ms)
        self._heap: list[Timer] = []  # also holds timers that were replaced; they are skipped
        self._most = _STALE_ALLOWED  # entries, before those are swept out
        self.changed: set[str] = set()  # keys whose timers did, until somebody clears it

    def set(self, name: str, key: str, tag: str, due_ms: int) -> None:
        timers = self._armed.setdefault(key, {})
        if timers.get((name, tag)) == due_ms:
            return
        timers[name, tag] = due_ms
        self.changed.add(key)
        heapq.heappush(self._heap, (due_ms, name, key, tag))
        if len(self._heap) > self._most:
            self._heap = self._sorted()
            self._most = 2 * len(self._heap) + _STALE_ALLOWED

    def clear(self, name: str, key: str, tag: str) -> None:
        timers = self._armed.get(key)
        if timers is not None and timers.pop((name, tag), None) is not None:
            self._touched(key, timers)

    def pop(self, watermark_ms: int) -> Timer | None:
        """The next timer that is due, disarmed."""
        heap, armed = self._heap, self._armed
        while heap and heap[0][0] <= watermark_ms:
            timer = heapq.heappop(heap)
            due_ms, name, key, tag = timer
            timers = armed.get(key, _NONE)
            if timers.get((name, tag)) == due_ms:
                del timers[name, tag]
                self._touched(key, timers)
                return timer
        return None

    def due(self, watermark_ms: int) -> bool:
        heap, armed = self._heap, self._armed
        while heap and armed.get(heap[0][2], _NONE).get((heap[0][1], heap[0][3])) != heap[0][0]:
            heapq.heappop(heap)
        return bool(heap) and heap[0][0] <= watermark_ms

    def armed(self, key: str) -> list[tuple[str, str, int]]:
        """The key's timers: name, tag, due (ms)."""
        return [(name, tag, due_ms) for (name, tag), due_ms in self._armed.get(key, _NONE).items()]

    def _touched(self, key: str, timers: dict[tuple[str, str], int]) -> None:
        self.changed.add(key)
        if not timers:
            del self._armed[key]

    def _sorted(self) -> list[Timer]:
        """All armed timers in order; a sorted list is a heap."""
        return sorted(
            (due_ms, name, key, tag) for key, timers in self._armed.items() for (name, tag), due_ms in timers.items()
        )


class KeyedState(userstate.UserStateContext):
    """The user state of one stateful step, in the global window. It knows which keys changed since it was saved."""

    def __init__(self, states: Iterable[userstate.StateSpec], timers: Iterable[userstate.TimerSpec]) -> None:
        self._states = {spec.name: spec for spec in states}
        self.specs = {spec.name: spec for spec in timers}
        self.timers = TimerQueue()
        self._cells: dict[str, dict[str, Any]] = {name: {} for name in self._states}
        self._changed = self.timers.changed

    def get_state(self, state_spec: userstate.StateSpec, key: str, window: object) -> _Value | _Bag:
        kind = _Bag if isinstance(state_spec, userstate.BagStateSpec) else _Value
        return kind(self._cells[state_spec.name], key, self._changed)

    def get_timer(self, timer_spec: userstate.TimerSpec, key: str, *_: object) -> _Timer:
        return _Timer(self.timers, timer_spec.name, key)

    def commit(self) -> None:
        """Nothing to do: writes are seen at once."""

    def reset(self) -> None:
        """Nothing to do: nothing is cached."""

    def saved(self, keys: Iterable[str] = ()) -> SavedStep:
        return SavedStep(sorted(self._states), sorted(self.specs), {key: self._saved(key) for key in keys})

    def save_changes(self) -> SavedStep:
        """The keys that changed since it was last called."""
        saved = self.saved(sorted(self._changed))
        self.forget_changes()
        return saved

    def forget_changes(self) -> None:
        self._changed.clear()

    def restore(self, saved: SavedStep) -> None:
        for key, of_key in saved.keys.items():
            if of_key is None:
                continue
            for name, values in of_key.cells.items():
                self._cells[name][key] = self._decode(name, values)
            for name, tag, due_ms in of_key.timers:
                self.timers.set(name, key, tag, due_ms)
        self.forget_changes()

    def _saved(self, key: str) -> SavedKey | None:
        cells = {name: self._encode(name, cell[key]) for name, cell in self._cells.items() if key in cell}
        timers = self.timers.armed(key)
        return SavedKey(cells, timers) if cells or timers else None

    def _encode(self, name: str, value: Any) -> list[bytes]:
        spec = self._states[name]
        return [spec.coder.encode(each) for each in (value if isinstance(spec, userstate.BagStateSpec) else [value])]

    def _decode(self, name: str, values: list[bytes]) -> Any:
        spec = self._states[name]
        decoded = [spec.coder.decode(value) for value in values]
        return decoded if isinstance(spec, userstate.BagStateSpec) else decoded[0]


class _Value(userstate.ReadModifyWriteRuntimeState):
    def __init__(self, cell: dict[str, Any], key: str, changed: set[str]) -> None:
        self._cell, self._key, self._changed = cell, key, changed

    def read(self) -> Any:
        return self._cell.get(self._key)

    def write(self, value: Any) -> None:
        self._cell[self._key] = value
        self._changed.add(self._key)

    def clear(self) -> None:
        if self._cell.pop(self._key, self) is not self:
            self._changed.add(self._key)


class _Bag(userstate.BagRuntimeState):
    def __init__(self, cell: dict[str, list[Any]], key: str, changed: set[str]) -> None:
        self._cell, self._key, self._changed = cell, key, changed

    def read(self) -> list[Any]:
        return list(self._cell.get(self._key, ()))

    def add(self, value: Any) -> None:
        self._cell.setdefault(self._key, []).append(value)
        self._changed.add(self._key)

    def clear(self) -> None:
        if self._cell.pop(self._key, None) is not None:
            self._changed.add(self._key)


class _Timer(userstate.BaseTimer):
    def __init__(self, queue: TimerQueue, name: str, key: str) -> None:
        self._queue, self._name, self._key = queue, name, key

    def set(self, timestamp: Timestamp, dynamic_timer_tag: str = "") -> None:
        due_ms = -(-Timestamp.of(timestamp).micros // 1000)
        self._queue.set(self._name, self._key, dynamic_timer_tag, due_ms)

    def clear(self, dynamic_timer_tag: str = "") -> None:
        self._queue.clear(self._name, self._key, dynamic_timer_tag)
