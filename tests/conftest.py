"""What every test may use: the real parts that a test needs, and the rule that in CI none of them may be missing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.broker import Broker

ROOT = Path(__file__).resolve().parents[1]


def missing(part: str, why: str) -> None:
    """Skip visibly, or fail where `PAGETURN_REQUIRE` (a comma-separated list) says that the part must be there."""
    required = {name.strip() for name in os.environ.get("PAGETURN_REQUIRE", "").split(",")}
    if part in required:
        pytest.fail(f"PAGETURN_REQUIRE names {part!r}, but {why}")
    pytest.skip(why)


@pytest.fixture(scope="session")
def redis_binary() -> str:
    binary = shutil.which("redis-server")
    if binary is None:
        missing("redis", "redis-server is not on the PATH")
    return str(binary)


@pytest.fixture(scope="session")
def ebnerd_dir() -> Path:
    folder = ROOT.parent / "shared" / "data" / "ebnerd"
    if not folder.is_dir():
        missing("ebnerd", f"the EB-NeRD excerpt is not at {folder}")
    return folder


@pytest.fixture(scope="session")
def kafka_jars() -> Path:
    jars = ROOT / ".cluster" / "kafka"
    if not jars.is_dir() or shutil.which("java") is None:
        missing("kafka", f"`make cluster` has not put a Kafka broker into {jars}, or java is not on the PATH")
    return jars


@pytest.fixture(scope="session")
def kafka_broker(kafka_jars: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """One for all tests that leave it running; each uses topics of its own."""
    broker = Broker(kafka_jars, tmp_path_factory.mktemp("kafka"))
    try:
        broker.start()
        yield broker
    finally:
        broker.kill()
