from __future__ import annotations

from pipeline.agent.memory import RetryMemory
from pipeline.agent.requests import PageDecision, PageRequest
from pipeline.records import DecidedBy, Decision, Item


def request(request_id: str, **changes) -> PageRequest:
    fields = {"user_id": "u", "session_id": "s", "page_index": 0, "items": (Item("x"),), **changes}
    return PageRequest(request_id, **fields)


def decision(request_id: str) -> PageDecision:
    return PageDecision(request_id, (0,), ("x",), Decision(DecidedBy.BASELINE, "base", "control"))


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_the_first_decision_stands():
    memory = RetryMemory(10, 10, 60.0, Clock())
    first, second = decision("r"), decision("r")
    assert memory.recall(request("r")) is None
    assert memory.settle(request("r"), first) is first
    assert memory.settle(request("r"), second) is first
    assert memory.recall(request("r")) is first


def test_decisions_are_forgotten_after_a_while():
    clock = Clock()
    memory = RetryMemory(10, 10, 60.0, clock)
    memory.settle(request("r"), decision("r"))
    clock.now_s = 60.0
    assert memory.recall(request("r")) is not None
    clock.now_s = 60.1
    assert memory.recall(request("r")) is None
    again = decision("r")
    assert memory.settle(request("r"), again) is again


def test_the_oldest_go_first():
    memory = RetryMemory(2, 10, 60.0, Clock())
    for name in "abc":
        memory.settle(request(name), decision(name))
    assert [memory.recall(request(name)) is not None for name in "abc"] == [False, True, True]


def test_pages_of_many_items_leave_room_for_fewer_of_them():
    """Twenty thousand pages of a thousand items would take two gigabytes."""
    memory = RetryMemory(10, 5, 60.0, Clock())

    def of_two(name: str, user: str = "u") -> PageRequest:
        return request(name, user_id=user, items=(Item("x"), Item("y")))

    for page in (of_two("a"), of_two("b"), of_two("b", "v"), of_two("c")):
        decided = PageDecision(page.request_id, (0, 1), ("x", "y"), Decision(DecidedBy.BASELINE, "base", "control"))
        memory.settle(page, decided)
    assert [memory.recall(page) is not None for page in (of_two("a"), of_two("b", "v"), of_two("c"))] == [
        False, True, True,
    ]  # fmt: skip
    for name in "def":
        memory.settle(request(name), decision(name))
    assert memory.recall(of_two("b", "v")) is None
    assert None not in [memory.recall(page) for page in (of_two("c"), *map(request, "def"))]


def test_an_id_used_for_another_page_is_not_a_retry():
    memory = RetryMemory(10, 10, 60.0, Clock())
    memory.settle(request("r"), decision("r"))
    for other in ({"user_id": "v"}, {"session_id": "t"}, {"page_index": 1}, {"items": (Item("y"),)}):
        assert memory.recall(request("r", **other)) is None
