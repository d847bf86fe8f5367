"""DRN on a real log, from its import to its rankings: that the way is right, not that the rankings are good.

    python -m benchmarks.ebnerd [--data ../shared/data/ebnerd] [--json FILE]

The EB-NeRD excerpt is imported, goes through the stream, and initialises DRN as a trainer would be by a replayed log.
Then the lists of its last days are ranked, and where the clicked article comes is compared with popularity, FTRL and
LinUCB, which learn from the same earlier days. Intervals (95 %) take a user as one draw. The excerpt has no features of
articles and only lists with a click, and some 300 lists to judge by: no ordering of methods follows from it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from pageturn.ebnerd import import_ebnerd
from pipeline.config.reading import load_config
from pipeline.config.schema import FeatureConfig
from pipeline.events import decode, encode
from pipeline.features.candidates import item_inputs
from pipeline.features.encoder import Encoder
from pipeline.features.inputs import DENSE
from pipeline.features.snapshot import Snapshot
from pipeline.learning.drn.served import ServedRankers
from pipeline.learning.drn.training import RankingTraining
from pipeline.learning.merging import Told
from pipeline.logs.files import FileLog
from pipeline.logs.log import EVENTS, SAMPLES, TRANSITIONS
from pipeline.ranking.ftrl import Ftrl
from pipeline.ranking.linucb import LinUcb
from pipeline.records import Item, Page, State, Transition
from pipeline.simulation.outcomes import Estimate, clustered
from pipeline.streaming.outputs import read_all
from pipeline.streaming.run import run_stream

CONFIG = Path(__file__).resolve().parents[1] / "feature_configs" / "ebnerd_drn.yaml"
DATA = Path("../shared/data/ebnerd")
TRAINED_SHARE = 0.7  # of the lists, by time
CUT = 10  # of nDCG
BASE = "popularity"


class Shown(NamedTuple):
    """A list with its clicks."""

    user_id: str
    time_ms: int
    state: State
    items: tuple[Item, ...]
    clicked: np.ndarray  # bool


Score = Callable[[Shown], np.ndarray]


class Row(msgspec.Struct, frozen=True):
    method: str
    auc: Estimate
    ndcg: Estimate
    auc_ahead: Estimate  # of popularity, on the same lists


def prepared(config: FeatureConfig, data: Path, folder: Path) -> tuple[list[Shown], list[Transition]]:
    """The log through import and stream."""
    url = f"file://{folder / 'log'}"
    with closing(FileLog(folder / "log")) as log:
        log.create(EVENTS, 1)
        import_ebnerd(data, config, log, None)
    run_stream(config, url, folder / "stream", until_idle=True, stop=threading.Event())
    with closing(FileLog(folder / "log")) as log:
        pages = [decode(record.payload, Page) for record in read_all(log, SAMPLES)]
        transitions = [decode(record.payload, Transition) for record in read_all(log, TRANSITIONS)]
    shown = [_shown(page) for page in pages]
    return sorted(shown, key=lambda s: (s.time_ms, s.user_id)), sorted(transitions, key=lambda t: (t.time_ms, t.id))


def _shown(page: Page) -> Shown:
    impression = page.impression
    clicked = np.array([label.clicks > 0 for label in page.labels])
    return Shown(impression.user_id, impression.time_ms, impression.state, impression.items, clicked)


def initialised(config: FeatureConfig, transitions: Sequence[Transition], until_ms: int) -> RankingTraining:
    """DRN after all that was complete by then: a page whose next request came later is left out."""
    training = RankingTraining(config, Encoder(config))
    gap_ms = config.stream.session_gap
    complete = [(_complete_ms(each, transitions, gap_ms), each) for each in transitions]
    in_time = sorted((when, each.id, each) for when, each in complete if when <= until_ms)
    for number, (when_ms, _, each) in enumerate(in_time):
        training.ingest(Told(0, number, when_ms, each.session_id, encode(each), TRANSITIONS))
    return training


def _complete_ms(transition: Transition, all_: Sequence[Transition], gap_ms: int) -> int:
    if transition.next_state is None:
        return transition.time_ms + gap_ms
    later = (t.time_ms for t in all_ if t.session_id == transition.session_id and t.time_ms > transition.time_ms)
    return min(later, default=transition.time_ms + gap_ms)


# Methods ------------------------------------------------------------------------------------------------------------


def popularity(shown: Shown) -> np.ndarray:
    return np.array([item.features["clicks"] for item in shown.items], float)


def drn(config: FeatureConfig, training: RankingTraining) -> Score:
    model, (state, item) = ServedRankers(config, 0), training.encoders
    (method,) = training.methods.values()
    model.hold(method.standing.weights, ())

    def score(shown: Shown) -> np.ndarray:
        user = state.finish(state.prepare(shown.state).row, training.snapshot)
        items = item_inputs(item, [item.prepare_items(shown.items)], training.snapshot)
        return model.q({**user, **items})[0]

    return score


def linear(model: Ftrl | LinUcb, config: FeatureConfig, snapshot: Snapshot, earlier: Sequence[Shown]) -> Score:
    """On the numbers that DRN sees of user and article, and their products: without these a linear model would rank
    alike for all users."""
    state, item = Encoder(config), Encoder(config, part="item")

    def columns(shown: Shown) -> np.ndarray:
        user = state.finish(state.prepare(shown.state).row, snapshot)[DENSE][0]
        items = item.finish(item.prepare_items(shown.items), snapshot)[DENSE]
        crossed = (items[:, :, None] * user[None, None]).reshape(len(items), -1)
        return np.concatenate([np.ones((len(items), 1)), items, crossed], axis=1).astype(float)

    for shown in earlier:
        x, clicked = columns(shown), shown.clicked.astype(float)
        if isinstance(model, LinUcb):
            model.learn(x, clicked)
        else:
            model.learn(x, clicked, chunk=len(x))
    return lambda shown: model.scores(columns(shown)) if isinstance(model, LinUcb) else model.predict(columns(shown))


def _features(config: FeatureConfig) -> int:
    state, item = Encoder(config), Encoder(config, part="item")
    users, items = (next(i.shape[0] for i in each.inputs if i.name == DENSE) for each in (state, item))
    return 1 + items + items * users


# Figures --------------------------------------------------------------------------------------------------------------


def auc(scores: np.ndarray, clicked: np.ndarray) -> float:
    """Share of pairs of a clicked and another item that are in the right order; a tie is half of one."""
    ahead = scores[clicked][:, None] - scores[~clicked][None]
    return float(np.mean((ahead > 0) + 0.5 * (ahead == 0)))


def ndcg(scores: np.ndarray, clicked: np.ndarray) -> float:
    """Of the first `CUT`; of equal scores the one that was shown first, which says nothing here."""
    order = np.argsort(-scores, kind="stable")[:CUT]
    weights = 1 / np.log2(2 + np.arange(len(clicked)))
    return float(clicked[order] @ weights[: len(order)] / weights[: min(CUT, clicked.sum())].sum())


def judged(methods: dict[str, Score], later: Sequence[Shown]) -> list[Row]:
    users = [shown.user_id for shown in later]
    found = {
        name: [(auc(s, x.clicked), ndcg(s, x.clicked)) for x in later for s in [score(x)]]
        for name, score in methods.items()
    }
    base = np.array(found[BASE])[:, 0]
    return [
        Row(name, *(clustered(column.tolist(), users) for column in (*np.array(pairs).T, np.array(pairs)[:, 0] - base)))
        for name, pairs in found.items()
    ]


def run(data: Path, config: FeatureConfig) -> tuple[list[Row], dict[str, int]]:
    with tempfile.TemporaryDirectory() as folder:
        shown, transitions = prepared(config, data, Path(folder))
    until_ms = shown[int(TRAINED_SHARE * len(shown))].time_ms
    earlier = [each for each in shown if each.time_ms < until_ms]
    later = [each for each in shown if each.time_ms >= until_ms and 0 < each.clicked.sum() < len(each.clicked)]
    training = initialised(config, transitions, until_ms)
    snapshot, width = training.snapshot, _features(config)
    rng = np.random.default_rng(1)
    methods: dict[str, Score] = {
        "random": lambda each: rng.random(len(each.items)),
        BASE: popularity,
        "FTRL": linear(Ftrl(width), config, snapshot, earlier),
        "LinUCB": linear(LinUcb(width), config, snapshot, earlier),
        "DRN": drn(config, training),
    }
    sizes = {
        "lists": len(shown),
        "pages learned from": training.progress.ingested,
        "updates": training.progress.updates,
    }
    return judged(methods, later), {**sizes, "lists judged": len(later), "users": len({s.user_id for s in later})}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="EB-NeRD folder")
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    options = parser.parse_args()
    rows, sizes = run(options.data, load_config(CONFIG))
    print(", ".join(f"{name}: {n}" for name, n in sizes.items()))
    print(f"{'':<12}{'AUC':<24}{f'nDCG@{CUT}':<24}AUC ahead of {BASE}")
    for row in rows:
        print(f"{row.method:<12}{row.auc!s:<24}{row.ndcg!s:<24}{row.auc_ahead!s}")
    if options.json:
        options.json.write_text(json.dumps(msgspec.to_builtins([sizes, *rows]), indent=1))


if __name__ == "__main__":
    main()
