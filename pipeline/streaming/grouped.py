"""The stateful step of the stream where state is another process's: keyed by groups of sessions, not by session."""

from __future__ import annotations

import secrets
from collections.abc import Mapping

import apache_beam as beam
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import BagRuntimeState, BagStateSpec, RuntimeTimer, TimerSpec, on_timer
from apache_beam.utils.timestamp import Timestamp

from pipeline.streaming.coders import MsgpackCoder
from pipeline.streaming.groups import Group, Open, Piece, ladder
from pipeline.streaming.sinks import Encoded, encoded
from pipeline.streaming.snapshot import session_state
from pipeline.transitions.session import Rules, SessionState, Stamped, Turn, encode_state, on_events, on_watermark

_MARK_BYTES = 8


@beam.typehints.with_input_types(tuple[str, list[Stamped]])
@beam.typehints.with_output_types(Encoded)
class Groups(beam.DoFn):
    """(group, events of its sessions) to outputs.

    The groups are in memory, too. What is there is as the state says if the last piece is the same: pieces are only
    ever appended to what was read, and no two have the same mark. The state is read, which costs nothing where the
    worker caches it, since a group may have come from elsewhere, or have gone back to a checkpoint.
    """

    STATE = BagStateSpec("sessions", MsgpackCoder(Piece))
    WAKE = TimerSpec("wake", TimeDomain.WATERMARK)

    def __init__(self, rules: Rules) -> None:
        super().__init__()
        self._rules = rules

    def setup(self) -> None:
        self._groups: dict[str, Group] = {}

    def process(
        self,
        element: tuple[str, list[Stamped]],
        state: BagRuntimeState = beam.DoFn.StateParam(STATE),  # noqa: B008 (Beam's way)
        wake: RuntimeTimer = beam.DoFn.TimerParam(WAKE),  # noqa: B008
    ) -> list[Encoded]:
        key, events = element
        group, sessions = self._group(key, state), dict[str, list[Stamped]]()
        for stamped in events:
            sessions.setdefault(stamped.event.session_id, []).append(stamped)
        turns = {name: on_events(self._rules, _state(group, name), own) for name, own in sessions.items()}
        return _settle(group, turns, state, wake)

    @on_timer(WAKE)
    def on_wake(
        self,
        key: str = beam.DoFn.KeyParam,
        timestamp: Timestamp = beam.DoFn.TimestampParam,
        state: BagRuntimeState = beam.DoFn.StateParam(STATE),  # noqa: B008
        wake: RuntimeTimer = beam.DoFn.TimerParam(WAKE),  # noqa: B008
    ) -> list[Encoded]:
        """The watermark has reached the timer's time, and that is all a session may know of the watermark."""
        group, now_ms = self._group(key, state), timestamp.micros // 1000
        del self._groups[key]  # until it is whole again: what raises on the way leaves nothing to believe
        group.armed = {tag: due_ms for tag, due_ms in group.armed.items() if due_ms > now_ms}
        turns: dict[str, Turn] = {}
        for name in group.take_due(now_ms):
            session = _state(group, name)
            assert session is not None
            turns[name] = on_watermark(self._rules, session, now_ms)
        outputs = _settle(group, turns, state, wake)
        self._groups[key] = group
        return outputs

    def _group(self, key: str, state: BagRuntimeState) -> Group:
        pieces = list(state.read())
        group = self._groups.get(key)
        if group is None or group.mark != (pieces[-1].mark if pieces else None):
            group = self._groups[key] = Group(pieces)
        return group


def _state(group: Group, name: str) -> SessionState | None:
    session = group.sessions.get(name)
    return None if session is None else session_state(session.state)


def _settle(group: Group, turns: Mapping[str, Turn], state: BagRuntimeState, wake: RuntimeTimer) -> list[Encoded]:
    """Write what has changed and arm the timers for what is due next."""
    changed = {name: _open(turn) for name, turn in turns.items() if turn.state is not None or name in group.sessions}
    if changed:
        piece = Piece(secrets.token_bytes(_MARK_BYTES), changed)
        group.add(piece)
        _write(group, piece, state)
    _arm(group, wake)
    return [encoded(name, output) for name, turn in turns.items() for output in turn.outputs]


def _open(turn: Turn) -> Open | None:
    return None if turn.state is None or turn.wake_at_ms is None else Open(encode_state(turn.state), turn.wake_at_ms)


def _write(group: Group, piece: Piece, state: BagRuntimeState) -> None:
    pieces = [piece]
    if group.is_wasteful:
        state.clear()
        pieces = group.anew(piece.mark)
    for each in pieces:
        state.add(each)


def _arm(group: Group, wake: RuntimeTimer) -> None:
    wanted = ladder(group.next_due_ms)
    for tag in group.armed.keys() - wanted.keys():
        wake.clear(dynamic_timer_tag=tag)
    for tag, due_ms in wanted.items():
        if group.armed.get(tag) != due_ms:
            wake.set(Timestamp(micros=due_ms * 1000), dynamic_timer_tag=tag)
    group.armed = dict(wanted)
