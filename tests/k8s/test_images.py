"""The images, as far as they can be looked at without a container engine: the Dockerfile, and what it installs."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pageturn.__main__ import main
from pipeline.streaming.flink.options import FLINK_VERSION
from tests.k8s.commands import commands
from tests.k8s.conftest import OVERLAYS
from tests.k8s.dockerfile import DOCKERFILE, ROOT, Stage, copies, lineage, stages
from tests.k8s.manifests import Object, of_kind
from tests.k8s.test_overlays import checkov

pytestmark = pytest.mark.k8s
Rendered = Callable[[str], list[Object]]
UV = shutil.which("uv", path=ROOT / ".venv" / "bin")
# The extras that an image installs, what it has to be able to load, and what it must not hold for that.
INSTALLED = {
    "agent": ("", "pipeline.agent.service, model_export.controller, pageturn.monitor, pipeline.logs.kafka.kafka_log"),
    "stream": (
        "stream,archive",
        "pipeline.streaming.run, pipeline.streaming.archiver, pipeline.streaming.flink.worker, pageturn.embeddings, "
        "pipeline.stores.redis_store",
    ),
    "trainer": ("trainer", "pipeline.learning.trainer, model_export.export, pipeline.logs.kafka.kafka_log"),
}
ABSENT = {
    "agent": {"tensorflow", "apache-beam", "pyarrow", "plotly", "pytest", "pip", "setuptools"},
    "stream": {"tensorflow", "plotly", "pytest", "pip"},
    "trainer": {"apache-beam", "plotly", "pytest", "pip"},
}
# What each command of ours imports when it runs, by the image that has it.
RUNS = {
    "agent": {"agent", "control", "monitor"},
    "stream": {"stream", "archive", "embeddings"},
    "trainer": {"train", "bootstrap"},
    "stream-flink": {"stream"},
}


def final() -> dict[str, Stage]:
    """What images are made of: no stage that only builds, none that others stand on alone."""
    return {name: s for name, s in stages().items() if not name.endswith("build") and name != "runtime"}


def test_what_is_copied_is_there_and_reaches_the_build() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignored
    kept = {line[1:] for line in ignored if line.startswith("!")}
    used = set()
    for stage in stages().values():
        for copy in copies(stage):
            if copy.stage is None:
                used |= set(copy.sources)
                assert all((ROOT / source).exists() for source in copy.sources), copy
            elif "/" not in copy.stage and ":" not in copy.stage:
                assert copy.stage in stages(), copy
    assert used == kept


def test_bases_are_pinned() -> None:
    images = {s.base for s in stages().values() if s.base not in stages()}
    images |= {c.stage for s in stages().values() for c in copies(s) if c.stage and ":" in c.stage}
    assert len(images) == 4
    for image in images:
        assert re.fullmatch(r"[a-z/-]+:[0-9]+\.[0-9]+\.[0-9]+[a-z0-9._-]*", image), image


@pytest.mark.parametrize("stage", final().values(), ids=lambda stage: stage.name)
def test_an_image_runs_as_somebody_and_cannot_build(stage: Stage) -> None:
    line = lineage(stage)
    user = next(text for s in line for text in reversed(s.of("USER")))
    assert re.fullmatch(r"[1-9][0-9]+", user), user
    for each in line:
        for command in each.of("RUN"):
            assert not re.search(r"\b(gcc|g\+\+|make|git|curl|wget|uv|build-essential)\b", command), command
            assert "pip" not in command or "pip uninstall" in command
    if any(s.base.startswith("python:") for s in line):
        assert any("uninstall -q -y pip setuptools wheel" in c for s in line for c in s.of("RUN"))


@pytest.mark.parametrize("stage", final().values(), ids=lambda stage: stage.name)
def test_an_entry_point_is_a_program_that_there_is(stage: Stage) -> None:
    if stage.name == "flink":
        return  # Flink's own
    entry = next(json.loads(text) for s in lineage(stage) for text in s.of("ENTRYPOINT"))
    if stage.name == "tf-serving":
        assert entry == ["/usr/bin/tensorflow_model_server"]
        return
    assert entry == ["pageturn"]
    default = next(json.loads(text) for s in lineage(stage) for text in s.of("CMD"))
    assert default[0] in main.commands
    assert default[0] in RUNS[stage.name]


def test_manifests_and_targets_know_the_same_images(rendered: Rendered) -> None:
    used = {c.image for overlay in OVERLAYS for c in commands(rendered(overlay))}
    assert {name.removeprefix("pageturn/") for name in used if name.startswith("pageturn/")} == set(final())


def test_manifests_run_in_an_image_only_what_it_is_for(rendered: Rendered) -> None:
    for overlay in OVERLAYS:
        for command in commands(rendered(overlay)):
            if command.is_ours:
                assert command.args[0] in RUNS[command.image.removeprefix("pageturn/")], command.where


def test_flink_is_one_version_everywhere(rendered: Rendered) -> None:
    text = DOCKERFILE.read_text()
    assert re.search(rf"^ARG FLINK={re.escape(FLINK_VERSION)}\.", text, re.MULTILINE)
    assert f"/beam-runners-flink-{FLINK_VERSION}-job-server/" in text
    [flink] = of_kind(rendered("prod-flink"), "FlinkDeployment")
    assert flink["spec"]["flinkVersion"] == f"v{FLINK_VERSION.replace('.', '_')}"
    assert flink["spec"]["image"].rpartition(":")[2].startswith(f"{FLINK_VERSION}-")
    [beam] = re.findall(r"^apache-beam==([0-9.]+) ", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert re.search(rf"^ARG BEAM={re.escape(beam)}$", text, re.MULTILINE)


def test_what_the_flink_job_names_is_in_the_images(rendered: Rendered) -> None:
    [driver] = [c for c in commands(rendered("prod-flink")) if c.image == "pageturn/stream-flink"]
    words = dict(argument.split("=", 1) for argument in driver.args if "=" in argument)
    text = DOCKERFILE.read_text()
    assert f"/job-server.jar {words['--flink-job-server']}" in text
    worker = Path(words["--flink-worker"])
    assert f"COPY --from=flink-build {worker.parents[1]} {worker.parents[1]}" in text
    assert f'\n{worker.name} = "' in (ROOT / "pyproject.toml").read_text()


def test_a_dockerfile_installs_what_these_tests_install() -> None:
    text = DOCKERFILE.read_text()
    for name, (extras, _) in INSTALLED.items():
        wanted = f"images/install.sh uv /opt/pageturn/bin/python {extras or chr(34) * 2}\n"
        [stage] = [s for s in stages().values() if s.name == f"{name}-build"]
        assert any(f"{run}\n".endswith(wanted) for run in stage.of("RUN")), wanted
    assert "requirements.lock" in text


@pytest.mark.timeout(900)
def test_checkov_has_nothing_to_say(k8s_tools: Path, tmp_path: Path) -> None:
    file = tmp_path / "Dockerfile"
    shutil.copy(DOCKERFILE, file)
    assert checkov(k8s_tools, file, "dockerfile") == []


# Installing -----------------------------------------------------------------------------------------------------------


def environment(folder: Path) -> Path:
    assert UV is not None
    subprocess.run([UV, "venv", "-q", str(folder)], check=True)
    return folder / "bin"


def said(command: list[Path | str], folder: Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.installs
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("image", INSTALLED)
def test_an_image_has_what_its_commands_need_and_no_more(image: str, tmp_path: Path) -> None:
    extras, modules = INSTALLED[image]
    programs = environment(tmp_path / "venv")
    subprocess.run([str(ROOT / "images" / "install.sh"), str(UV), str(programs / "python"), extras], check=True)
    listed = subprocess.run([str(UV), "pip", "list", "-q", "--python", str(programs / "python"), "--format", "json"],
                            capture_output=True, text=True, check=True)  # fmt: skip
    assert ABSENT[image].isdisjoint({package["name"] for package in json.loads(listed.stdout)})
    for command in RUNS[image]:
        assert said([programs / "pageturn", command, "--help"], tmp_path).startswith(f"Usage: pageturn {command} ")
    where = said([programs / "python", "-c", f"import {modules}, pipeline; print(pipeline.__file__)"], tmp_path)
    assert where.startswith(str(tmp_path))  # not the checkout


@pytest.mark.installs
def test_what_has_another_hash_than_the_lock_is_not_installed(tmp_path: Path) -> None:
    sources = tmp_path / "sources"
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE", "pageturn", "pipeline", "model_export", "images"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        (sources / name).parent.mkdir(exist_ok=True)
        copy(ROOT / name, sources / name)
    lock = (ROOT / "requirements.lock").read_text()
    click = re.search(r"^click==.*?(?=^\S)", lock, re.MULTILINE | re.DOTALL)
    assert click
    wrong = re.sub(r"sha256:[0-9a-f]{8}", "sha256:00000000", click[0])
    (sources / "requirements.lock").write_text(lock.replace(click[0], wrong))
    programs = environment(tmp_path / "venv")
    command = [str(sources / "images" / "install.sh"), str(UV), str(programs / "python"), ""]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "Hash mismatch for `click" in done.stderr
