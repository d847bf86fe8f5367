"""Feature configs: every mistake is named, in one pass, with its path and its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config.reading import ConfigError, load_config, parse_config
from pipeline.config.schema import Dense, FeatureConfig, IdFeature, Missing, ZScore

ROOT = Path(__file__).resolve().parents[2]

VALID = """\
schema_version: 1
name: feed
kv_prefix: fd
embeddings:
  city: {lookup: graph, dim: 4, vocabulary: {kind: dynamic, capacity: 100, oov_buckets: 4}}
  shop: {lookup: external, dim: 8, epoch: e1}
features:
  - {name: ctr, kind: dense, source: user.ctr, zscore: {}, missing: {fill: mean}}
  - {name: city_id, kind: id, source: context.city, embedding: city}
  - {name: device, kind: hashed_id, source: context.device, buckets: 10, dim: 2}
  - {name: hours, kind: bits, source: user.hours, width: 8}
  - name: clicks
    kind: sequence
    source: user.clicks
    embedding: shop
    max_len: 5
    encoder: {kind: conv1d, layers: [{filters: 4, kernel: 3}]}
fusion: {kind: pay_plus_a_phi, phi: 0.05}
action:
  - {name: a, baseline: 1.0, range: [0.5, 1.5]}
reward:
  weights: {click: 1.0}
  penalties: {page_without_conversion: 0.1}
  clip: [-1, 20]
algorithm: {kind: ddpg, gamma: 0.9}
policies:
  - {name: base, kind: baseline}
  - {name: rl_a, kind: learned}
buckets:
  salt: feed-1
  assign:
    - {name: control, policy: base, slots: [0, 49]}
    - {name: a, policy: rl_a, slots: [50, 99]}
stream:
  session_gap: 30m
