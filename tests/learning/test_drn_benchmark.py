"""The news benchmark: what its figures mean, what DRN is taught from, and that rows are run once."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from msgspec import structs

from benchmarks import drn
from benchmarks.news import table, telling
from benchmarks.news.history import History
from benchmarks.news.methods import best_first
from benchmarks.news.plans import METHODS, Ucb, maker
from benchmarks.news.ranking import DrnMethod, Plan
from benchmarks.news.record import Record, Row, key, read_record, write_record
from benchmarks.news.running import Day, Run, Scale, ils, ndcg, run
from benchmarks.shares import BenchmarkError
from pipeline.ranking.activeness import EXACT
from pipeline.ranking.comparing import Rule
from pipeline.simulation.news.feed import NewsFeed, Requests
from pipeline.simulation.news.params import Params, World

TINY = Scale(users=40, warm_days=1, days=1)
COARSE = Params(tick_min=10)
SMALL = {"hidden": (8,), "batch": 16, "updates": 2, "first_updates": 4}


def requests(now_min: int, *users: int, activeness: float = 0.5) -> Requests:
    n = len(users)
    features = np.full((n, 2), now_min, np.float32), np.full((n, 4, 3), now_min, np.float32)
    exists = np.ones((n, 4), bool)
    return Requests(now_min, np.array(users), np.zeros(n, int), np.zeros((n, 4), int), exists, *features,
                    np.full(n, activeness))  # fmt: skip


def page(history: History, number: int, beta: float = 0.0) -> dict[str, np.ndarray]:
    return {name: x[0, 0] for name, x in history.pages(np.array([number]), beta)._asdict().items()}


SHOWN = np.array([[2, -1]])
CLICKED = np.array([[True, False]])


@pytest.fixture
def history() -> History:
    made = History(3, users=5, places=2, requests=requests(0, 1))
    made.arrive(requests(10, 1))
    made.add(requests(10, 1, activeness=0.8), SHOWN, CLICKED)
    return made


def test_a_page_is_complete_with_its_users_next_request_and_the_activeness_of_that(history: History) -> None:
    assert history.fresh().tolist() == []
    history.arrive(requests(20, 2))
    assert history.fresh().tolist() == []
    history.arrive(requests(30, 1, activeness=0.9))
    assert history.fresh().tolist() == [0]
    found = page(history, 0, beta=0.5)
    np.testing.assert_allclose(found["reward"], [1.45, 0.45])
    np.testing.assert_array_equal(found["shown"], [True, False])
    assert (found["discount"], found["user"][0], found["next_user"][0]) == (1, 10, 30)
    assert found["next_exists"].all()
    assert (found["items"] == [[10] * 3, [0] * 3]).all()


def test_a_page_of_who_stays_away_is_given_up_with_what_is_left_of_their_activeness(history: History) -> None:
    history.expire(10 + 1440)
    assert history.fresh().tolist() == []
    history.expire(11 + 1440)
    assert history.fresh().tolist() == [0]
    found = page(history, 0, beta=1.0)
    np.testing.assert_allclose(found["reward"], [1 + 0.8 * EXACT.kept(86_400_000), 0.8 * EXACT.kept(86_400_000)])
    assert found["discount"] == 0
    assert not found["next_exists"].any()
    history.arrive(requests(3000, 1))
    assert history.fresh().tolist() == []


def test_who_comes_back_too_late_was_given_up_as_well(history: History) -> None:
    history.arrive(requests(11 + 1440, 1))
    assert history.fresh().tolist() == [0]
    assert page(history, 0)["discount"] == 0


def test_the_ring_forgets_the_oldest(history: History) -> None:
    for i in range(3):
        history.add(requests(11 + i, 2 + i), SHOWN, CLICKED)
    history.arrive(requests(40, 1))  # whose page is overwritten
    assert history.fresh().tolist() == []
    history.arrive(requests(41, 2, 3, 4))
    assert history.fresh().tolist() == [1, 2, 3]
    assert set(history.sample(np.random.default_rng(0), 2, 50).ravel().tolist()) == {1, 2, 3}


def test_only_complete_pages_are_sampled(history: History) -> None:
    history.add(requests(11, 2), SHOWN, CLICKED)
    history.arrive(requests(20, 2))
    assert set(history.sample(np.random.default_rng(0), 2, 50).ravel().tolist()) == {1}


def test_ndcg_by_hand() -> None:
    clicked = np.array([[1, 0, 0], [0, 0, 1], [0, 0, 0], [0, 1, 1]], bool)
    weight = 1 / np.log([2, 3, 4])
    expected = [1, weight[2] / weight[0], 0, (weight[1] + weight[2]) / (weight[0] + weight[1])]
    np.testing.assert_allclose(ndcg(clicked), expected)


def test_ils_by_hand() -> None:
    vectors = np.array([[[1, 0], [1, 0], [0, 1]], [[1, 0], [1, 0], [1, 0]], [[1, 0], [0, 1], [0.6, 0.8]]], float)
    there = np.array([[True] * 3, [True, True, False], [True] * 3])
    np.testing.assert_allclose(ils(vectors, there), [1 / 3, 1, (0 + 0.6 + 0.8) / 3])


def test_best_first_leaves_out_what_is_not_there() -> None:
    found = best_first(np.array([[0.1, 9.0, 0.3, 0.3]]), np.array([[True, False, True, True]]), 4)
    np.testing.assert_array_equal(found, [[2, 3, 0, -1]])


def warmed(plan: Plan) -> tuple[DrnMethod, NewsFeed]:
    method = DrnMethod(plan, 1, 60, 10, NewsFeed(COARSE, 1, 60, 2).requests())
    feed = NewsFeed(COARSE, 1, 60, 2)
    while feed.now_min < 700:
        asked = feed.requests()
        shown = best_first(np.random.default_rng(feed.now_min).random(asked.items.shape), asked.exists, 10)
        method.heard(asked, shown, feed.show(asked, shown))
    method.begin()
    return method, feed


def serve(method: DrnMethod, feed: NewsFeed, minutes: int) -> None:
    end_min = feed.now_min + minutes
    while feed.now_min < end_min:
        asked = feed.requests()
        shown = method.show(asked, 10)
        method.heard(asked, shown, feed.show(asked, shown))


@pytest.mark.parametrize("minor", ["dbgd", "gradient", "es"])
def test_a_minor_update_outlives_the_major_update_that_was_under_way(minor: str) -> None:
    method, feed = warmed(Plan(minor=minor, rule=Rule(min_decisive=1, confidence=0.0), eta=1.0, **SMALL))
    gained = 0.0
    for _ in range(12):  # until a candidate has won
        before = method.weights
        method.major(feed.now_min)
        trained = method.pending
        serve(method, feed, 60)
        method.minor(feed.now_min)
        assert method.pending is None
        assert (trained["advantage_last_kernel"] != before["advantage_last_kernel"]).any()
        gained += sum(np.abs(w - trained[name]).sum() for name, w in method.weights.items())
        if gained:
            break
    assert gained > 0, method.updates()


def test_without_a_minor_update_the_major_one_is_served_as_it_is() -> None:
    method, feed = warmed(Plan(**SMALL))
    method.major(feed.now_min)
    trained = method.pending
    method.minor(feed.now_min)
    assert all((method.weights[name] == trained[name]).all() for name in trained)


def run_of(*ctr: float) -> Run:
    return Run(tuple(Day(x, 0, 0, 0, 0, 0, 0, 0) for x in ctr), {})


def test_an_ordering_is_judged_on_the_differences_of_the_same_seeds() -> None:
    runs = {"a": {1: run_of(0.2, 0.4), 2: run_of(0.5), 3: run_of(0.9)}, "b": {1: run_of(0.2), 2: run_of(0.4)}}
    found = table.difference(runs, table.Ordering("ctr", "a", "b"))
    assert found.mean == pytest.approx(0.1)
    assert found.high - found.mean < 1e-9
    assert table.verdict(found) == "appears"
    assert table.verdict(table.difference(runs, table.Ordering("ctr", "b", "a"))) == "reversed"
    assert table.verdict(table.difference({"a": runs["a"], "b": {1: run_of(1)}}, table.Ordering("ctr", "a", "b"))) == (
        "not told apart"
    )


def test_rows_are_run_once_and_reported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(drn, "QUICK", TINY)
    monkeypatch.setattr(drn, "World", lambda: World(COARSE))
    monkeypatch.setattr(drn, "METHODS", {"LinUCB": Ucb(), "DN": Plan(gamma=0.0, beta=0.0, **SMALL)})
    asked = ["--quick", "--json", str(tmp_path / "there" / "r.json")]
    drn.main(asked)
    first = capsys.readouterr().out
    assert first.count(" s\n") == 4
    assert "DN               > LinUCB" in first
    drn.main(asked)
    again = capsys.readouterr().out
    assert again == first[first.index("simulated news") :]
    result = msgspec.json.decode((tmp_path / "there" / "r.json").read_bytes(), type=Record)
    assert {(row.method, row.seed) for row in result.rows} == {(name, seed) for name in drn.METHODS for seed in (1, 2)}
    assert {row.method: row.settings["gamma"] for row in result.rows if "gamma" in row.settings} == {"DN": 0.0}
    assert all(len(row.run.days) == 1 for row in result.rows)
    assert all(row.run.days[0].ctr > 0 for row in result.rows)


@pytest.mark.parametrize("name", ["random", "LR (FTRL)", "LinUCB"])
def test_what_does_without_a_network_ranks_as_well(name: str) -> None:
    scale = Scale(users=60, warm_days=1, days=1)
    days = run(maker(METHODS[name]), COARSE, scale, seed=1).days
    assert (days[0].ctr > 0.09) == (name != "random")


@pytest.mark.parametrize("text", ["{}\n", "figures"])
def test_a_file_of_something_else_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "rows.json").write_text(text)
    with pytest.raises(BenchmarkError, match=r"rows\.json: expected what `python -m benchmarks\.drn` writes"):
        read_record(tmp_path / "rows.json", Record.empty(World(), TINY))


def test_figures_of_another_scale_are_not_mixed_with_these(tmp_path: Path) -> None:
    write_record(tmp_path / "rows.json", Record.empty(World(), TINY))
    assert read_record(tmp_path / "rows.json", Record.empty(World(), TINY)).rows == ()
    with pytest.raises(BenchmarkError, match=r'rows\.json: expected figures of .*"users":1000.*"users":40'):
        read_record(tmp_path / "rows.json", Record.empty(World(), Scale()))


def row(method: str, seed: int, ctr: float, key: str = "k") -> Row:
    return Row(key, method, seed, None, run_of(ctr), 1.0)


def test_a_row_with_other_settings_takes_the_place_of_the_old_one() -> None:
    record = Record.empty(World(), TINY).with_row(row("DN", 1, 0.1, "old")).with_row(row("DN", 2, 0.2, "other"))
    record = record.with_row(row("DN", 1, 0.3, "new"))
    assert (record.find("old"), record.find("new")) == (None, row("DN", 1, 0.3, "new"))
    assert {each.seed: each.run.days[0].ctr for each in record.rows} == {1: 0.3, 2: 0.2}


def test_what_a_row_depends_on_is_in_its_key() -> None:
    plain, other = Plan(), Plan(double=False)
    keys = {key(World(), scale, "DDQN", seed, plan) for scale in (TINY, Scale()) for seed in (1, 2)
            for plan in (plain, other, None)}  # fmt: skip
    assert len(keys) == 12
    assert key(World(), TINY, "LinUCB", 1, Ucb(0.1)) != key(World(), TINY, "LinUCB", 1, Ucb(0.2))


def test_the_rows_of_the_papers_table_are_there_and_those_that_readers_ask_for() -> None:
    assert set(table.PAPER) < set(METHODS)
    assert {"random", "DQN", "DDQN+U+gradient", "DDQN+U+ES"} == set(METHODS) - set(table.PAPER)
    assert {o.higher for o in table.CLAIMS + table.QUESTIONS} <= set(METHODS)
    for ordering in table.CLAIMS:
        place = table.FIGURES.index(ordering.figure)
        assert table.PAPER[ordering.higher][place] > table.PAPER[ordering.lower][place], ordering
    for name, settings in METHODS.items():
        if isinstance(settings, Plan):
            assert (settings.gamma > 0, settings.beta > 0) == (name != "DN", "+U" in name), name


def test_plain_dqn_values_what_it_has_chosen_by_the_same_network() -> None:
    asked = NewsFeed(COARSE, 1, 60, 2).requests()
    learners = [maker(METHODS[name])(1, 60, 10, asked)._learner.settings for name in ("DQN", "DDQN")]
    assert [(each.gamma, each.double) for each in learners] == [(0.4, False), (0.4, True)]


def test_all_orderings_of_the_papers_table_are_counted() -> None:
    runs = {name: {seed: run_of(figures[0] + 1e-6 * seed) for seed in (1, 2)} for name, figures in table.PAPER.items()}
    assert table.tally(runs, 0, "ctr") == {"appears": 21, "reversed": 0, "not told apart": 0}
    runs["LR (FTRL)"] = {seed: run_of(1 + 1e-6 * seed) for seed in (1, 2)}
    assert table.tally(runs, 0, "ctr") == {"appears": 15, "reversed": 6, "not told apart": 0}
    assert table.tally(runs, 1, "precision5") == {"appears": 0, "reversed": 0, "not told apart": 21}


def test_what_was_found_is_written_between_the_marks_of_the_docs(tmp_path: Path) -> None:
    docs = tmp_path / "drn.md"
    docs.write_text("before\n<!-- figures: begin -->\nthe last ones\n<!-- figures: end -->\nafter\n")
    with pytest.raises(BenchmarkError, match="found none"):
        telling.write(Record.empty(World(), TINY), docs)
    rows = [row(name, seed, 0.1 * seed + (name == "DDQN")) for name in ("DN", "DDQN") for seed in (1, 2)]
    telling.write(structs.replace(Record.empty(World(), TINY), rows=tuple(rows)), docs)
    told = docs.read_text()
    assert told.startswith("before\n<!-- figures: begin -->\nSimulated news v1")
    assert told.endswith("\n<!-- figures: end -->\nafter\n")
    assert "| click rate | DDQN > DN | appears | +1.0000 [+1.0000, +1.0000] |" in told
    assert "*appears*: DDQN over DN in click rate; *reversed*: none; *not told apart*: none." in told
    assert "| ILS | DDQN > DN | not told apart |" not in told  # only what is talked about
    assert "the last ones" not in told
    assert telling.DOCS.read_text().count("<!-- figures: begin -->") == 1


def test_only_seeds_that_all_methods_have_been_run_with_are_told() -> None:
    there = [row("DN", 1, 0.1), row("DDQN", 1, 0.2), row("DN", 2, 0.3)]
    assert telling.complete(there) == there[:2]
    assert telling.complete(there[1:]) == there[1:]
