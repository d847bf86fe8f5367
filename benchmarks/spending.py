"""Where the CPU-seconds of a job on Flink go: by process and kind of thread, and in its Python by layer of the code."""

from __future__ import annotations

import os
import pstats
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

WORKER = "Python worker"
_TICKS = os.sysconf("SC_CLK_TCK")
_THREADS = (  # by what Linux knows of a Java thread's name: its first 15 letters
    ("Java: compiling", ("C1 ", "C2 ")),
    ("Java: collecting garbage", ("VM Thread", "GC ", "G1 ")),
    ("Java: talking to Python", ("grpc-", "data-", "beam-")),
    ("Java: between Flink's processes", ("flink-", "pekko", "Flink Netty", "jobmanager", "taskexecutor", "Checkpoint")),
)
_TASKS = "Java: tasks and the rest"
_LAYERS = (  # of a Python source file
    ("the stream's logic", ("/pipeline/transitions/", "/pipeline/records.py")),
    ("JSON and log files", ("/pipeline/events.py", "/pipeline/logs/", "/msgspec/", "/json/")),
    ("our steps of the graph", ("/pipeline/", "/benchmarks/")),
    ("pickling", ("/pickle.py", "/dill/", "/cloudpickle/")),
    ("Beam: state and timers", ("/worker/bundle_processor", "/worker/statecache", "/transforms/userstate")),
    ("Beam: operations, coders, channels", ("/apache_beam/", "/grpc/", "apache_beam.")),
)
_OTHER = "other"


def seconds(pids: Sequence[int]) -> Counter[str]:
    """CPU-seconds so far, by kind. What threads took that have ended is in the rest."""
    taken: Counter[str] = Counter()
    for pid in pids:
        in_all = _ticks(Path(f"/proc/{pid}/stat"))
        if not Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].endswith(b"java"):
            taken[WORKER] += in_all
            continue
        threads = Counter[str]()
        for folder in Path(f"/proc/{pid}/task").iterdir():
            with suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
                threads[_kind((folder / "comm").read_text())] += _ticks(folder / "stat")
        threads[_TASKS] += in_all - threads.total()
        taken.update(threads)
    return Counter({kind: ticks / _TICKS for kind, ticks in taken.items()})


def _ticks(stat: Path) -> int:
    after_name = stat.read_text().rpartition(")")[2].split()
    return int(after_name[11]) + int(after_name[12])  # proc(5): utime and stime, fields 14 and 15


def _kind(thread: str) -> str:
    return next((kind for kind, names in _THREADS if thread.startswith(names)), _TASKS)


def layers(profiles: Path) -> Counter[str]:
    """Seconds by layer, of what Beam's worker left in that folder: a profile of each bundle.

    A function that is not written in Python belongs to the layer of who called it.
    """
    spent: Counter[str] = Counter()
    for file in filter(Path.is_file, profiles.rglob("*")):
        for (name, _, _), (_, _, own_s, _, callers) in pstats.Stats(str(file)).stats.items():  # type: ignore[attr-defined]
            if name != "~" or not callers:
                spent[_layer(name)] += own_s
                continue
            for (caller, _, _), (_, _, share_s, _) in callers.items():
                spent[_layer(caller)] += share_s
    return spent


def _layer(file: str) -> str:
    return next((layer for layer, parts in _LAYERS if any(part in file for part in parts)), _OTHER)


def shares(spent: Counter[str]) -> str:
    """A line for each, the largest first."""
    return "\n".join(f"  {100 * own / spent.total():5.1f} %  {what}" for what, own in spent.most_common())
