"""Of a feed whose best action is 1.3: by the baseline and two learned policies in turn, four to a session."""

from __future__ import annotations

import random

from pipeline.records import Action, DecidedBy, Decision, Ending, State, Transition


def transition(i: int) -> Transition:
    rng = random.Random(i)
    policy = ("base", "p1", "p2")[i % 3]
    by = DecidedBy.BASELINE if policy == "base" else DecidedBy.POLICY
    action, last = 1.0 if policy == "base" else rng.uniform(0, 2), i % 4 == 3

    def state() -> State:
        return State(user={"x": rng.gauss(3, 2), "city": rng.randrange(20)})

    return Transition(
        id=f"r{i}@1",
        request_id=f"r{i}",
        user_id="u",
        session_id=f"s{i // 4}",
        time_ms=i,
        page_index=i % 4,
        state=state(),
        decision=Decision(by, policy, "all", (Action("a", action),)),
        reward=1 - (action - 1.3) ** 2 + rng.gauss(0, 1),
        reward_version="1",
        discount=0.0 if last else 1.0,
        next_state=None if last else state(),
        ending=Ending.LEAVE if last else None,
    )
