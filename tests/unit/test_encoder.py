"""The encoder by hand numbers, kind by kind, and everything it refuses."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
import pytest

from pipeline.config.schema import FeatureConfig
from pipeline.features.encoder import Encoder, FeatureError, MissingVector
from pipeline.features.errors import SnapshotError
from pipeline.features.inputs import Input, config_sha, hashed_rows, model_inputs, table_rows
from pipeline.features.moments import Moments
from pipeline.features.snapshot import Snapshot
from pipeline.features.values import id_hash
from pipeline.features.vectors import _finite
from pipeline.records import Lookup, State

REST = {
    "schema_version": 1,
    "name": "feed",
    "kv_prefix": "fd",
    "fusion": {"kind": "pay_plus_a_phi", "phi": 0.1},
    "action": [{"name": "a", "baseline": 1.0, "range": [0.5, 1.5]}],
    "reward": {"weights": {"click": 1.0}},
    "algorithm": {"kind": "ddpg", "gamma": 0.9},
    "policies": [{"name": "base", "kind": "baseline"}],
    "buckets": {"salt": "s", "assign": [{"name": "all", "policy": "base", "slots": [0, 99]}]},
}
TABLES = {
    "city": {"lookup": "graph", "dim": 2, "vocabulary": {"kind": "dynamic", "capacity": 8, "oov_buckets": 3}},
    "hour": {"lookup": "graph", "dim": 2, "vocabulary": {"kind": "range", "size": 24}},
    "shop": {"lookup": "external", "dim": 2, "epoch": "e2"},
    "half": {"lookup": "external", "dim": 2, "epoch": "e2", "dtype": "float16"},
}
CONV = {"kind": "conv1d", "layers": [{"filters": 1, "kernel": 1}]}


def config(*features: dict[str, Any]) -> FeatureConfig:
    named = [{"name": f"f{i}", "source": f"user.f{i}"} | feature for i, feature in enumerate(features)]
    return msgspec.convert(REST | {"embeddings": TABLES, "features": named}, FeatureConfig)


def user(*values: Any, **lookups: Lookup) -> State:
    return State(user={f"f{i}": value for i, value in enumerate(values)}, lookups=lookups)


class Vectors:
    """`{id: vector}` in epoch e2; in any other epoch the same vectors times ten."""

    def __init__(self, vectors: dict[str, list[float]], dtype: str = "<f4") -> None:
        self.known, self.dtype = vectors, dtype
        self.asked: list[tuple[str, str, list[str]]] = []

    def vectors(self, table: str, epoch: str, ids: list[str]) -> list[bytes | None]:
        self.asked.append((table, epoch, list(ids)))
        scale = 1 if epoch == "e2" else 10
        return [
            (scale * np.array(self.known[i])).astype(self.dtype).tobytes() if i in self.known else None for i in ids
        ]


def encode(
    config: FeatureConfig, state: State, snapshot: Snapshot | None = None, source: Vectors | None = None
) -> dict[str, Any]:
    """As an agent does, one row, and as a trainer does, many: with the same bits."""
    encoder, snapshot = Encoder(config, source), snapshot or Snapshot.initial(config)
    prepared = encoder.prepare(state)
    one, two = (encoder.finish(encoder.stack([prepared] * n), snapshot) for n in (1, 2))
    for name, value in one.items():
        assert (value.dtype, value[0].tobytes(), value[0].tobytes()) == (
            two[name].dtype, two[name][0].tobytes(), two[name][1].tobytes(),
        )  # fmt: skip
    return {name: value[0].tolist() for name, value in one.items()}


def known(config: FeatureConfig, vocabulary: tuple[str | int, ...] = (), **moments: Moments) -> Snapshot:
    """A snapshot that has seen this."""
    initial = Snapshot.initial(config)
    hashes = {"city": np.array([id_hash(config.features[0], i) for i in vocabulary], np.uint64)}
    return Snapshot(initial.config_sha, {**initial.moments, **moments}, hashes, initial.epochs)


# Inputs ----------------------------------------------------------------------------------------------------------


def test_model_inputs_follow_the_order_of_the_config() -> None:
    built = config(
        {"kind": "id", "embedding": "city"},
        {"kind": "dense", "missing": {"fill": 0, "indicator": True}},
        {"kind": "sequence", "embedding": "shop", "max_len": 3, "encoder": CONV, "missing": {"indicator": True}},
        {"kind": "bits", "width": 5},
        {"kind": "hashed_id", "buckets": 7, "dim": 2},
        {"kind": "dense"},
    )
    assert model_inputs(built) == (
        Input("dense", "float32", (4,)),
        Input("f0", "int32", ()),
        Input("f2", "float32", (3, 2)),
        Input("f2__mask", "float32", (3,)),
        Input("f3", "float32", (5,)),
        Input("f4", "int32", ()),
    )
    assert [table_rows(built.embeddings[t]) for t in ("city", "hour")] == [8, 27]
    assert hashed_rows(built.features[4]) == 8


def test_without_dense_features_and_indicators_there_is_no_dense_input() -> None:
    built = config({"kind": "bits", "width": 2})
    assert encode(built, user(2)) == {"f0": [0.0, 1.0]}
    assert [i.name for i in model_inputs(built)] == ["f0"]


def test_an_indicator_of_another_kind_makes_a_dense_input() -> None:
    built = config({"kind": "bits", "width": 2, "missing": {"indicator": True}})
    assert encode(built, user(2)) == {"dense": [0.0], "f0": [0.0, 1.0]}
    assert encode(built, user()) == {"dense": [1.0], "f0": [0.0, 0.0]}


def test_config_sha_is_that_of_what_model_and_agent_share() -> None:
    one = config({"kind": "dense"})
    assert config_sha(one) == config_sha(msgspec.structs.replace(one, name="other", kv_prefix="x"))
    assert config_sha(one) != config_sha(config({"kind": "dense", "transform": "sqrt"}))
    narrower = (msgspec.structs.replace(one.action[0], range=(0.75, 1.5)),)
    assert config_sha(one) != config_sha(msgspec.structs.replace(one, action=narrower))


# Dense -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("transform", "value", "expected"),
    [
        ("none", 3, 3.0),
        ("none", -2.5, -2.5),
        ("log1p", math.e - 1, 1.0),
        ("log1p", 0, 0.0),
        ("logit", 0.5, 0.0),
        ("logit", 1 / (1 + math.exp(-2)), 2.0),
        ("sqrt", 9, 3.0),
    ],
)
def test_transforms(transform: str, value: float, expected: float) -> None:
    assert encode(config({"kind": "dense", "transform": transform}), user(value)) == {
        "dense": [pytest.approx(expected, abs=1e-6)]
    }


@pytest.mark.parametrize(
    ("transform", "value", "message"),
    [
        ("none", "3", "expected a finite number, found '3' (str)"),
        ("none", True, "expected a finite number, found True (bool)"),
        ("none", (1, 2), "expected a finite number, found (1, 2) (tuple)"),
        ("none", math.nan, "expected a finite number, found nan (float)"),
        ("none", math.inf, "expected a finite number, found inf (float)"),
        ("none", 1e39, "expected a finite number, found 1e+39 (float)"),
        ("none", 10**400, f"expected a finite number, found 1{'0' * 56}... (int)"),
        ("log1p", -1, "expected a finite number > -1 (for log1p), found -1 (int)"),
        ("logit", 0, "expected a number between 0 and 1, both excluded (for logit), found 0 (int)"),
        ("logit", 1, "expected a number between 0 and 1, both excluded (for logit), found 1 (int)"),
        ("sqrt", -0.5, "expected a finite number >= 0 (for sqrt), found -0.5 (float)"),
        ("sqrt", None, "expected a value (the config has no `missing` rule), found none"),
    ],
)
def test_numbers_outside_a_transform_are_refused(transform: str, value: Any, message: str) -> None:
    encoder = Encoder(config({"kind": "dense", "transform": transform}))
    with pytest.raises(FeatureError) as caught:
        encoder.prepare(user(value))
    assert str(caught.value) == f"features[f0] (user.f0): {message}"
    assert (caught.value.feature, caught.value.source) == ("f0", "user.f0")


ZSCORED = {"kind": "dense", "zscore": {"min_count": 4, "min_std": 0.5, "clip": 3}}


@pytest.mark.parametrize(
    ("moments", "value", "expected"),
    [
        (Moments(4, 10.0, 16.0), 12, 1.0),  # std 2
        (Moments(4, 10.0, 16.0), 100, 3.0),
        (Moments(4, 10.0, 16.0), -100, -3.0),
        (Moments(4, 10.0, 0.0), 11, 2.0),  # std floored at 0.5
        (Moments(3, 10.0, 16.0), 12, 0.0),  # too few
        (Moments(), 12, 0.0),
    ],
)
def test_zscore(moments: Moments, value: float, expected: float) -> None:
    built = config(ZSCORED)
    assert encode(built, user(value), known(built, f0=moments)) == {"dense": [expected]}


@pytest.mark.parametrize(
    ("missing", "expected"),
    [
        ({"fill": "mean"}, [0.0]),
        ({"fill": "mean", "indicator": True}, [0.0, 1.0]),
        ({"fill": 8.0}, [-1.0]),
        ({"fill": 8.0, "indicator": True}, [-1.0, 1.0]),
    ],
)
def test_missing_numbers(missing: dict[str, Any], expected: list[float]) -> None:
    built = config({**ZSCORED, "missing": missing})
    snapshot = known(built, f0=Moments(4, 10.0, 16.0))
    assert encode(built, user(), snapshot) == {"dense": expected}
    assert encode(built, user(None), snapshot) == {"dense": expected}
    assert encode(built, user(12), snapshot) == {"dense": [1.0, 0.0][: len(expected)]}


def test_a_fill_is_in_raw_units() -> None:
    built = config({"kind": "dense", "transform": "sqrt", "missing": {"fill": 9}})
    assert encode(built, user()) == {"dense": [3.0]}


def test_values_come_first_then_the_indicators() -> None:
    fill = {"fill": -1, "indicator": True}
    built = config({"kind": "dense", "missing": fill}, {"kind": "dense"}, {"kind": "dense", "missing": fill})
    assert encode(built, user(None, 5, 6)) == {"dense": [-1.0, 5.0, 6.0, 1.0, 0.0]}
    assert encode(built, user(4, 5, None)) == {"dense": [4.0, 5.0, -1.0, 0.0, 1.0]}


def test_values_are_read_from_their_scope() -> None:
    built = config({"kind": "dense", "source": "page.depth"}, {"kind": "dense", "source": "context.hour"})
    assert encode(built, State(page={"depth": 3}, context={"hour": 4})) == {"dense": [3.0, 4.0]}


# Ids -------------------------------------------------------------------------------------------------------------


def test_known_ids_have_rows_in_the_order_of_their_admission() -> None:
    built = config({"kind": "id", "embedding": "city", "missing": {}})
    snapshot = known(built, ("paris", 75, "rome"))
    rows = [encode(built, user(i), snapshot)["f0"] for i in ("paris", 75, "75", "rome", None)]
    assert rows == [5, 6, 6, 7, 1]  # 0 padding, 1 missing, 2..4 out of vocabulary
    assert encode(built, user("oslo"), snapshot)["f0"] == 2 + id_hash(built.features[0], "oslo") % 3


def test_unknown_ids_are_spread_over_the_out_of_vocabulary_rows() -> None:
    built = config({"kind": "id", "embedding": "city"})
    assert {encode(built, user(i))["f0"] for i in range(30)} == {2, 3, 4}


@pytest.mark.parametrize(
    ("value", "row"),
    [(0, 3), (23, 26), ("23", 26), (24, 2), (-1, 2), ("007", 2), ("7.0", 2), ("", 2), ("9" * 5000, 2), (None, 1)],
)
def test_ranges(value: Any, row: int) -> None:
    assert encode(config({"kind": "id", "embedding": "hour", "missing": {}}), user(value)) == {"f0": row}


def test_hashed_ids_depend_on_nothing_but_the_id() -> None:
    built = config({"kind": "hashed_id", "buckets": 1000, "dim": 2, "missing": {}})
    assert [encode(built, user(i))["f0"] for i in (None, "x", 7, "7")] == [0, 426, 675, 675]  # xxh3_64 % 1000 + 1


@pytest.mark.parametrize(
    ("value", "found"),
    [(True, "True (bool)"), (3.0, "3.0 (float)"), (("a",), "('a',) (tuple)")],
)
@pytest.mark.parametrize(
    "kind",
    [
        {"kind": "id", "embedding": "city"},
        {"kind": "id", "embedding": "hour"},
        {"kind": "hashed_id", "buckets": 3, "dim": 2},
    ],
)
def test_what_is_no_id_is_refused(kind: dict[str, Any], value: Any, found: str) -> None:
    with pytest.raises(FeatureError) as caught:
        Encoder(config(kind)).prepare(user(value))
    assert str(caught.value) == f"features[f0] (user.f0): expected an id (text or an integer), found {found}"


def test_no_id_is_taken_for_a_missing_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.features.values.xxhash.xxh3_64_intdigest", lambda _: 0)
    assert encode(config({"kind": "id", "embedding": "city"}), user("the one id in 2**64"))["f0"] >= 2


def test_text_that_is_not_unicode_is_refused() -> None:
    with pytest.raises(FeatureError, match="expected an id that is valid Unicode"):
        Encoder(config({"kind": "hashed_id", "buckets": 3, "dim": 2})).prepare(user("\ud800"))


# Bits ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("value", "expected"), [(0, [0, 0, 0]), (1, [1, 0, 0]), (6, [0, 1, 1]), ("6", [0, 1, 1])])
def test_bits_from_the_newest_on(value: Any, expected: list[float]) -> None:
    assert encode(config({"kind": "bits", "width": 3}), user(value)) == {"f0": expected}


def test_all_64_bits() -> None:
    built = config({"kind": "bits", "width": 64})
    assert encode(built, user(str(2**63 + 1))) == {"f0": [1.0] + [0.0] * 62 + [1.0]}


@pytest.mark.parametrize("value", [8, -1, True, 1.0, "1.0", "-1", "", "0x1", (1,)])
def test_what_is_no_bit_field_is_refused(value: Any) -> None:
    with pytest.raises(FeatureError, match=r"expected an unsigned integer < 2\*\*3, found"):
        Encoder(config({"kind": "bits", "width": 3})).prepare(user(value))


# Sequences -------------------------------------------------------------------------------------------------------

SEQUENCE = {"kind": "sequence", "embedding": "shop", "max_len": 3, "encoder": CONV}
KNOWN = {"1": [1.0, -1.0], "2": [2.0, -2.0], "3": [3.0, -3.0], "4": [4.0, -4.0]}


@pytest.mark.parametrize(
    ("keep", "ids", "matrix", "mask", "hits"),
    [
        ("newest", (), [[0, 0], [0, 0], [0, 0]], [0, 0, 0], ()),
        ("newest", (1, "2"), [[1, -1], [2, -2], [0, 0]], [1, 1, 0], (True, True)),
        ("newest", (1, 2, 3, 4), [[2, -2], [3, -3], [4, -4]], [1, 1, 1], (True, True, True)),
        ("oldest", (1, 2, 3, 4), [[1, -1], [2, -2], [3, -3]], [1, 1, 1], (True, True, True)),
        ("newest", (1, "none", 3), [[1, -1], [0, 0], [3, -3]], [1, 1, 1], (True, False, True)),
        ("newest", (4, 4), [[4, -4], [4, -4], [0, 0]], [1, 1, 0], (True, True)),
    ],
)
def test_sequences(keep: str, ids: Any, matrix: Any, mask: Any, hits: tuple[bool, ...]) -> None:
    built, source = config({**SEQUENCE, "keep": keep}), Vectors(KNOWN)
    assert encode(built, user(ids), source=source) == {"f0": matrix, "f0__mask": mask}
    assert Encoder(built, source).prepare(user(ids)).lookups == {"f0": Lookup("e2", hits)}


def test_a_missing_sequence_is_empty_and_says_so_where_asked() -> None:
    built = config({**SEQUENCE, "missing": {"indicator": True}})
    nothing = {"f0": [[0.0, 0.0]] * 3, "f0__mask": [0.0] * 3}
    assert encode(built, user(None)) == {"dense": [1.0], **nothing}
    assert encode(built, user(())) == {"dense": [0.0], **nothing}


def test_half_precision_tables() -> None:
    built = config({**SEQUENCE, "embedding": "half"})
    outputs = encode(built, user(("1", "2")), source=Vectors({"1": [0.1, 2.0], "2": [1.0, 3.0]}, "<f2"))
    assert outputs["f0"] == [[float(np.float16(0.1)), 2.0], [1.0, 3.0], [0.0, 0.0]]


def test_features_that_share_a_table_are_one_question() -> None:
    source = Vectors(KNOWN)
    outputs = encode(config(SEQUENCE, {**SEQUENCE, "max_len": 1}), user(("1", "2"), ("3",)), source=source)
    assert source.asked == [("shop", "e2", ["1", "2", "3"])]
    assert outputs["f0"][:2] == [[1.0, -1.0], [2.0, -2.0]]
    assert outputs["f1"] == [[3.0, -3.0]]


def test_logged_lookups_are_obeyed() -> None:
    source = Vectors(KNOWN)
    state = user(("4", "1", "none", "2"), f0=Lookup("e2", (False, False, True)))
    outputs = encode(config(SEQUENCE), state, source=source)
    assert source.asked == [("shop", "e2", ["2"])]
    assert outputs == {"f0": [[0, 0], [0, 0], [2, -2]], "f0__mask": [1, 1, 1]}


def test_logged_misses_ask_for_nothing() -> None:
    assert encode(config(SEQUENCE), user(("1",), f0=Lookup("e2", (False,))))["f0__mask"] == [1, 0, 0]


def test_the_logged_epoch_is_used() -> None:
    source = Vectors(KNOWN)
    encoder = Encoder(config(SEQUENCE), source)
    prepared = encoder.prepare(user(("1",), f0=Lookup("e1", (True,))))
    assert source.asked == [("shop", "e1", ["1"])]
    assert prepared.lookups == {"f0": Lookup("e1", (True,))}
    assert prepared.row["f0__vectors"][0, 0].tolist() == [10.0, -10.0]


def test_a_logged_hit_that_is_gone_is_an_error_of_its_own() -> None:
    encoder = Encoder(config(SEQUENCE), Vectors({}))
    with pytest.raises(MissingVector, match="expected a vector for id '1' in shop, epoch e2: it was used"):
        encoder.prepare(user(("1",), f0=Lookup("e2", (True,))))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("1", "expected a list of ids, found '1' (str)"),
        (1, "expected a list of ids, found 1 (int)"),
        ((True,), "expected an id (text or an integer), found True (bool)"),
        ((None,), "expected an id (text or an integer), found nothing"),
        (None, "expected a value (the config has no `missing` rule), found none"),
        (("short",), "expected 8 bytes for id 'short' in shop, epoch e2, found 4 bytes"),
        (("nan",), "expected finite vectors, found others in table shop, epoch e2, ids ['nan'] (list)"),
    ],
)
def test_what_is_no_sequence_is_refused(value: Any, message: str) -> None:
    encoder = Encoder(config(SEQUENCE), Vectors({"short": [1.0], "nan": [1.0, math.nan]}))
    with pytest.raises(FeatureError) as caught:
        encoder.prepare(user(value))
    assert str(caught.value) == f"features[f0] (user.f0): {message}"


@pytest.mark.parametrize("dtype", ["<f2", "<f4"])
def test_a_vector_is_finite_where_numpy_says_so(dtype: str) -> None:
    upper = np.arange(2**16, dtype="<u2")  # of a float16 all of it, of a float32 sign, exponent and more
    wide = upper.astype("<u4") << 16
    numbers = (upper if dtype == "<f2" else np.concatenate([wide, wide | 1])).view(dtype)
    found = [_finite(number.tobytes(), np.dtype(dtype)) for number in numbers]
    assert found == np.isfinite(numbers).tolist()


def test_a_hit_mask_of_another_length_is_refused() -> None:
    with pytest.raises(FeatureError, match="expected 2 logged hits, one per id after truncation, found 1"):
        Encoder(config(SEQUENCE), Vectors(KNOWN)).prepare(user(("1", "2"), f0=Lookup("e2", (True,))))


def test_an_encoder_without_a_source_says_so() -> None:
    with pytest.raises(LookupError, match=r"embeddings\[shop\]: this encoder has no vector source"):
        Encoder(config(SEQUENCE)).prepare(user(("1",)))


# Finish ----------------------------------------------------------------------------------------------------------


def test_parameters_of_another_config_are_refused() -> None:
    one, other = config({"kind": "dense"}), config({"kind": "dense", "transform": "sqrt"})
    encoder = Encoder(one)
    with pytest.raises(SnapshotError, match="expected parameters of config"):
        encoder.finish(encoder.prepare(user(1)).row, Snapshot.initial(other))


def test_rows_of_another_layout_are_refused() -> None:
    one, other = Encoder(config({"kind": "dense"})), Encoder(config({"kind": "bits", "width": 1}))
    with pytest.raises(SnapshotError, match="expected prepared rows"):
        one.finish(other.prepare(user(1)).row, Snapshot.initial(config({"kind": "dense"})))


def test_an_empty_batch() -> None:
    built = config({"kind": "dense"}, {"kind": "id", "embedding": "city"}, {"kind": "bits", "width": 2}, SEQUENCE)
    encoder = Encoder(built)
    outputs = encoder.finish(np.empty(0, encoder.prepared_dtype), Snapshot.initial(built))
    assert {name: value.shape for name, value in outputs.items()} == {
        i.name: (0, *i.shape) for i in model_inputs(built)
    }


def test_numbers_of_prepared_rows_are_aligned() -> None:
    built = config({"kind": "dense"}, {"kind": "hashed_id", "buckets": 2, "dim": 2}, SEQUENCE, SEQUENCE)
    dtype = Encoder(built).prepared_dtype
    assert dtype.itemsize % 8 == 0
    assert [dtype.fields[f"f{i}__vectors"][1] % 8 for i in (2, 3)] == [0, 0]


def test_stacked_rows_are_the_rows() -> None:
    encoder = Encoder(config({"kind": "dense"}, {"kind": "bits", "width": 8}))
    stacked = encoder.stack([encoder.prepare(user(i, i)) for i in range(3)])
    assert stacked["dense"][:, 0].tolist() == [0.0, 1.0, 2.0]
    assert stacked["bits"][:, 0].tolist() == [0, 1, 2]


def test_nobody_changes_a_snapshot_through_the_inputs_of_one_page() -> None:
    built = config({"kind": "id", "embedding": "city"})
    encoder, snapshot = Encoder(built), known(built, ("a",))
    row = encoder.prepare(user("a")).row
    with pytest.raises(ValueError, match="read-only"):
        encoder.finish(row, snapshot)["f0"] += 1
    assert encoder.finish(row, snapshot)["f0"].tolist() == [5]
