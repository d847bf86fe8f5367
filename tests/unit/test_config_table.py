"""The configuration reference is that of the types, and tells what they say."""

from __future__ import annotations

import re
from typing import Annotated

import pytest
from msgspec import Meta, Struct
from ruamel.yaml import YAML

from pageturn.config_table import _section, markdown
from pipeline.config.values import Count, DurationMs
from tests.conftest import ROOT

DOCS = ROOT / "docs" / "configuration.md"


class Inner(Struct, frozen=True, tag_field="kind", tag="inner"):
    x: float = 0.5


class Sample(Struct, frozen=True):
    """What it is
    for."""

    width: Annotated[float, Meta(gt=0, le=1)]
    inner: Inner | None = None
    wait: DurationMs = 90_000
    many: tuple[Count, ...] = (1, 2)
    pair: tuple[int, int] = (0, 1)


def test_the_documentation_is_that_of_the_types() -> None:
    assert markdown() in DOCS.read_text(), "docs/configuration.md is out of date: `make config-table`"


def test_a_type_is_its_keys_values_and_defaults() -> None:
    assert _section(Sample).splitlines() == [
        "### Sample",
        "",
        "What it is for.",
        "",
        "| key | value | default | |",
        "|---|---|---|---|",
        "| `width` | number, above 0 and at most 1 | **required** |  |",
        "| `inner` | [Inner](#inner) |  |  |",
        "| `wait` | duration | `90s` |  |",
        "| `many` | list of whole number, at least 1 and at most 1,000,000,000 | `[1,2]` |  |",
        "| `pair` | [whole number, whole number] | `[0,1]` |  |",
    ]
    assert "| `kind` | `inner` | | |" in _section(Inner)


def test_comments_of_the_code_are_in_it() -> None:
    rows = {line.split("`")[1]: line for line in markdown().splitlines() if line.startswith("| `")}
    assert rows["max_drift"].endswith("moves them as far (7 and above: not judged) |")
    assert rows["alpha"].endswith("chance that anything that is ever concluded about a policy is wrong |")


def keys(value: object) -> set[str]:
    if isinstance(value, dict):
        if "minor" in value:  # by policy, as embeddings are by table
            value = {**value, "minor": list(value["minor"].values())}
        return {str(key) for key in value} | {key for inner in value.values() for key in keys(inner)}
    return {key for inner in value for key in keys(inner)} if isinstance(value, list) else set()


@pytest.mark.parametrize("path", sorted((ROOT / "feature_configs").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_key_of_the_examples_is_documented(path) -> None:
    config = YAML(typ="safe").load(path)
    given = keys({k: v for k, v in config.items() if k not in ("embeddings", "reward")}) | keys(
        list(config.get("embeddings", {}).values())
    )
    assert given <= set(re.findall(r"^\| `(\w+)` \|", DOCS.read_text(), re.MULTILINE))


def test_links_lead_somewhere() -> None:
    text = DOCS.read_text()
    headings = {heading.lower() for heading in re.findall(r"^### (\w+)$", text, re.MULTILINE)}
    assert set(re.findall(r"\]\(#(\w+)\)", text)) <= headings
