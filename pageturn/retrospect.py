"""The newest sessions of a policy, and what one of its versions would have done on each of their pages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from pipeline.agent.agent import Server
from pipeline.agent.asking import ask_means, usable_means
from pipeline.agent.policies import Pinned, Pinner
from pipeline.agent.reasons import Trouble
from pipeline.config.schema import Bits, FeatureConfig
from pipeline.errors import PageturnError
from pipeline.events import decode
from pipeline.features.encoder import Encoder
from pipeline.features.inputs import DENSE
from pipeline.logs.log import EPISODES, EventLog
from pipeline.records import Ending, Episode, Step
from pipeline.stores.published import Served, read_pointers, read_version
from pipeline.stores.store import KeyValueStore
from pipeline.streaming.outputs import identity, read_all
from pipeline.transitions.rewards import reward_version

OTHER_CONFIG, OTHER_REWARD = "other_config", "other_reward"
_FIRST_REACH = 4  # episodes per session that is asked for, from the end of each partition
_AT_ONCE = 256  # states per call of the model
_TIMEOUT_S = 30.0


class EvaluationError(PageturnError):
    """A policy's log, or its version, does not say what is needed; says what is missing."""


# Sessions --------------------------------------------------------------------------------------------------------


class Read(NamedTuple):
    sessions: dict[str, list[Episode]]
    episodes: int  # of all policies
    all: bool  # that are on the log

    @property
    def said(self) -> str:
        return f"all {self.episodes:,} episodes on the log" if self.all else f"the newest {self.episodes:,} episodes"


