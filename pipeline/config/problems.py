"""What is wrong with a config, and where."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import NamedTuple, NoReturn

from pipeline.errors import PageturnError

Path = tuple[str | int, ...]  # keys and list positions from the top


class Problem(NamedTuple):
    path: str
    line: int | None
    message: str


class ConfigError(PageturnError):
    """A feature config cannot be used. All its problems at once, one line each, as `FILE:LINE: path: message`."""

    def __init__(self, origin: str, problems: Iterable[Problem]) -> None:
        self.origin = origin
        self.problems = tuple(problems)
        super().__init__("\n".join(self._line(problem) for problem in self.problems))

    def _line(self, problem: Problem) -> str:
        at = self.origin if problem.line is None else f"{self.origin}:{problem.line}"
        return ": ".join(part for part in (at, problem.path, problem.message) if part)


class Places:
    """Where each part of a config stands in its file, and what items of lists are called."""

    def __init__(self) -> None:
        self.lines: dict[Path, int] = {}
        self.labels: dict[Path, str] = {}

    def problem(self, path: Path, message: str, line: int | None = None) -> Problem:
        return Problem(self._shown(path), line or self._line(path), message)

    def _line(self, path: Path) -> int | None:
        """Of the nearest part that is written out: a default has no line of its own."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path)

    def _shown(self, path: Path) -> str:
        text = ""
        for i, part in enumerate(path):
            if isinstance(part, int):
                text += f"[{self.labels.get(path[: i + 1], part)}]"
            else:
                text += f".{part}" if text else part
        return text


def closest(word: str, known: Iterable[str]) -> str | None:
    return next(iter(difflib.get_close_matches(word, list(known), n=1)), None)


def suggestion(word: str, known: Iterable[str]) -> str:
    """` (did you mean "x"?)`, or nothing when nothing is close."""
    near = closest(word, known)
    return f' (did you mean "{near}"?)' if near else ""


class DependsOnUnknown(Exception):
    """A check needs a value that could not be read; the reason is a problem of its own."""


class Unknown:
    """Stands for a value that could not be read, so that the rest of the config is checked in the same pass.

    It can be stored and passed on; whatever would depend on the value raises DependsOnUnknown.
    """

    def _depends(self, *_: object) -> NoReturn:
        raise DependsOnUnknown

    __getattr__ = __getitem__ = __contains__ = __iter__ = __len__ = __bool__ = __hash__ = _depends
    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __str__ = __format__ = _depends
    __add__ = __radd__ = __sub__ = __rsub__ = _depends


UNKNOWN = Unknown()
