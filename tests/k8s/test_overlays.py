"""Every overlay is what it has to be, by every check; test_mutations shows that each check fails of what it is for."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.k8s import alerts, contract, hardening, network, references, schemas, values
from tests.k8s.conftest import OVERLAYS
from tests.k8s.manifests import Object, load, of_kind

pytestmark = pytest.mark.k8s
ROOT = Path(__file__).resolve().parents[2]
Rendered = Callable[[str], list[Object]]
# What checkov would have otherwise, and why it is as it is.
SKIPPED = {
    "CKV_DOCKER_2": "Kubernetes has probes, and does not look at HEALTHCHECK",
    "CKV_DOCKER_4": "ADD fetches the job server, whose sum is checked",
    "CKV_K8S_15": "images are pinned: pulling them always would make a registry's outage ours",
    "CKV_K8S_35": "of our programs, passwords are taken from variables; certificates are files",
    "CKV_K8S_43": "digests are known once images are built: a release's overlay has them",
}


def test_no_overlay_is_left_out() -> None:
    assert {path.parent.name for path in (ROOT / "k8s" / "overlays").glob("*/kustomization.yaml")} == set(OVERLAYS)


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("module", [references, values, hardening, network, contract], ids=lambda m: m.__name__[10:])
def test_an_overlay_is_sound(module: Any, overlay: str, rendered: Rendered) -> None:
    assert list(module.check(rendered(overlay))) == []


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_keeps_to_kubernetes_schemas(overlay: str, rendered: Rendered, k8s_tools: Path) -> None:
    assert schemas.check_core(rendered(overlay)) == []


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_keeps_to_operators_schemas(overlay: str, rendered: Rendered, crds: Path) -> None:
    assert list(schemas.check_custom(rendered(overlay), crds)) == []


@pytest.mark.timeout(900)
@pytest.mark.parametrize("overlay", ["prod-flink"])
def test_checkov_has_nothing_to_say(overlay: str, rendered: Rendered, k8s_tools: Path, tmp_path: Path) -> None:
    file = tmp_path / "manifests.yaml"
    file.write_text(yaml.safe_dump_all(rendered(overlay)))
    assert checkov(k8s_tools, file, "kubernetes") == []


def checkov(tools: Path, file: Path, framework: str) -> list[str]:
    command = [str(tools / "venv" / "bin" / "checkov"), "-f", str(file), "--framework", framework]
    options = ["--compact", "--quiet", "--skip-download", "-o", "json", "--skip-check", ",".join(SKIPPED)]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False, cwd=file.parent)
    found = json.loads(done.stdout)
    if found.get("passed") == 0:  # the form of an answer without results
        pytest.fail(f"checkov looked at nothing: {done.stdout}")
    assert found["summary"]["passed"] > 20
    assert not found["summary"]["parsing_errors"]
    return [f"{x['check_id']} {x['check_name']}: {x['resource']}" for x in found["results"]["failed_checks"]]


# What kustomize does not say ---------------------------------------------------------------------------------------


def kustomizations() -> Iterator[tuple[Path, dict[str, Any]]]:
    for path in sorted((ROOT / "k8s").rglob("kustomization.yaml")):
        [found] = load(path.read_text())
        yield path, found


def test_every_patch_has_something_to_patch(rendered: Rendered) -> None:
    """A patch whose target matches nothing is passed over without a word."""
    there = {(each["kind"], each["metadata"]["name"]) for overlay in OVERLAYS for each in rendered(overlay)}
    for path, kustomization in kustomizations():
        for patch in kustomization.get("patches") or ():
            target = patch.get("target")
            if target is not None:
                kind, name = target["kind"], target.get("name", ".*")
                found = [n for k, n in there if k == kind and re.fullmatch(name, n)]
                assert found, f"{path}: no {kind} {name}"
                assert {"kind", "name"} >= set(target), f"{path}: {target}"


def test_every_image_is_in_the_table_and_every_line_of_it_is_used(rendered: Rendered) -> None:
    table: dict[str, str] = {}
    for _, kustomization in kustomizations():
        table |= {image["name"]: image["newTag"] for image in kustomization.get("images") or ()}
    used = set()
    for overlay in OVERLAYS:
        text = yaml.safe_dump_all(rendered(overlay))
        used |= set(re.findall(r"\bimage: (\S+)", text))
    assert used == {f"{name}:{tag}" for name, tag in table.items()}


def test_alerts_are_those_that_promtool_checks_and_of_jobs_that_there_are(rendered: Rendered) -> None:
    assert alerts.WRAPPED.read_text() == alerts.wrapped(), "run `make alerts`"
    [monitor] = of_kind(rendered("prod"), "PodMonitor")
    assert monitor["spec"]["jobLabel"] == "app.kubernetes.io/name"
    jobs = set(re.findall(r'job="([^"]+)"', alerts.wrapped()))
    assert jobs
    assert jobs <= set(monitor["spec"]["selector"]["matchExpressions"][0]["values"])


def test_a_changed_config_rolls_the_pods(rendered: Rendered) -> None:
    """By the hash in the name of every ConfigMap; TF-Serving's models.config is on a volume, and read again."""
    maps = [each["metadata"]["name"] for each in of_kind(rendered("prod"), "ConfigMap")]
    assert maps
    assert all(re.search(r"-[a-z0-9]{10}$", name) for name in maps)


def test_config_maps_are_of_the_files_that_the_code_uses(rendered: Rendered) -> None:
    data = {name: text for each in of_kind(rendered("prod"), "ConfigMap") for name, text in each["data"].items()}
    assert data["feature_config.yaml"] == (ROOT / "feature_configs" / "guess_you_like.yaml").read_text()
    for name in ("monitoring.config", "batching.config", "platform.config"):
        assert data[name] == (ROOT / "serving_config" / name).read_text()
