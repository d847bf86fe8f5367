"""Events that could not be read: looking at them, and giving them to the stream once more.

A replay appends a letter's bytes to the events, under the key they had. It keeps a journal in the log, the topic
`replays`: before a batch its letters and the ends of the events, after it that it was sent. Who finds a batch that was
announced and not confirmed (the process died in between) looks behind those ends for what of it is there. So a letter
is sent once however often it is asked for; of two replays at the same moment both may send it, and the stream sets the
second copy aside as the duplicate that it is.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click
from msgspec import Struct

from pageturn.options import options
from pipeline.logs.log import DEAD_LETTERS, EVENTS, Entry, EventLog, ensure_topic

if TYPE_CHECKING:
    from pipeline.config.schema import Stream
    from pipeline.records import DeadLetter

REPLAYS = "replays"
_BATCH = 200
_EXCERPT = 2_000  # characters
_LAST_MS = 253_402_300_799_999  # the end of the calendar


class Batch(Struct, frozen=True):
    """An entry of the journal."""

    letters: tuple[str, ...]
    sent: bool
    ends: dict[int, int] = {}  # of the events before it was sent, by partition


class Replayed(NamedTuple):
    sent: int
    before: int  # sent by an earlier replay
    refused: Counter[str]  # reasons for which the stream would refuse them again
    no_events: int


def is_event(letter: DeadLetter) -> bool:
    """The trainer's letters are transitions, `transitions/partition:offset`: no event to replay."""
    return "/" not in letter.id


def letters_in(log: EventLog) -> Iterator[DeadLetter]:
    """Each once, in no particular order over partitions."""
    from pipeline.events import decode
    from pipeline.records import DeadLetter
    from pipeline.streaming.outputs import identity, read_all

    seen = set()
    for record in read_all(log, DEAD_LETTERS):
        name = identity(DEAD_LETTERS, record.payload)
        if name is not None and name not in seen:
            seen.add(name)
            yield decode(record.payload, DeadLetter)


# Replaying ---------------------------------------------------------------------------------------------------------


def replay_letters(log: EventLog, letters: Iterable[DeadLetter], stream: Stream, now_ms: int) -> Replayed:
    """Append to the events those that can be read now and were not sent before."""
    from pipeline.events import Refusal, parse

    done, waiting, counts = replayed(log), _Waiting(log), Counter[str]()
    refused: Counter[str] = Counter()
    for letter in letters:
        if not is_event(letter):
            counts["no event"] += 1
        elif letter.id in done:
            counts["before"] += 1
        elif isinstance(parsed := parse(letter.payload, stream.max_event_bytes, now_ms + stream.max_ahead), Refusal):
            refused[parsed.reason] += 1
        else:
            counts["sent"] += 1
            waiting.add(letter)
    waiting.send()
    return Replayed(counts["sent"], counts["before"], refused, counts["no event"])


class _Waiting:
    """Letters on their way, a batch at a time."""

    def __init__(self, log: EventLog) -> None:
        self._log = log
        self._letters: list[DeadLetter] = []

    def add(self, letter: DeadLetter) -> None:
        self._letters.append(letter)
        if len(self._letters) == _BATCH:
            self.send()

    def send(self) -> None:
        if self._letters:
            _send(self._log, self._letters)
        self._letters = []


def replayed(log: EventLog) -> set[str]:
    """Letters that were sent. Confirms batches whose replay died before it could."""
    done, announced = _journal(log)
    for batch in announced:
        missing = [name for name in batch.letters if name not in done]
        found = _found(log, missing, batch.ends) if missing else []
        if found:
            _note(log, Batch(tuple(found), sent=True))
            done.update(found)
    return done


def _journal(log: EventLog) -> tuple[set[str], list[Batch]]:
    """Letters that are known to have been sent; batches of which it is not known, of each letter the last."""
    from pipeline.events import decode
    from pipeline.streaming.outputs import read_all

    ensure_topic(log, REPLAYS, 1)
    done: set[str] = set()
    announced = []
    for record in read_all(log, REPLAYS):
        batch = decode(record.payload, Batch)
        if batch.sent:
            done.update(batch.letters)
        else:
            announced.append(batch)
    return done, [batch for batch in announced if not done.issuperset(batch.letters)]


def _found(log: EventLog, names: Sequence[str], ends: dict[int, int]) -> list[str]:
    """Which of the letters are among the events behind the ends, each record standing for one letter."""
    from pipeline.streaming.outputs import read_all

    wanted: dict[tuple[str, bytes], list[str]] = {}
    for letter in letters_in(log):
        if letter.id in names:
            wanted.setdefault((letter.key, letter.payload), []).append(letter.id)
    found = []
    for record in read_all(log, EVENTS, ends):
        if waiting := wanted.get((record.key, record.payload)):
            found.append(waiting.pop(0))
    return found


