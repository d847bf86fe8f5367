"""Policies that come and go: what stays is the same to the last bit, and who is new is the baseline."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from pipeline.config.schema import FeatureConfig, Policy, Publish
from pipeline.events import encode
from pipeline.learning.ddpg import Ddpg
from pipeline.learning.trainer import train
from pipeline.learning.training import Training
from pipeline.logs.files import FileLog
from pipeline.logs.log import TRANSITIONS, Entry

CHANGES = {
    "one more": (("p1", "p2"), ("p1", "p2", "p3")),
    "one less": (("p1", "p2"), ("p2",)),
    "one for another": (("p1", "p2"), ("p3", "p2")),
    "another order": (("p1", "p2"), ("p2", "p1")),
    "none any more": (("p1", "p2"), ()),
    "the first": ((), ("p1",)),
}


SETTINGS = {
    "default": {},
    "odd": {"towers": "separate", "target": "periodic", "target_period": 7},
    "argmax": {"actor": "argmax", "prior_cost": 0.1, "target": "polyak", "value_learning_rate": 0.01},
}


@pytest.fixture(params=list(SETTINGS.values()), ids=list(SETTINGS))
def config_of(make_config, request) -> Callable[[tuple[str, ...]], FeatureConfig]:
    def config_of(policies: tuple[str, ...]) -> FeatureConfig:
        named = tuple(Policy(name, "learned") for name in policies)
        whole = {"policies": (Policy("base", "baseline"), *named), "publish": Publish(every=10**9)}
        small = {"replay": 100, "updates_per_transition": 0.125, "actor_after": 20, "seeds": 2, "holdout": 0.0}
        return make_config(whole, **small, actor_learning_rate=0.01, **request.param)

    return config_of


@pytest.fixture
def url(tmp_path: Path, make_transition) -> Callable[[range], str]:
    """Of a log that the transitions were appended to."""
    log = FileLog(tmp_path / "log")
    log.create(TRANSITIONS, 2)
    log.close()

    def append(numbers: range) -> str:
        log = FileLog(tmp_path / "log")
        log.append(TRANSITIONS, [Entry(f"s{i // 4}", encode(make_transition(i)), 1_000 + i) for i in numbers])
        log.close()
        return f"file://{tmp_path / 'log'}"

    return append


def learned(config: FeatureConfig, url: str, work_dir: Path) -> Training:
    seen: list[Training] = []
    train(config, url, work_dir, until_idle=True, export=lambda training, _: seen.append(training))
    return seen[-1]


def slices(learner: Ddpg, policies: tuple[str, ...]) -> Iterator[tuple[str, str, np.ndarray]]:
    """Each variable's place of each policy, "" for what belongs to none."""
    networks = [learner.online, learner.target.networks]
    adam = learner.actor_adam
    heads = [v for n in networks for part in (n.advantage_heads, n.actor.heads) for v in part.variables]
    by_id = {id(v): 1 for v in (*heads, *adam.first, *adam.second)}
    by_id |= {id(v): 1 for v in _slots_of(learner, learner.advantage_heads.variables)}
    by_id |= {id(adam.beta1_power): 0, id(adam.beta2_power): 0}
    by_id |= {} if learner.prior is None else {id(learner.prior.updates): 0}
    for number, variable in enumerate(learner.variables):
        axis = by_id.get(id(variable))
        if axis is None:
            yield f"{number} {variable.name}", "", variable.numpy()
        else:
            for policy, value in zip(policies, np.moveaxis(variable.numpy(), axis, 0), strict=True):
                yield f"{number} {variable.name}", policy, value


def _slots_of(learner: Ddpg, variables: tuple[tf.Variable, ...]) -> Iterator[tf.Variable]:
    adam, wanted = learner.critic_adam, {id(v) for v in variables}
    for variable, *slots in zip(learner.critic_variables, adam.first, adam.second, strict=True):
        if id(variable) in wanted:
            yield from slots


@pytest.mark.parametrize("change", CHANGES)
def test_what_stays_is_the_same_to_the_last_bit(config_of, url, tmp_path: Path, change: str) -> None:
    before, after = CHANGES[change]
    former = learned(config_of(before), url(range(200)), tmp_path / "work")
    now = learned(config_of(after), url(range(200, 201)), tmp_path / "work")  # one more, and no round
    fresh = Ddpg(config_of(after))
    assert now.progress.updates == former.progress.updates > 0
    kept = {(name, policy): value for name, policy, value in slices(former.learner, before)}
    new = {(name, policy): value for name, policy, value in slices(fresh, after)}
    compared = 0
    for name, policy, value in slices(now.learner, after):
        expected = new if policy and policy not in before else kept
        np.testing.assert_array_equal(value, expected[name, policy], err_msg=f"{name} {policy}")
        compared += 1
    assert compared >= 22


def test_who_is_new_is_the_baseline_and_waits_for_data_of_its_own(config_of, url, tmp_path: Path) -> None:
    state = {"dense": np.linspace(-2, 2, 50, dtype="f4")[:, None]}
    log = url(range(200))
    former = learned(config_of(("p1", "p2")), log, tmp_path / "work")
    assert former.progress.explored == {"p1": 67, "p2": 66}
    learned(config_of(("p2",)), url(range(200, 201)), tmp_path / "work")  # p1 goes ...
    now = learned(config_of(("p1", "p2")), url(range(201, 202)), tmp_path / "work")  # ... and comes back
    assert now.progress.explored == {"p2": 67}
    action = now.learner.evaluate(state).action.numpy()
    np.testing.assert_array_equal(action[:, 0], np.ones((2, 50, 1), "f4"))
    np.testing.assert_array_equal(action[:, 1], former.learner.evaluate(state).action.numpy()[:, 1])
    assert (action[:, 1] != 1).any()
    later = learned(config_of(("p1", "p2")), url(range(202, 400)), tmp_path / "work")
    assert (later.learner.evaluate(state).action.numpy()[:, 0] != 1).any()
    assert {"advantage_loss/p1", "advantage_loss/p2"} <= later.losses.keys()


def test_figures_of_a_policy_that_went_are_forgotten(config_of, url, tmp_path: Path) -> None:
    former = learned(config_of(("p1", "p2")), url(range(200)), tmp_path / "work")
    now = learned(config_of(("p2",)), url(range(200, 201)), tmp_path / "work")
    assert {name for name in former.losses if "p1" not in name} == now.losses.keys()
    assert former.run_id != now.run_id
