"""The commands that the documentation shows: out of its fenced blocks, and out of its text."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.conftest import ROOT

FILES = sorted([*ROOT.glob("docs/*.md"), ROOT / "README.md", ROOT / "k8s" / "README.md"])
_SHELL = ("", "sh", "bash", "console")
_PROGRAMS = ("pageturn", "make", "kubectl", "docker", "python", "python3", "k8s/make-secrets.sh")
_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)


class Shown(NamedTuple):
    file: Path
    line: int
    words: tuple[str, ...]

    @property
    def where(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line}"


def in_blocks(file: Path) -> Iterator[Shown]:
    """Each command of a fenced block; a loop, or a pipe, is the commands in it."""
    text = file.read_text()
    for block in _FENCE.finditer(text):
        if block[2] in _SHELL:
            first = text.count("\n", 0, block.start()) + 2
            yield from _commands(file, first, re.sub(r"\\\n", " ", block[3]))


def _commands(file: Path, first: int, text: str) -> Iterator[Shown]:
    for number, line in enumerate(text.splitlines(), first):
        for part in re.split(r"\||&&|;", line.partition(" #")[0]):
            words = _words(part)
            if words and _program(words[0]) in _PROGRAMS:
                yield Shown(file, number, (_program(words[0]), *words[1:]))


def _words(part: str) -> list[str]:
    """Without variables that are set for the command."""
    try:
        words = shlex.split(part)
    except ValueError:
        return []
    while words and re.match(r"[A-Z_]+=", words[0]):
        words = words[1:]
    return words


def _program(word: str) -> str:
    return word.removeprefix(".venv/bin/").removeprefix("$(BIN)/")


def in_text(file: Path) -> Iterator[Shown]:
    """What is said of a command in a line, between backticks: often not all of its words."""
    text = _FENCE.sub("", file.read_text())
    for found in re.finditer(r"`((?:pageturn|make|python -m) [^`\n]+)`", text):
        words = _words(found[1])
        if words:
            yield Shown(file, text.count("\n", 0, found.start()) + 1, tuple(words))
