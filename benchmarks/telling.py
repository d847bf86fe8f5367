"""How a benchmark speaks: what it is at on stderr, its table on stdout, its figures in a file."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec

from pipeline.errors import PageturnError

_Found = TypeVar("_Found")


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def parser(name: str, doc: str | None) -> argparse.ArgumentParser:
    """Of `python -m benchmarks.NAME`, described by the first line of its `doc`; knows --json."""
    made = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=(doc or "").split("\n")[0])
    made.add_argument("--json", type=Path, help="write the figures here, too")
    return made


def tell(
    measure: Callable[[], _Found],
    table: Callable[[_Found], str],
    json: Path | None,
    good: Callable[[_Found], bool] = lambda found: True,
) -> int:
    """Measure and report; the exit code."""
    try:
        found = measure()
    except PageturnError as error:
        say(str(error))
        return 1
    print(table(found))
    if json is not None:
        json.write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=1) + b"\n")
    return 0 if good(found) else 1
