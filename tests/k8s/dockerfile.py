"""images/Dockerfile, read as far as tests need it: stages, and the instructions of each."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = ROOT / "images" / "Dockerfile"


class Stage(NamedTuple):
    name: str
    base: str  # another stage, or an image with its tag
    instructions: tuple[tuple[str, str], ...]

    def of(self, instruction: str) -> list[str]:
        return [text for name, text in self.instructions if name == instruction]


def stages() -> dict[str, Stage]:
    found: dict[str, Stage] = {}
    arguments: dict[str, str] = {}
    name, base, body = "", "", []
    for instruction, text in [*_instructions(), ("FROM", "- AS -")]:
        if instruction == "ARG" and not name:
            key, _, value = text.partition("=")
            arguments[key] = value
        elif instruction == "FROM":
            if name:
                found[name] = Stage(name, base, tuple(body))
            source, _, name = text.partition(" AS ")
            base, body = re.sub(r"\$\{(\w+)\}", lambda m: arguments[m[1]], source), []
        else:
            body.append((instruction, text))
    return found


def _instructions() -> list[tuple[str, str]]:
    lines = [line for line in DOCKERFILE.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    pairs = [line.strip().partition(" ") for line in joined.splitlines() if line.strip()]
    return [(instruction.upper(), text.strip()) for instruction, _, text in pairs]


def lineage(stage: Stage) -> list[Stage]:
    """The stage and those that it is made from, in this file."""
    there = stages()
    return [stage, *(lineage(there[stage.base]) if stage.base in there else ())]


class Copy(NamedTuple):
    stage: str | None  # or image that it is from; None: the build's context
    sources: tuple[str, ...]


def copies(stage: Stage) -> list[Copy]:
    found = []
    for text in stage.of("COPY"):
        words = shlex.split(text)
        options = dict(word[2:].split("=", 1) for word in words if word.startswith("--"))
        paths = [word for word in words if not word.startswith("--")]
        found.append(Copy(options.get("from"), tuple(paths[:-1])))
    return found
