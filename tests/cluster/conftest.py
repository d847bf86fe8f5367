"""Flink, and the stream as a user starts it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.serving.launch import free_ports
from tests.cluster import feed
from tests.cluster.flink import Cluster, Stream, job_server
from tests.conftest import ROOT, missing


@pytest.fixture(scope="session")
def flink_jars() -> Path:
    jars = ROOT / ".cluster" / "flink"
    if not jars.is_dir() or shutil.which("java") is None:
        missing("flink", f"`make cluster` has not put Flink into {jars}, or java is not on the PATH")
    return jars


@pytest.fixture(scope="session")
def flink_job_server(flink_jars: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return job_server(flink_jars, tmp_path_factory.mktemp("job-server"))


@pytest.fixture(scope="session")
def flink(flink_jars: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A job manager and two task managers with one slot each, for all tests, one after another."""
    cluster = Cluster(flink_jars, tmp_path_factory.mktemp("flink"), free_ports(3))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture
def start_stream(flink_job_server: Path, tmp_path: Path) -> Iterator[Callable[..., Stream]]:
    """`pageturn stream --runner flink`; what is left of them, and of their jobs, is ended at the end."""
    file = tmp_path / "config.yaml"
    file.write_text(feed.CONFIG)
    started: list[Stream] = []
    clusters: set[Cluster] = set()

    def start(log_url: str, cluster: Cluster | None = None, parallelism: int = 1) -> Stream:
        options = ["--config", file, "--log", log_url, "--state", tmp_path / "state", "--partitions", 4]
        options += ["--flink-job-server", flink_job_server, "--parallelism", parallelism]
        if cluster is not None:
            options += ["--flink-master", cluster.address]
            clusters.add(cluster)
        started.append(Stream(list(map(str, options)), tmp_path))
        return started[-1]

    yield start
    for stream in started:
        stream.kill()
    for cluster in clusters:
        cluster.cancel_jobs()
