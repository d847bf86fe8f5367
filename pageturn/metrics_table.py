"""The catalogue of metrics as the tables of docs/metrics.md.

python -m pageturn.metrics_table docs/metrics.md    # writes them anew, between their marks
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from pipeline.monitoring.catalogue import PROCESSES, Process

_BEGIN, _END = "<!-- catalogue: begin -->", "<!-- catalogue: end -->"


def markdown() -> str:
    return "\n\n".join(_of(process) for process in PROCESSES)


def _of(process: Process) -> str:
    rows = [f"### `pageturn {_COMMANDS[process.name]}`", "", "| metric | kind | labels | what |", "|---|---|---|---|"]
    for family in process.families:
        labels = ", ".join(f"`{label}`" for label in family.labels)
        rows.append(f"| `{process.full_name(family)}` | {family.kind.value} | {labels} | {family.help} |")
    return "\n".join(rows)


_COMMANDS = {"agent": "agent", "stream": "stream", "trainer": "train", "controller": "control", "monitor": "monitor"}


def main(path: Path) -> None:
    text = re.sub(f"{_BEGIN}.*{_END}", lambda _: f"{_BEGIN}\n{markdown()}\n{_END}", path.read_text(), flags=re.S)
    path.write_text(text)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
