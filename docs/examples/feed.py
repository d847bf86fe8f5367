"""A feed in miniature, for the config beside it and a loop that `pageturn up` has started.

python feed.py RUN VISITS
"""

import random
import sys
import time
import uuid
from pathlib import Path

import grpc

from pageturn.run import open_run
from pipeline.agent.client import AgentClient, Reporter
from pipeline.agent.requests import PageRequest
from pipeline.records import SCHEMA_VERSION, Feedback, FeedbackKind, Item

agent = open_run(Path(sys.argv[1])).agent  # "HOST:PORT"; another one at each start of a run
visits = int(sys.argv[2])
draw = random.Random(1)


def next_page(user: str, session: str, index: int) -> PageRequest:
    """Five recipes with the ranker's two scores, and the raw features that the config names."""
    items = tuple(
        Item(f"r{draw.randrange(1000)}-{n}", click_score=draw.uniform(0.02, 0.2), pay_score=draw.uniform(0.0, 0.1))
        for n in range(5)
    )
    return PageRequest(
        request_id=f"{session}-{index}", user_id=user, session_id=session, page_index=index, items=items,
        user={"ctr_7d": 0.08}, context={"hour": time.gmtime().tm_hour}, page={"page_index": index},
    )  # fmt: skip


def did(page: PageRequest, kind: FeedbackKind, item_id: str | None = None) -> Feedback:
    """What the user did on the page, now: the page's ids, and an id of its own, which a repetition keeps."""
    return Feedback(
        schema_version=SCHEMA_VERSION, event_id=uuid.uuid4().hex, request_id=page.request_id, user_id=page.user_id,
        session_id=page.session_id, time_ms=time.time_ns() // 1_000_000, kind=kind, item_id=item_id,
    )  # fmt: skip


with AgentClient(agent) as client:
    reporter = Reporter(client)
    unanswered = 0
    for visit in range(visits):
        user, session = f"u{draw.randrange(200)}", uuid.uuid4().hex
        for index in range(3):
            page = next_page(user, session, index)
            try:
                answer = client.decide(page, timeout_s=0.25)
            except grpc.RpcError:  # no agent in time: a feed shows its own order, and reports nothing of the page
                unanswered += 1
                continue
            if visit < 3:
                action = [round(each.value, 3) for each in answer.actions]
                by = f"{answer.policy} version {answer.model_version or '-'}"
                print(f"{answer.bucket}: {by}, a = {action}, {answer.item_ids}")
            if draw.random() < 0.3:
                reporter(did(page, FeedbackKind.CLICK, answer.item_ids[0]))
            if index == 2:
                reporter(did(page, FeedbackKind.LEAVE))
        time.sleep(0.05)
    left = reporter.close(timeout_s=10.0)
    print(f"{visits} visits; pages without an answer: {unanswered}; events not acknowledged: {left}")
