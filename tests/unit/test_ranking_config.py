"""Configs of feeds whose policies choose the items: what they need, and what would have no effect in them."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config.ranking import Dbgd, Gradient
from pipeline.config.reading import ConfigError, load_config, parse_config
from pipeline.features.inputs import config_sha

CONFIGS = Path(__file__).resolve().parents[2] / "feature_configs"
TEXT = (CONFIGS / "news_drn.yaml").read_text()
CASES = (
    ("algorithm:\n  kind: drn", "algorithm:\n  kind: dqn", 'missing key "fusion"'),
    ("    dbgd: {by: dbgd", "    dbdg: {by: dbgd", 'no learned policy "dbdg" (did you mean "dbgd"?)'),
    ("by: probabilistic, tau: 3", "by: team_draft, tau: 3", "with by: probabilistic only"),
    ("session_gap: 60s", "session_gap: 30s", "must be at least ranking.activeness.absence"),
    ("remember: 10m", "remember: 30s", "must be at least stream.session_gap"),
    ("absence: 60s", "absence: 0", "must be longer than 0"),
    ("weights: {click: 1.0}", "weights: {page_turn: 1.0}", "one of click, order, dwell must be > 0"),
    ("weights: {click: 1.0}", "weights: {click: 1, page_turn: 1}", "of a page, not of an item"),
    ("{click: 1.0}", "{click: 1.0}\n  penalties: {page_without_conversion: 1}", "of a page, not of an item"),
    ("{click: 1.0}", "{click: 1.0}\n  clip: [0, 1]", "of a page, not of an item"),
    ("every: 1s", "every: 11s", "must be at least publish.every, 11000 ms; got 10000 ms"),
    ("probes: 8", "probes: 8\n  certification: {unit_reward: [0, 1]}", "it needs the density of an action"),
    ("reward:\n", "fusion: {kind: exponents}\nreward:\n", "algorithm.kind drn has ranking instead"),
    ("reward:\n", "action: [{name: a, baseline: 1, range: [0, 2]}]\nreward:\n", "algorithm.kind drn has ranking"),
)  # fmt: skip


@pytest.mark.parametrize(("old", "new", "expected"), CASES, ids=[case[2] for case in CASES])
def test_a_mistake_is_named(old: str, new: str, expected: str) -> None:
    assert TEXT.count(old) == 1
    with pytest.raises(ConfigError) as error:
        parse_config(TEXT.replace(old, new))
    assert expected in str(error.value)


def test_a_table_is_of_items_or_of_users() -> None:
    feature = "  - {name: reads, kind: id, source: user.reads, embedding: provider}\n"
    with pytest.raises(ConfigError, match="which is of no item; take another table"):
        parse_config(TEXT.replace("features:\n", f"features:\n{feature}"))


def test_a_sequence_is_of_no_item() -> None:
    table = "embeddings:\n  words: {lookup: external, dim: 2, epoch: e1}\n"
    feature = (
        "features:\n  - {name: w, kind: sequence, source: item.w, embedding: words, max_len: 4,\n"
        "     encoder: {kind: conv1d, layers: [{filters: 2, kernel: 2}]}}\n"
    )
    with pytest.raises(ConfigError, match="a sequence cannot be of items"):
        parse_config(TEXT.replace("embeddings:\n", table).replace("features:\n", feature))


def test_one_of_both_sides_has_features() -> None:
    lines = [line for line in TEXT.splitlines() if "source: item." not in line]
    with pytest.raises(ConfigError, match="at least one must be of items"):
        parse_config("\n".join(lines))


def test_each_learned_policy_is_updated_in_its_way() -> None:
    ranking = load_config(CONFIGS / "news_drn.yaml").ranking
    assert {name: type(minor) for name, minor in ranking.minor.items()} == {"gradient": Gradient, "dbgd": Dbgd}
    assert ranking.minor_of("dbgd") is ranking.minor["dbgd"]
    assert (ranking.explorers("gradient"), ranking.explorers("dbgd")) == (
        1,
        2,
    )  # each with a major update that is tried


def test_a_policy_of_which_nothing_is_said_is_updated_by_gradient_every_half_hour() -> None:
    said = TEXT[TEXT.index("  minor:\n") : TEXT.index("  major:")]
    ranking = parse_config(TEXT.replace(said, "")).ranking
    assert ranking.minor_of("gradient") == Gradient(every=1_800_000)
    assert ranking.explorers("dbgd") == 1


CANARY = "probes: 8\n  guard: {}\n  canary: {}"


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ((), "ranking.minor.dbgd, ranking.major.trial"),
        ((("updates: 60", "updates: 60, trial: false"),), "ranking.minor.dbgd"),
        ((("by: dbgd", "by: es"), ("updates: 60", "updates: 60, trial: false")), "ranking.minor.dbgd"),
        ((("    dbgd: {", "    # {"),), "ranking.major.trial"),
        ((("    dbgd: {", "    # {"), ("updates: 60", "updates: 60, trial: false")), None),
    ],
)
def test_what_is_interleaved_is_not_tried_on_a_share_too(
    changes: tuple[tuple[str, str], ...], found: str | None
) -> None:
    text = TEXT.replace("probes: 8", CANARY).replace(", alpha: 0.3, eta: 0.3", "")
    for old, new in changes:
        assert text.count(old) == 1
        text = text.replace(old, new)
    if found is None:
        assert parse_config(text).publish.canary is not None
        return
    with pytest.raises(ConfigError) as error:
        parse_config(text)
    assert str(error.value).endswith(f"which would see the share's pages only: {found}")
    assert "publish.canary: " in str(error.value)


def test_a_config_without_ranking_has_the_hash_that_it_had() -> None:
    """Models, parameters and agents agree on it: a new field may not part them."""
    hashes = {path.stem: config_sha(load_config(path))[:12] for path in CONFIGS.glob("*.yaml")}
    assert hashes["simulated"] == "e3e9631f8657"
    assert hashes["guess_you_like"] == "a9f19a00e086"
