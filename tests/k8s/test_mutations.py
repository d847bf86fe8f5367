"""Every check fails of what it is for: the manifests, with one mistake at a time."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.k8s import contract, hardening, network, references, schemas, values
from tests.k8s.manifests import Object
from tests.k8s.mutations import CONTRACT, CUSTOM, HARDENING, NETWORK, REFERENCES, SCHEMA, VALUES, Mutation, applied

pytestmark = pytest.mark.k8s
Rendered = Callable[[str], list[Object]]
KINDS = {
    references: REFERENCES,
    values: VALUES,
    hardening: HARDENING,
    network: NETWORK,
    contract: CONTRACT,
}


def name(mutation: Mutation) -> str:
    return f"{mutation.target}: {mutation.says}"


def assert_said(mutation: Mutation, found: list[str]) -> None:
    assert any(re.search(mutation.says, problem) for problem in found), found


def test_there_are_enough_of_them() -> None:
    mutations = [*SCHEMA, *CUSTOM, *(m for kind in KINDS.values() for m in kind)]
    assert len(set(map(str, mutations))) == len(mutations) >= 100


ALL = [pytest.param(module, m, id=name(m)) for module, mutations in KINDS.items() for m in mutations]


@pytest.mark.parametrize(("module", "mutation"), ALL)
def test_a_mistake_is_found(module: object, mutation: Mutation, rendered: Rendered) -> None:
    changed, _ = applied(mutation, rendered(mutation.overlay))
    assert_said(mutation, list(module.check(changed)))  # type: ignore[attr-defined]


@pytest.mark.parametrize("mutation", SCHEMA, ids=name)
def test_kubernetes_schemas_find_a_mistake(mutation: Mutation, rendered: Rendered, k8s_tools: Path) -> None:
    _, target = applied(mutation, rendered(mutation.overlay))
    assert_said(mutation, schemas.check_core([target], ["1.30"]))


@pytest.mark.parametrize("mutation", CUSTOM, ids=name)
def test_operators_schemas_find_a_mistake(mutation: Mutation, rendered: Rendered, crds: Path) -> None:
    _, target = applied(mutation, rendered(mutation.overlay))
    assert_said(mutation, list(schemas.check_custom([target], crds)))
