"""The folder of a run: where one loop on one machine keeps everything, and what is known about it.

<folder>/run.json       what it is: see `RunRecord`
<folder>/config.yaml    its feature config
<folder>/log, store.db or redis/, staging, models, stream, trainer, archive    as the commands of the parts name them
<folder>/logs/          what each part said; parts.jsonl: when each part started and ended
<folder>/traffic/       what the simulated users did and saw, see `pageturn.traffic_log`
<folder>/replay/        the replay of a real log: a run of its own
<folder>/report/        index.html
"""

from __future__ import annotations

import time
from pathlib import Path

import msgspec
from msgspec import Struct

from pipeline import durable
from pipeline.config.editing import with_seed
from pipeline.config.reading import load_config
from pipeline.config.schema import FeatureConfig
from pipeline.errors import PageturnError

RUNS = Path("runs")
RECORD = "run.json"
_CONFIG = "config.yaml"


class RunError(PageturnError):
    """A folder is not what a command needs: not a run, or one that is in use; says which."""


class RunRecord(Struct, frozen=True):
    name: str
    created_ms: int
    seed: int  # of the learner, and of simulated users unless they are told otherwise
    redis: bool  # or SQLite
    redis_port: int = 0  # the ports of this start of the loop; 0 before the first
    server_port: int = 0
    agent_port: int = 0


class Run:
    """A folder and its record. Reads; `save` writes the record."""

    def __init__(self, folder: Path, record: RunRecord) -> None:
        self.folder, self.record = folder.resolve(), record
        self.config_path = self.folder / _CONFIG
        self.log_url = f"file://{self.folder}/log"
        self.staging, self.models = self.folder / "staging", self.folder / "models"
        self.stream, self.trainer = self.folder / "stream", self.folder / "trainer"
        self.archive, self.replay = self.folder / "archive", self.folder / "replay"
        self.logs, self.traffic = self.folder / "logs", self.folder / "traffic"
        self.redis, self.report = self.folder / "redis", self.folder / "report"
        self.journal = self.logs / "parts.jsonl"

    @property
    def store_url(self) -> str:
        if self.record.redis:
            return f"redis://127.0.0.1:{self.record.redis_port}/0"
        return f"sqlite:///{self.folder}/store.db"

    @property
    def server(self) -> str:
        return f"127.0.0.1:{self.record.server_port}"

    @property
    def agent(self) -> str:
        return f"127.0.0.1:{self.record.agent_port}"

    @property
    def holder(self) -> int | None:
        """The process that has the loop up; None where it is down."""
        return durable.holder(self.folder)

    def config(self) -> FeatureConfig:
        return load_config(self.config_path)

    def save(self, **changes: object) -> None:
        self.record = msgspec.structs.replace(self.record, **changes)
        durable.write(self.folder / RECORD, msgspec.json.format(msgspec.json.encode(self.record)))


def new_run(folder: Path | None, config_path: Path, *, seed: int | None = None, redis: bool = False) -> Run:
    """A run in a new or empty folder; it starts from nothing, for what an earlier one left would be counted with it.

    Without a folder: runs/<config>-<time>; without a seed that of the config. Raises: RunError, ConfigError.
    """
    config = load_config(config_path)
    folder = folder or RUNS / f"{config.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    _make(folder)
    seed = config.algorithm.seed if seed is None else seed
    (folder / _CONFIG).write_text(with_seed(config_path.read_text(), seed))
    run = Run(folder, RunRecord(folder.name, time.time_ns() // 1_000_000, seed, redis))
    run.save()
    return run


def open_run(folder: Path | None) -> Run:
    """The run in the folder; without one the newest under runs/. Raises RunError."""
    folder = folder or _newest()
    try:
        record = msgspec.json.decode((folder / RECORD).read_bytes(), type=RunRecord)
    except (OSError, msgspec.MsgspecError) as error:
        message = f"{folder}: expected the folder of a run, with a {RECORD}: {error}"
        raise RunError(message) from error
    return Run(folder, record)


def _newest() -> Path:
    found = [path.parent for path in RUNS.glob(f"*/{RECORD}")]
    if not found:
        message = f"no run in {RUNS.resolve()}; `pageturn demo` and `pageturn up` make one, --run names another"
        raise RunError(message)
    return max(found, key=lambda folder: (folder / RECORD).stat().st_mtime)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        taken = any(folder.iterdir())
    except OSError as error:
        message = f"{folder}: cannot be used for a run: {error.strerror}"
        raise RunError(message) from error
    if taken:
        message = f"{folder}: expected a new or an empty folder for the run, found one with something in it"
        raise RunError(message)
