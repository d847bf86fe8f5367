"""A trainer that is killed again and again ends with the same bits as one that was left alone.

Run as a module this file is the trainer process that gets killed: at a given record, or at a given system call of
writing a checkpoint.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from pipeline.config.schema import (
    ActionDimension,
    Bucket,
    Buckets,
    Ddpg,
    Dense,
    FeatureConfig,
    GraphTable,
    IdFeature,
    PayPlusAPhi,
    Policy,
    Reward,
    ZScore,
)
from pipeline.config.schema import DynamicVocabulary as Dynamic
from pipeline.events import encode
from pipeline.logs.files import FileLog
from pipeline.logs.log import TRANSITIONS, Entry
from tests.e2e.transitions import transition

ROOT = Path(__file__).resolve().parents[2]
N = 500
pytestmark = pytest.mark.timeout(900)  # a dozen trainers, each with TensorFlow to load
CONFIG = FeatureConfig(
    schema_version=1,
    name="feed",
    kv_prefix="t",
    features=(Dense("x", "user.x", zscore=ZScore(min_count=5)), IdFeature("city", "user.city", "cities")),
    embeddings={"cities": GraphTable(2, Dynamic(12, min_count=2, half_life=40, remember=True))},
    fusion=PayPlusAPhi(1.0),
    action=(ActionDimension("a", baseline=1.0, range=(0.0, 2.0)),),
    reward=Reward({"click": 1.0}),
    algorithm=Ddpg(0.5, tower=(8,), head=(8,), batch_size=16, replay=150, updates_per_transition=0.13, actor_after=60),
    policies=(Policy("base", "baseline"), Policy("p1", "learned"), Policy("p2", "learned")),
    buckets=Buckets("salt", (Bucket("all", "base", (0, 99)),)),
)


# The process that gets killed --------------------------------------------------------------------------------------


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def countdown(calls: int) -> Callable[[], None]:
    """Kills this process at its `calls`-th call."""
    left = [calls]

    def tick() -> None:
        left[0] -= 1
        if left[0] == 0:
            die()

    return tick


def before(owner: object, name: str, tick: Callable[[], None]) -> None:
    original = getattr(owner, name)

    def wrapped(*args: object, **kwargs: object) -> object:
        tick()
        return original(*args, **kwargs)

    setattr(owner, name, wrapped)


def main(log_url: str, work_dir: str, poll: str, where: str = "", calls: str = "0") -> None:
    from pipeline.learning.checkpoint import Checkpoints
    from pipeline.learning.trainer import Pace, train
    from pipeline.learning.training import Training

    places = {
        "record": (Training, "ingest"),
        "update": (Training, "_round"),
        "fsync": (os, "fsync"),
        "rename": (Path, "rename"),  # a checkpoint's into its place
        "write": (Checkpoints, "write"),  # of a checkpoint, when what goes before it is written
        "replace": (os, "replace"),  # an old one's out of the way
    }
    if where:
        before(*places[where], countdown(int(calls)))
    train(CONFIG, log_url, Path(work_dir), until_idle=True, pace=Pace(poll=int(poll), checkpoint_every=100))


# The test ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def log_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Closed, three partitions, with a redelivery and something unreadable in the middle."""
    folder = tmp_path_factory.mktemp("log")
    log = FileLog(folder)
    log.create(TRANSITIONS, 3)
    entries = [(f"s{i // 4}", encode(transition(i))) for i in (*range(300), *range(280, 290), *range(300, N))]
    entries.insert(200, ("odd", b"{"))
    log.append(TRANSITIONS, [Entry(key, payload, 1_000 + at) for at, (key, payload) in enumerate(entries)])
    log.close()
    return f"file://{folder}"


def run(log_url: str, work_dir: Path, *arguments: object) -> int:
    command = [sys.executable, "-m", "tests.e2e.test_trainer_kill", log_url, str(work_dir), *map(str, arguments)]
    bytecode = work_dir.parent / "bytecode"  # TensorFlow is compiled once, not by each of these processes
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(bytecode)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode


def outcome(work_dir: Path) -> tuple[str, dict]:
    """sha256 of every variable and optimiser slot, and all the rest that is checkpointed."""
    import tensorflow as tf

    newest = max((work_dir / "checkpoints").glob("0*"))
    reader, digest = tf.train.load_checkpoint(str(newest / "model")), hashlib.sha256()
    names = sorted(n for n in reader.get_variable_to_shape_map() if n.endswith("VARIABLE_VALUE"))
    assert sum("adam/first" in name for name in names) > 10
    for name in names:
        digest.update(name.encode() + reader.get_tensor(name).tobytes())
    return digest.hexdigest(), msgspec.msgpack.decode((newest / "trainer.msgpack").read_bytes(), strict=False)


@pytest.fixture(scope="module")
def undisturbed(log_url: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict]:
    work_dir = tmp_path_factory.mktemp("undisturbed")
    assert run(log_url, work_dir, 256) == 0
    weights, rest = outcome(work_dir)
    assert rest["progress"]["ingested"] == N
    assert rest["progress"]["duplicates"] == 10
    assert rest["progress"]["refused"] == {"malformed": 1}
    assert rest["progress"]["updates"] > 50
    assert rest["shelf"]
    return weights, rest


KILLS = [
    [("record", random.Random(1).randrange(90, 200)), ("update", 2)],
    [("fsync", 3), ("rename", 1), ("fsync", 12)],  # within a checkpoint, before it is there, just after
    [
        ("write", 3),
        ("record", 240),
        ("replace", 1),
    ],  # between rows that were put away and their checkpoint; while an old checkpoint is removed
]


@pytest.mark.parametrize("kills", KILLS, ids=["between", "within", "late"])
def test_killed_and_resumed_is_as_if_nothing_had_happened(
    kills: list[tuple[str, int]], log_url: str, undisturbed: tuple[str, dict], tmp_path: Path
) -> None:
    for poll, (where, calls) in zip((7, 64, 33), kills, strict=False):
        assert run(log_url, tmp_path, poll, where, calls) == -signal.SIGKILL, f"not killed at {where} {calls}"
    assert run(log_url, tmp_path, 20) == 0
    weights, rest = outcome(tmp_path)
    assert rest == undisturbed[1]
    assert weights == undisturbed[0]


if __name__ == "__main__":
    main(*sys.argv[1:])
