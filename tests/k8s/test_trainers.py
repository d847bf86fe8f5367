"""Several trainers: the overlay that k8s/README.md shows is sound, and each check fails of what it is for."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.k8s import contract, hardening, network, references, schemas, team, values
from tests.k8s.commands import commands
from tests.k8s.manifests import Object, copied, load, named, of_kind
from tests.k8s.mutations import DROP, Mutation, applied, swap

pytestmark = pytest.mark.k8s
ROOT = Path(__file__).resolve().parents[2]
_BLOCK = re.compile(r"^```yaml\n# (k8s/overlays/prod-trainers/\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INIT = "/spec/template/spec/initContainers/0"


@pytest.fixture(scope="module")
def trainers(render: Callable[[Path], str], tmp_path_factory: pytest.TempPathFactory) -> list[Object]:
    place = tmp_path_factory.mktemp("clone")
    for folder in ("k8s", "feature_configs", "serving_config"):
        shutil.copytree(ROOT / folder, place / folder)
    [(name, text)] = _BLOCK.findall((ROOT / "k8s" / "README.md").read_text())
    (place / name).parent.mkdir()
    (place / name).write_text(text)
    return load(render((place / name).parent))


CHECKS = [references, values, hardening, network, contract, team]


@pytest.mark.parametrize("module", CHECKS, ids=lambda m: m.__name__[10:])
def test_it_is_sound(module: Any, trainers: list[Object]) -> None:
    assert list(module.check(trainers)) == []


def test_it_keeps_to_schemas(trainers: list[Object], crds: Path) -> None:
    assert schemas.check_core(trainers) == []
    assert list(schemas.check_custom(trainers, crds)) == []


def test_three_know_of_three(trainers: list[Object]) -> None:
    [trainer] = [c for c in commands(trainers) if c.is_ours and c.args[0] == "train"]
    assert trainer.pod.owner["spec"]["replicas"] == 3
    told = json.loads(trainer.env["TF_CONFIG"])
    assert told["cluster"]["worker"] == [f"trainer-{i}.trainer:2222" for i in range(3)]
    edges = {edge.host for edge in network.edges(trainers) if edge.client.labels == trainer.pod.labels}
    assert {f"trainer-{i}.trainer" for i in range(3)} <= edges


def test_only_the_chief_is_asked_for_metrics(trainers: list[Object]) -> None:
    [monitor] = of_kind(trainers, "PodMonitor")
    [rule] = monitor["spec"]["podMetricsEndpoints"][0]["relabelings"]
    assert rule["action"] == "drop"
    dropped = [bool(re.fullmatch(rule["regex"], f"trainer;{i}")) for i in (0, 1, 2, 10)]
    assert dropped == [False, True, True, True]
    assert not any(re.fullmatch(rule["regex"], each) for each in ("stream;1", "agent;"))


def test_without_the_component_nobody_is_in_a_team(rendered: Callable[[str], list[Object]]) -> None:
    objects = rendered("prod")
    assert list(team.check(objects)) == []
    assert "TF_CONFIG" not in str(objects)


SET, WORKERS = "StatefulSet/trainer", ("ConfigMap/trainers*", "/data/WORKERS")
CONFIG = ("ConfigMap/feature-config*", "/data/feature_config.yaml")


def by_tables(config: str) -> str:
    """With a learner that cannot learn together."""
    by_a_table = "algorithm: {kind: q_learning, gamma: 0.9, cells: [{feature: hour}]}\n"
    return re.sub(r"^algorithm:\n(  .*\n|\n)*", by_a_table, config, flags=re.MULTILINE)


MISTAKES = [
    (team, Mutation("pod 0: expected to be 0 of 4", SET, "/spec/replicas", 4)),
    (team, Mutation("pod 2: TF_CONFIG: expected a task", *WORKERS, swap(', "trainer-2.trainer:2222"', ""))),
    (team, Mutation("expected trainer-1.trainer at", *WORKERS, swap("trainer-1.trainer", "trainer-3.trainer"))),
    (team, Mutation("expected trainer-0.trainer at", *WORKERS, swap("0.trainer:2222", "0.trainer:2223"))),
    (team, Mutation("expected TF_CONFIG in every", SET, f"{_INIT}/env", lambda env: env[:-1])),
    (team, Mutation("first would wait for the second", SET, "/spec/podManagementPolicy", DROP)),
    (team, Mutation("replaced one by one", SET, "/spec/updateStrategy", DROP)),
    (team, Mutation("that are not ready yet", "Service/trainer", "/spec/publishNotReadyAddresses", DROP)),
    (team, Mutation("found q_learning: run one alone", *CONFIG, by_tables)),
    (network, Mutation("no network policy lets it out", "NetworkPolicy/between-trainers", "/spec/egress", DROP)),
    (network, Mutation("no network policy lets it in", "NetworkPolicy/between-trainers", "/spec/ingress", DROP)),
    (network, Mutation("there is no such service", *WORKERS, swap("trainer-1.trainer", "trainer-1.workers"))),
]


@pytest.mark.parametrize(("module", "mutation"), MISTAKES, ids=lambda x: x.says if isinstance(x, Mutation) else "")
def test_a_mistake_is_found(module: Any, mutation: Mutation, trainers: list[Object]) -> None:
    changed, _ = applied(mutation, copied(trainers))
    assert any(re.search(mutation.says, problem) for problem in module.check(changed)), list(module.check(changed))


def test_the_place_is_a_label_that_kubernetes_gives(trainers: list[Object]) -> None:
    """Of StatefulSets, from 1.28 on; the oldest that we run on has it."""
    variables = named(trainers, "StatefulSet", "trainer")["spec"]["template"]["spec"]["containers"][0]["env"]
    [place] = [each["valueFrom"] for each in variables if each["name"] == "POD_INDEX"]
    assert place == {"fieldRef": {"fieldPath": "metadata.labels['apps.kubernetes.io/pod-index']"}}
    assert min(tuple(map(int, version.split("."))) for version in schemas.VERSIONS) >= (1, 28)
