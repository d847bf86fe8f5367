"""`pageturn stream --from T --to T`: the stream's outputs for a range of the past, from a log or an archive."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from pageturn.options import FOLDER

if TYPE_CHECKING:
    from pipeline.config.schema import FeatureConfig
    from pipeline.logs.log import EventLog
    from pipeline.streaming.backfill import BackFill
    from pipeline.streaming.bounded import Input


class _Moment(click.ParamType):
    """A time, as milliseconds."""

    name = "time"

    def convert(self, value: str | int, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return int(value)
        except ValueError:
            pass
        try:
            moment = datetime.fromisoformat(str(value))
        except ValueError:
            expected = "2026-11-22, 2026-11-22T03:00, 2026-11-22T03:00:00+01:00 or milliseconds since 1970"
            self.fail(f"expected a time such as {expected}; found {value!r}", param, ctx)
        return round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


class Past(NamedTuple):
    from_ms: int | None
    to_ms: int | None
    output: str | None
    archive: Path | None
    closed: bool

    @property
    def asked(self) -> bool:
        return any(self)


_OPTIONS = (
    click.option("--from", "from_ms", type=_Moment(), help="Back-fill: outputs of pages from this time on (UTC) ..."),
    click.option("--to", "to_ms", type=_Moment(), help="... up to, and not including, this time."),
    click.option("--output", help="Back-fill: event log that the outputs go to; one without events."),
    click.option("--archive", type=FOLDER, help="Back-fill: read the events from an archive, not from --log."),
    click.option("--closed", is_flag=True, help="Nothing will be added to the archive: take its end for final."),
)


def past_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options of a back-fill, given to the command as `past`."""

    @functools.wraps(command)
    def gathered(*, from_ms: int, to_ms: int, output: str, archive: Path, closed: bool, **others: Any) -> None:
        command(past=Past(from_ms, to_ms, output, archive, closed), **others)

    for option in reversed(_OPTIONS):
        gathered = option(gathered)
    return gathered


def check_past(past: Past, log_url: str | None, state: Path | None, until_idle: bool) -> None:
    """UsageError for options that do not go together."""
    if None in (past.from_ms, past.to_ms, past.output):
        _refuse("a back-fill takes --from, --to and --output")
    if (past.archive is None) == (log_url is None):
        _refuse("a back-fill reads from --log or from --archive: expected one of them")
    if past.closed and past.archive is None:
        _refuse("--closed says something about --archive, which is not given")
    if state is not None or until_idle:
        _refuse("a back-fill ends by itself, and keeps its state in its outputs: leave out --state and --until-idle")
    if past.from_ms is not None and past.to_ms is not None and past.from_ms >= past.to_ms:
        _refuse("expected --from to be before --to")


def _refuse(message: str) -> None:
    raise click.UsageError(message)


def fill(config: FeatureConfig, past: Past, log_url: str | None, partitions: int, stop: threading.Event) -> None:
    """Write the outputs of the range, and say what they are."""
    from pipeline.logs.opening import open_log
    from pipeline.streaming.backfill import backfill  # after the rest was checked: Beam takes seconds to load
    from pipeline.streaming.reach import Range

    assert past.from_ms is not None
    assert past.to_ms is not None
    assert past.output is not None
    pages = Range(past.from_ms, past.to_ms)
    with closing(open_log(past.output)) as out:
        if log_url is None:
            done = backfill(config, _input(config, past, None), out, pages, stop=stop, partitions=partitions)
        else:
            with closing(open_log(log_url)) as log:
                done = backfill(config, _input(config, past, log), out, pages, stop=stop, partitions=partitions)
    if done is not None:
        _say(done)


def _input(config: FeatureConfig, past: Past, log: EventLog | None) -> Input:
    from pipeline.logs.files import wall_clock_ms
    from pipeline.streaming.bounded import ArchiveInput, LogInput

    if log is not None:
        return LogInput(log, wall_clock_ms, config.stream.clock_skew)
    assert past.archive is not None
    return ArchiveInput(past.archive, closed=past.closed)


def _say(done: BackFill) -> None:
    from pageturn.table import render
    from pipeline.logs.log import OUTPUTS

    click.echo(render([("events read", done.read), *((topic, done.outputs[topic]) for topic in OUTPUTS)]))
    if not done.decided:
        click.echo(
            f"The range is not final yet: that takes all events stamped before {_utc(done.stamps.to_ms)}, and the "
            "input ends earlier. Run the same again later; what is there is not written twice.",
            err=True,
        )


def _utc(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(" ", "milliseconds")
