"""Which model servers a publish has to reach: all that a name has at the time."""

from __future__ import annotations

import pytest

from pipeline.serving.errors import Unavailable
from pipeline.serving.fleet import Fleet, addresses_of


class Client:
    def __init__(self, target: str) -> None:
        self.target, self.closed = target, False

    def close(self) -> None:
        self.closed = True


def test_a_name_stands_for_all_that_have_it_and_is_asked_again_at_every_look() -> None:
    there = ["10.0.0.1:8500", "10.0.0.2:8500"]
    asked = []

    def resolve(name: str, port: int) -> list[str]:
        asked.append((name, port))
        return list(there)

    fleet = Fleet(["dns:///tf-serving:8500", "other:1"], resolve=resolve, connect=lambda address, _: Client(address))  # type: ignore[arg-type]
    first, second, other = fleet
    assert [client.target for client in (first, second, other)] == [*there, "other:1"]
    there[:] = ["10.0.0.2:8500", "10.0.0.3:8500"]
    kept, new, same = fleet
    assert (kept is second, same is other, new.target) == (True, True, "10.0.0.3:8500")
    assert [client.closed for client in (first, second, new, other)] == [True, False, False, False]
    fleet.close()
    assert kept.closed
    assert new.closed
    assert asked == [("tf-serving", 8500)] * 2


def test_a_server_that_is_named_twice_is_one() -> None:
    fleet = Fleet(["a:1", "a:1"], connect=lambda address, _: Client(address))  # type: ignore[arg-type]
    assert [client.target for client in fleet] == ["a:1"]


def test_a_name_that_nobody_has_is_no_server_and_not_an_empty_fleet() -> None:
    with pytest.raises(Unavailable, match=r"dns:///nobody\.invalid:8500: no model server has this name"):
        iter(Fleet(["dns:///nobody.invalid:8500"]))


def test_addresses_are_those_that_the_system_finds() -> None:
    found = addresses_of("localhost", 8500)
    assert found == tuple(sorted(set(found)))
    assert set(found) & {"127.0.0.1:8500", "[::1]:8500"}