"""


def problems(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_config(text, "f.yaml")
    assert str(caught.value).splitlines() == [
        f"f.yaml:{p.line}: {p.path}: {p.message}" if p.path else f"f.yaml:{p.line}: {p.message}"
        for p in caught.value.problems
    ]
    return str(caught.value).splitlines()


def changed(*changes: tuple[str, str]) -> str:
    text = VALID
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


def test_a_valid_config_has_defaults_for_what_it_leaves_out() -> None:
    config = parse_config(VALID)
    assert isinstance(config, FeatureConfig)
    assert config.features[0] == Dense("ctr", "user.ctr", zscore=ZScore(), missing=Missing(fill="mean"))
    assert isinstance(config.features[1], IdFeature)
    assert config.action[0].range == (0.5, 1.5)
    assert config.stream.session_gap == 1_800_000
    assert config.publish.probes == 32
    assert config.learned_policies() == ("rl_a",)


@pytest.mark.parametrize("path", sorted((ROOT / "feature_configs").glob("*.yaml")), ids=lambda p: p.stem)
def test_the_configs_of_this_repository_are_valid(path: Path) -> None:
    if path.stem != "kustomization":
        assert load_config(path).name == path.stem


# One mistake, one problem ----------------------------------------------------------------------------------------


def mistakes() -> list[tuple[str, ...]]:
    """(old, new, *problems) of each block of config_mistakes.txt."""
    text = (Path(__file__).parent / "config_mistakes.txt").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    blocks = "\n".join(lines).strip().split("\n\n")
    return [tuple(_written(line) for line in block.strip().splitlines()) for block in blocks if block.strip()]


def _written(line: str) -> str:
    return line[2:] if line.startswith(">") else line[2:].encode().decode("unicode_escape")


@pytest.mark.parametrize("case", mistakes(), ids=lambda case: case[2].split(": ", 1)[1][:60])
def test_one_mistake_is_one_problem(case: tuple[str, ...]) -> None:
    old, new, *expected = case
    assert sorted(problems(changed((old, new)))) == sorted(f"f.yaml:{line}" for line in expected)


def test_tables_are_used_by_the_kinds_that_can_use_them() -> None:
    swapped = changed(("embedding: city", "embedding: shop"), ("embedding: shop\n", "embedding: city\n"))
    assert problems(swapped) == [
        'f.yaml:9: features[city_id].embedding: an id feature needs a table with lookup: graph, but "shop" is external',
        "f.yaml:15: features[clicks].embedding: a sequence needs a table with lookup: external, "
        'but "city" is in the graph',
    ]


def test_ten_mistakes_are_ten_problems_in_the_order_of_the_file() -> None:
    text = changed(
        ("name: feed", "name: Feed"),
        ("capacity: 100", "capacity: ten"),
        ("zscore: {}", "zscore: {min_count: 1}"),
        ("embedding: city", "embedding: citi"),
        ("kind: hashed_id", "kind: hash"),
        ("max_len: 5", "max_len: 2"),
        ("baseline: 1.0", "baseline: 0.75"),
        ("conversion: 0.1", "conversion: -0.1"),
        ("gamma: 0.9", "gama: 0.9"),
        ("slots: [50, 99]", "slots: [45, 99]"),
    )
    lines = [int(line.split(":")[1]) for line in problems(text)]
    assert lines == [2, 5, 8, 9, 10, 17, 20, 23, 25, 33]


def test_what_cannot_be_read_hides_nothing_else_and_causes_nothing_else() -> None:
    text = changed(("policies:", "policies: 3\npolitics:"), ("slots: [50, 99]", "slots: [45, 99]"))
    assert problems(text) == [
        "f.yaml:26: policies: must be a list, got 3",
        'f.yaml:27: unknown key "politics" (did you mean "policies"?)',
        'f.yaml:34: buckets.assign[a].slots: slot 45 already belongs to "control"',
    ]


# Text that is no config ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: *b", "f.yaml:1: not YAML, column 4: found undefined alias 'b'"),
        ("a: 1\nb: [1", "f.yaml:2: not YAML, column 6: while parsing a flow sequence expected ',' or ']', but got "
         "'<stream end>'"),
        ("", "f.yaml: is empty; a config is a mapping"),
        ("- 1", "f.yaml:1: must be a mapping, got a list"),
        ("name", "f.yaml:1: must be a mapping, got 'name'"),
        ("[" * 5000, "f.yaml: not a config: nested too deep"),
    ],
    ids=["alias", "open list", "empty", "list", "scalar", "deep"],
)  # fmt: skip
def test_text_that_is_no_mapping(text: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(text, "f.yaml")
    assert str(caught.value) == expected


def test_control_characters_are_refused() -> None:
    with pytest.raises(ConfigError, match="not YAML: unacceptable character"):
        parse_config("a: \x01")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    latin = tmp_path / "latin.yaml"
    latin.write_bytes("a: 1\nname: café".encode("latin-1"))
    for path, expected in (
        (tmp_path / "no.yaml", "cannot be read: No such file or directory"),
        (tmp_path, "cannot be read: Is a directory"),
    ):
        with pytest.raises(ConfigError) as caught:
            load_config(path)
        assert str(caught.value) == f"{path}: {expected}"
    with pytest.raises(ConfigError) as caught:
        load_config(latin)
    assert str(caught.value).startswith(f"{latin}:2: is not UTF-8: byte 0xe9")


# YAML 1.2 --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "value"),
    [("1e-3", 0.001), ("1.0e-3", 0.001), ("1", 1.0), ("0x10", 16.0), ("010", 10.0), ("1_0.5", 10.5), ("+2", 2.0)],
)
def test_numbers_are_those_of_yaml_1_2(written: str, value: float) -> None:
    feature = parse_config(changed(("zscore: {}", f"zscore: {{min_std: {written}}}"))).features[0]
    assert isinstance(feature, Dense)
    assert feature.zscore is not None
    assert feature.zscore.min_std == value
    assert isinstance(feature.zscore.min_std, float)


@pytest.mark.parametrize("salt", ["no", "12:30", "2026-01-01", "<<"])
def test_words_that_older_yaml_reads_as_something_else_are_text(salt: str) -> None:
    assert parse_config(changed(("salt: feed-1", f"salt: {salt}"))).buckets.salt == salt


@pytest.mark.parametrize(
    ("written", "ms"),
    [("0", 0), ("250ms", 250), ("30s", 30_000), ("10m", 600_000), ("12h", 43_200_000), ("7d", 604_800_000)],
)
def test_durations(written: str, ms: int) -> None:
    assert parse_config(changed(("session_gap: 30m", f"lateness: {written}"))).stream.lateness == ms


def test_a_part_may_be_repeated_by_an_alias() -> None:
    text = changed(
        ("zscore: {}", "zscore: &z {min_count: 7}"),
        ("width: 8}", "width: 8}\n  - {name: b, kind: dense, source: user.b, zscore: *z}"),
    )
    features = parse_config(text).features
    assert [f.zscore for f in features if isinstance(f, Dense)] == [ZScore(min_count=7)] * 2


def test_null_is_the_absence_of_an_optional_part() -> None:
    feature = parse_config(changed(("zscore: {}, missing: {fill: mean}", "zscore: null, missing: ~"))).features[0]
    assert feature == Dense("ctr", "user.ctr")