def newest_sessions(log: EventLog, policy: str, count: int, most: int) -> Read:
    """The newest `count` of those that `policy` decided a page of, by when the log had them whole: as far back as it
    takes, but no more than `most` episodes of all policies, as evenly from each partition as they are there.

    By the times of their last pages the newest would be those whose users said that they left, for of others it is only
    known a session gap later, and those that still go on. The latter, whose last episode was cut at its maximal length,
    are left out: of the longest sessions they would be the beginnings. What is behind the place where reading began, or
    was deleted, may be the beginning of a session: one that does not begin with its first page is left out there.
    """
    ends = log.end_offsets(EPISODES)
    starts = {partition: log.start_offset(EPISODES, partition) for partition in ends}
    limit = max(1, most // max(1, len(ends)))
    reach = min(_FIRST_REACH * count, limit)
    while True:
        since = {partition: max(starts[partition], end - reach) for partition, end in ends.items()}
        found, episodes = _sessions(log, policy, since)
        if len(found) >= count or since == starts or reach == limit:
            break
        reach = min(4 * reach, limit)
    newest = sorted(found, key=lambda name: (*found[name].known, name))[-count:]
    return Read({name: found[name].episodes for name in newest}, episodes, since == starts)


class _Session:
    """As far as it was read."""

    def __init__(self) -> None:
        self.episodes: list[Episode] = []
        self.known = (0, 0)  # when the log had it: the stamp of the last episode, and its last page's time

    def add(self, episode: Episode, stamp_ms: int) -> None:
        self.episodes.append(episode)
        self.known = max(self.known, (stamp_ms, episode.steps[-1].time_ms))

    @property
    def goes_on(self) -> bool:
        return max(self.episodes, key=lambda episode: episode.steps[-1].time_ms).ending is Ending.TRUNCATED


def _sessions(log: EventLog, policy: str, since: Mapping[int, int]) -> tuple[dict[str, _Session], int]:
    """And how many episodes there were."""
    sessions: dict[str, _Session] = {}
    seen, torn = set(), set()
    for record in read_all(log, EPISODES, since):
        name = identity(EPISODES, record.payload)
        if name is None or name in seen:
            continue
        seen.add(name)
        episode = decode(record.payload, Episode)
        if any(step.decision.policy == policy for step in episode.steps):
            begins = episode.session_id not in sessions
            sessions.setdefault(episode.session_id, _Session()).add(episode, record.appended_at_ms)
            if begins and since[record.partition] > 0 and episode.steps[0].page_index > 0:
                torn.add(episode.session_id)
    return {name: each for name, each in sessions.items() if name not in torn and not each.goes_on}, len(seen)


def comparable(
    sessions: Mapping[str, Sequence[Episode]], config: FeatureConfig, config_sha: str
) -> tuple[list[Episode], Counter[str]]:
    """The episodes of sessions with states, actions and rewards as the config says; how many others, and why."""
    kept: list[Episode] = []
    left_out: Counter[str] = Counter()
    for episodes in sessions.values():
        reason = _difference(episodes, reward_version(config.reward), config_sha)
        if reason is None:
            kept.extend(episodes)
        else:
            left_out[reason] += 1
    return kept, left_out


def _difference(episodes: Sequence[Episode], rewards: str, config_sha: str) -> str | None:
    if any(step.decision.config_sha not in (None, config_sha) for episode in episodes for step in episode.steps):
        return OTHER_CONFIG
    return OTHER_REWARD if any(episode.reward_version != rewards for episode in episodes) else None


# A version -------------------------------------------------------------------------------------------------------


class Version(NamedTuple):
    pinned: Pinned
    made_ms: int | None  # None: there is no record of it


def find_version(
    config: FeatureConfig, store: KeyValueStore, server: Server, policy: str, version: int | None
) -> Version:
    """With its own parameters; None is what is served. Raises: EvaluationError."""
    prefix = config.kv_prefix
    stable = read_pointers(store, prefix, (policy,))[policy].stable
    number = version if version is not None else stable.version if stable else None
    if number is None:
        message = f"{policy}: expected a version that is served, found none; `pageturn bootstrap` publishes the first"
        raise EvaluationError(message)
    record = read_version(store, prefix, policy, number)
    served = stable if record is None else Served(number, record.parameters)
    if served is None or served.version != number:
        message = f"{policy}: expected a version that was published, found no record of version {number}"
        raise EvaluationError(message)
    try:
        pinned = Pinner(config, store, server, _TIMEOUT_S).pin(policy, served)
    except Trouble as trouble:
        raise _not_answering(policy, number, trouble) from trouble
    return Version(pinned, record.created_ms if record else None)


class Asked(NamedTuple):
    means: np.ndarray  # [n, d]
    states: np.ndarray  # [n, f] the numbers of a state: no ids, no sequences


def ask_all(config: FeatureConfig, encoder: Encoder, server: Server, pinned: Pinned, steps: Sequence[Step]) -> Asked:
    """Raises: EvaluationError; FeatureError of a state that cannot be encoded any more."""
    parts = [_ask(config, encoder, server, pinned, some) for some in _batches(steps)]
    means, states = ([part[k] for part in parts] for k in (0, 1))
    return Asked(np.concatenate(means), np.concatenate(states))


def _batches(steps: Sequence[Step]) -> Iterator[Sequence[Step]]:
    return (steps[i : i + _AT_ONCE] for i in range(0, len(steps), _AT_ONCE))


def _ask(
    config: FeatureConfig, encoder: Encoder, server: Server, pinned: Pinned, steps: Sequence[Step]
) -> tuple[np.ndarray, np.ndarray]:
    rows = encoder.stack([encoder.prepare(step.state) for step in steps])
    inputs = encoder.finish(rows, pinned.snapshot)
    try:
        answered = ask_means(server, pinned, inputs, config.action, _TIMEOUT_S)
        means = [usable_means(row, config.action) for row in answered]
    except Trouble as trouble:
        raise _not_answering(pinned.policy, pinned.served.version, trouble) from trouble
    return np.array(means, np.float64), _numbers(config, inputs, len(steps))


def _numbers(config: FeatureConfig, inputs: Mapping[str, np.ndarray], count: int) -> np.ndarray:
    wanted = {DENSE, *(feature.name for feature in config.features if isinstance(feature, Bits))}
    columns = [inputs[name].reshape(count, -1) for name in inputs if name in wanted]
    return np.column_stack([np.zeros((count, 0)), *columns]).astype(np.float64)


def _not_answering(policy: str, version: int, trouble: Trouble) -> EvaluationError:
    hint = "a server answers for the versions that it has loaded: `pageturn versions` names them"
    return EvaluationError(f"{policy} version {version} cannot be asked: {trouble}; {hint}")