def _send(log: EventLog, letters: Sequence[DeadLetter]) -> None:
    names = tuple(letter.id for letter in letters)
    _note(log, Batch(names, sent=False, ends=log.end_offsets(EVENTS)))
    log.append(EVENTS, [Entry(letter.key, letter.payload) for letter in letters])
    _note(log, Batch(names, sent=True))


def _note(log: EventLog, batch: Batch) -> None:
    from pipeline.events import encode

    log.append(REPLAYS, [Entry(REPLAYS, encode(batch))])


# Showing -----------------------------------------------------------------------------------------------------------


def describe(letter: DeadLetter, replayed: bool, full: bool) -> str:
    """What, when, why, and the bytes, as far as they can be printed."""
    at = datetime.fromtimestamp(min(letter.appended_at_ms, _LAST_MS) / 1000, UTC).isoformat(" ", "milliseconds")
    head = [letter.id, letter.reason, at, f"key {letter.key!r}", f"{len(letter.payload)} bytes"]
    return "\n".join(
        [
            "  ".join([*head, "replayed"] if replayed else head),
            f"    {letter.detail}",
            f"    {readable(letter.payload, None if full else _EXCERPT)}",
        ]
    )


def readable(payload: bytes, limit: int | None) -> str:
    """The bytes as text on one line. What is no UTF-8, and what a terminal would obey, is escaped."""
    text = payload.decode(errors="backslashreplace")
    shown = text if limit is None else text[:limit]
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown)
    return line if len(shown) == len(text) else f"{line}..."


def _tally(counts: Counter[str]) -> str:
    return ", ".join(f"{n} {name}" for name, n in sorted(counts.items()))


@click.group()
def deadletters() -> None:
    """Look at events that could not be read, and replay them."""


@deadletters.command()
@options("log")
@click.option("--reason", "reasons", multiple=True, help="Only letters with this reason.")
@click.option("--limit", default=20, type=click.IntRange(1), help="The latest so many.")
@click.option("--full", is_flag=True, help="All bytes of each letter, however many.")
def show(log_url: str, reasons: tuple[str, ...], limit: int, full: bool) -> None:
    """Print dead letters with reason, detail and original bytes."""
    from pipeline.logs.log import has_topic
    from pipeline.logs.opening import open_log

    counts: Counter[str] = Counter()
    latest: deque[DeadLetter] = deque(maxlen=limit)
    with closing(open_log(log_url)) as log:
        for letter in letters_in(log):
            counts[letter.reason] += 1
            if not reasons or letter.reason in reasons:
                latest.append(letter)
        done = _journal(log)[0] if has_topic(log, REPLAYS) else set()
    for letter in latest:
        click.echo(describe(letter, letter.id in done, full))
    click.echo(f"{counts.total()} dead letters" + (f": {_tally(counts)}; {len(done)} replayed" if counts else ""))


@deadletters.command()
@options("config", "log")
@click.option("--reason", "reasons", multiple=True, help="All letters with this reason.")
@click.option("--id", "ids", multiple=True, help="The letter with this id, as `show` prints it.")
def replay(config_path: Path, log_url: str, reasons: tuple[str, ...], ids: tuple[str, ...]) -> None:
    """Put the original bytes of the chosen letters back on the events.

    Each letter once, however often this is run. Letters that this program would refuse again are left where they are.
    """
    if not reasons and not ids:
        message = "expected --reason or --id: which letters to replay"
        raise click.UsageError(message)
    from pipeline.config.reading import load_config
    from pipeline.logs.opening import open_log

    stream = load_config(config_path).stream
    with closing(open_log(log_url)) as log:
        _check_ids(log, set(ids))
        chosen = (letter for letter in letters_in(log) if letter.reason in reasons or letter.id in ids)
        done = replay_letters(log, chosen, stream, time.time_ns() // 1_000_000)
    said = [f"{done.sent} replayed"]
    said += [f"{done.before} had been replayed before"] if done.before else []
    said += [f"{done.refused.total()} would be refused again ({_tally(done.refused)})"] if done.refused else []
    said += [f"{done.no_events} transitions, which are no events"] if done.no_events else []
    click.echo(", ".join(said))


def _check_ids(log: EventLog, ids: set[str]) -> None:
    unknown = ids and sorted(ids - {letter.id for letter in letters_in(log)})
    if unknown:
        message = f"no dead letter {', '.join(unknown)}; `pageturn deadletters show` prints their ids"
        raise click.ClickException(message)
