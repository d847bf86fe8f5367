"""One suite over every key-value store: whoever uses the seam need not know which one answers."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Barrier

import pytest

from pipeline.stores.opening import open_store
from pipeline.stores.store import KeyValueStore, StoreError

NASTY_KEYS = ("gyl:a*b", "gyl:a?b", "gyl:[ab]", "gyl:a\\b", "gyl:a^-b", "gyl:ä漢", "gyl:\U0010ffff", "gyl:%_")


@pytest.fixture(params=["sqlite", pytest.param("redis", marks=pytest.mark.needs_redis)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite://{tmp_path}/store.sqlite"
    url: str = request.getfixturevalue("redis_url")
    store = open_store(url)
    store.delete_many(store.keys(""))
    store.close()
    return url


@pytest.fixture
def store(url: str) -> Iterator[KeyValueStore]:
    store = open_store(url)
    yield store
    store.close()


@pytest.fixture
def lease(request: pytest.FixtureRequest) -> str:
    return f"lease of {request.node.name}"  # tokens outlive every key, so no two tests share a lease


def acquire_within(seconds: float, acquire: Callable[[], int | None]) -> int:
    deadline_s = time.monotonic() + seconds
    while (token := acquire()) is None:
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
    return token


# Values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [b"", b"\x00\xff\r\n", bytes(range(256)), b"x" * 3_000_000])
def test_values_are_arbitrary_bytes(store: KeyValueStore, value: bytes) -> None:
    store.put("gyl:k", value)
    assert store.get("gyl:k") == value


def test_put_replaces_and_an_absent_key_is_none(store: KeyValueStore) -> None:
    assert store.get("gyl:k") is None
    store.put("gyl:k", b"1")
    store.put("gyl:k", b"2")
    assert store.get("gyl:k") == b"2"


def test_get_many_answers_in_the_order_asked_with_repeats_and_gaps(store: KeyValueStore) -> None:
    store.put_many({"gyl:a": b"1", "gyl:b": b""})
    assert store.get_many(["gyl:b", "gyl:-", "gyl:a", "gyl:b"]) == [b"", None, b"1", b""]
    assert store.get_many([]) == []


def test_many_keys_are_written_read_listed_and_deleted(store: KeyValueStore) -> None:
    values = {f"gyl:e:poi:e7:{i:05d}": i.to_bytes(4, "little") for i in range(4_500)}
    store.put_many(values)
    assert store.get_many(list(values)) == list(values.values())
    assert store.keys("gyl:e:") == sorted(values)
    store.delete_many(["gyl:never-there", *list(values)[:10]])
    assert store.delete_prefix("gyl:e:poi:") == 4_490
    assert store.keys("") == []
    store.put_many({})
    store.delete_many([])


@pytest.mark.parametrize("key", NASTY_KEYS)
def test_all_with_a_prefix_go_and_nothing_else(store: KeyValueStore, key: str) -> None:
    store.put_many(dict.fromkeys((*NASTY_KEYS, "gyl:axb", f"{key}:1", f"{key}:2", "other"), b""))
    assert store.delete_prefix(f"{key}:") == 2
    assert store.delete_prefix(f"{key}:") == 0
    assert store.keys("") == sorted((*NASTY_KEYS, "gyl:axb", "other"))


@pytest.mark.parametrize("key", NASTY_KEYS)
def test_a_prefix_is_text_not_a_pattern(store: KeyValueStore, key: str) -> None:
    store.put_many(dict.fromkeys((*NASTY_KEYS, "gyl:axb", "gyl:a", "gyl:aXXb", "other"), b""))
    assert store.keys(key) == [key]
    assert store.keys("gyl:") == sorted((*NASTY_KEYS, "gyl:axb", "gyl:a", "gyl:aXXb"))


def test_what_was_written_is_there_after_opening_again(url: str) -> None:
    first, second = open_store(url), open_store(url)
    first.put("gyl:k", b"v")
    first.close()
    assert second.get("gyl:k") == b"v"
    second.close()


# Compare and set -------------------------------------------------------------------------------------------------


def test_compare_and_set_writes_only_on_what_was_expected(store: KeyValueStore) -> None:
    assert not store.compare_and_set("gyl:k", b"", b"1")  # an empty value is not an absent key
    assert store.compare_and_set("gyl:k", None, b"")
    assert not store.compare_and_set("gyl:k", None, b"2")
    assert store.compare_and_set("gyl:k", b"", b"\x00")
    assert not store.compare_and_set("gyl:k", b"\x01", b"3")
    assert store.get("gyl:k") == b"\x00"


def test_of_threads_that_race_exactly_one_wins(store: KeyValueStore) -> None:
    racers = 8
    start = Barrier(racers)

    def race(me: int) -> bool:
        start.wait()
        return store.compare_and_set("gyl:k", None, str(me).encode())

    with ThreadPoolExecutor(racers) as pool:
        won = list(pool.map(race, range(racers)))
    assert won.count(True) == 1
    assert store.get("gyl:k") == str(won.index(True)).encode()


COUNT_UP = """
import sys
from pipeline.stores.opening import open_store
store = open_store(sys.argv[1], timeout_s=30)
for _ in range(40):
    won = False
    while not won:
        now = store.get("gyl:count")
        won = store.compare_and_set("gyl:count", now, str(int(now or b"0") + 1).encode())
store.close()
"""


def test_processes_that_race_lose_no_update(url: str) -> None:
    processes = [subprocess.Popen([sys.executable, "-c", COUNT_UP, url]) for _ in range(3)]
    assert [process.wait(120) for process in processes] == [0, 0, 0]
    store = open_store(url)
    assert store.get("gyl:count") == b"120"
    store.close()


# Leases ----------------------------------------------------------------------------------------------------------


def test_a_lease_has_one_holder_and_renewal_keeps_its_token(store: KeyValueStore, lease: str) -> None:
    token = store.acquire_lease(lease, "a", 60_000)
    assert token is not None
    assert store.acquire_lease(lease, "b", 60_000) is None
    assert store.acquire_lease(lease, "a", 60_000) == token


def test_a_new_holder_gets_a_higher_token(store: KeyValueStore, lease: str) -> None:
    tokens = []
    for holder in "aba":
        tokens.append(store.acquire_lease(lease, holder, 60_000))
        store.release_lease(lease, "someone else")
        assert store.acquire_lease(lease, "intruder", 60_000) is None
        store.release_lease(lease, holder)
    assert tokens == sorted(set(tokens))


def test_an_expired_lease_is_free_and_even_its_old_holder_gets_a_higher_token(store: KeyValueStore, lease: str) -> None:
    first = store.acquire_lease(lease, "a", 30)
    second = acquire_within(20, lambda: store.acquire_lease(lease, "b", 30))
    acquire_within(20, lambda: store.acquire_lease(lease, "c", 30))
    fourth = acquire_within(20, lambda: store.acquire_lease(lease, "b", 60_000))
    assert first is not None
    assert first < second < fourth


def test_tokens_go_on_rising_after_the_store_was_opened_again(url: str, lease: str) -> None:
    tokens = []
    for _ in range(2):
        store = open_store(url)
        tokens.append(store.acquire_lease(lease, "a", 60_000))
        store.release_lease(lease, "a")
        store.close()
    assert tokens[0] < tokens[1]


def test_a_token_can_be_asked_to_be_above_what_an_emptied_store_has_forgotten(store: KeyValueStore, lease: str) -> None:
    assert store.acquire_lease(lease, "a", 60_000, above=41) == 42
    assert store.acquire_lease(lease, "a", 60_000, above=41) == 42  # a renewal
    assert store.acquire_lease(lease, "a", 60_000) == 42
    store.release_lease(lease, "a")
    assert store.acquire_lease(lease, "b", 60_000, above=7) == 43


def test_of_holders_that_race_exactly_one_gets_the_lease(store: KeyValueStore, lease: str) -> None:
    start = Barrier(6)

    def race(me: int) -> int | None:
        start.wait()
        return store.acquire_lease(lease, f"holder {me}", 60_000)

    with ThreadPoolExecutor(6) as pool:
        tokens = list(pool.map(race, range(6)))
    assert len([token for token in tokens if token is not None]) == 1


def test_a_fenced_put_refuses_every_token_but_the_highest(store: KeyValueStore, lease: str) -> None:
    assert not store.fenced_put(lease, 1, "gyl:k", b"before any lease")
    old = store.acquire_lease(lease, "a", 60_000) or 0
    assert store.fenced_put(lease, old, "gyl:k", b"\xff by a")
    store.release_lease(lease, "a")
    assert store.fenced_put(lease, old, "gyl:k", b"still the highest")
    new = store.acquire_lease(lease, "b", 60_000) or 0
    assert not store.fenced_put(lease, old, "gyl:k", b"too late")
    assert store.fenced_put(lease, new, "gyl:k", b"by b")
    assert store.get("gyl:k") == b"by b"


def test_leases_are_not_among_the_keys(store: KeyValueStore) -> None:
    store.acquire_lease("gyl:controller", "a", 60_000)
    assert store.keys("") == []
    store.release_lease("gyl:controller", "a")


# Opening, and errors ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("memcached://host", "expected sqlite:///absolute/path.*found memcached://"),
        ("/var/store", "found no scheme"),
        ("sqlite://relative/path", "found sqlite://relative/path"),
        ("sqlite:///no/such/folder/store", r"folder /no/such/folder does not exist"),
        ("redis://user:hunter2@127.0.0.1:1/0", r"redis://user:\*\*\*@127.0.0.1:1/0: cannot be reached"),
        ("rediss://:hunter2@127.0.0.1:1", r"rediss://:\*\*\*@127.0.0.1:1: cannot be reached"),
        ("redis://user:hunter2@host:port/0", "unreadable URL"),
    ],
)
def test_an_unusable_url_is_explained_without_its_password(url: str, says: str) -> None:
    with pytest.raises(StoreError, match=says) as caught:
        open_store(url)
    assert "hunter2" not in str(caught.value)


def test_a_file_that_is_not_a_store_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("not a database, but long enough to look at " * 50)
    with pytest.raises(StoreError, match="not a SQLite database"):
        open_store(f"sqlite://{path}")
    other = sqlite3.connect(tmp_path / "other")
    other.execute("CREATE TABLE things (x)")
    other.commit()
    other.close()
    with pytest.raises(StoreError, match="not a Pageturn store"):
        open_store(f"sqlite://{tmp_path}/other")


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    open_store(f"sqlite://{tmp_path}/store").close()
    connection = sqlite3.connect(tmp_path / "store")
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(StoreError, match="schema version 99, expected 1"):
        open_store(f"sqlite://{tmp_path}/store")


def test_a_folder_as_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="unable to open"):
        open_store(f"sqlite://{tmp_path}")


def test_a_path_may_hold_escaped_characters(tmp_path: Path) -> None:
    open_store(f"sqlite://{tmp_path}/with%20space%3F").close()
    assert (tmp_path / "with space?").exists()


def test_a_closed_store_says_so(tmp_path: Path) -> None:
    store = open_store(f"sqlite://{tmp_path}/store")
    store.close()
    with pytest.raises(StoreError, match="closed"):
        store.get("k")


def test_a_failed_operation_leaves_nothing_behind(tmp_path: Path) -> None:
    store = open_store(f"sqlite://{tmp_path}/store")
    with pytest.raises(StoreError):
        store.put_many({"a": b"1", "b": object()})  # type: ignore[dict-item]
    assert store.keys("") == []
    store.put("a", b"2")
    store.close()


@pytest.mark.needs_redis
def test_a_redis_user_needs_only_its_own_keys(redis_url: str) -> None:
    store = open_store(redis_url.replace("://", "://guest:open-sesame@"))
    token = store.acquire_lease("gyl:controller", "a", 60_000)
    assert token is not None
    assert store.fenced_put("gyl:controller", token, "gyl:k", b"v")
    store.release_lease("gyl:controller", "a")
    with pytest.raises(StoreError, match=r"guest:\*\*\*@.* refused: .*permission"):
        store.get("secret")
    store.close()


@pytest.mark.needs_redis
def test_a_redis_password_comes_from_the_environment(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAGETURN_REDIS_USERNAME", "guest")
    monkeypatch.setenv("PAGETURN_REDIS_PASSWORD", "open-sesame")
    store = open_store(redis_url)
    with pytest.raises(StoreError, match=r"refused: .*permission"):  # guest it is
        store.get("secret")
    store.close()
    with pytest.raises(StoreError, match="did not accept the user or password"):  # the URL goes before it
        open_store(redis_url.replace("://", "://guest:hunter2@"))


@pytest.mark.needs_redis
def test_a_wrong_password_is_not_repeated(redis_url: str) -> None:
    with pytest.raises(StoreError, match="did not accept the user or password") as caught:
        open_store(redis_url.replace("://", "://guest:hunter2@"))
    assert "hunter2" not in str(caught.value)


@pytest.mark.needs_redis
def test_a_value_of_another_type_is_an_error(redis_url: str) -> None:
    import redis

    client = redis.Redis.from_url(redis_url)
    client.lpush("gyl:list", "x")
    store = open_store(redis_url)
    with pytest.raises(StoreError, match="refused: WRONGTYPE"):
        store.get("gyl:list")
    client.delete("gyl:list")
    client.close()
    store.close()


@pytest.mark.needs_redis
def test_a_lost_connection_and_forgotten_scripts_go_unnoticed(redis_url: str) -> None:
    import redis

    store, other = open_store(redis_url), redis.Redis.from_url(redis_url)
    store.put("gyl:k", b"1")
    other.client_kill_filter(_type="normal", skipme=True)
    assert store.get("gyl:k") == b"1"
    other.client_kill_filter(_type="normal", skipme=True)
    assert store.get_many(["gyl:k"]) == [b"1"]
    other.script_flush()
    assert store.compare_and_set("gyl:k", b"1", b"2")
    other.close()
    store.close()


@pytest.mark.needs_redis
def test_a_late_answer_is_no_answer_to_the_next_question(redis_url: str) -> None:
    import redis

    from pipeline.stores.redis_store import RedisStore

    store, other = RedisStore(redis_url, timeout_s=0.1), redis.Redis.from_url(redis_url)
    other.mset({"gyl:a": b"1", "gyl:b": b"2"})

    def ask_while_it_is_paused() -> None:
        for _ in range(1_000):  # the pause may be over before we ask
            other.client_pause(300)
            store.get_many(["gyl:a"])

    with pytest.raises(StoreError, match="no answer in time"):
        ask_while_it_is_paused()
    other.client_unpause()
    answer = None
    for _ in range(1_000):  # a machine that hesitates takes longer than the store is waited for
        with suppress(StoreError):
            answer = store.get_many(["gyl:b", "gyl:a"])
            break
    assert answer == [b"2", b"1"]
    other.close()
    store.close()


@pytest.mark.needs_redis
def test_a_refusal_ends_no_connection(redis_url: str) -> None:
    store = open_store(redis_url.replace("://", "://guest:open-sesame@"))
    store.put("gyl:a", b"1")
    with pytest.raises(StoreError, match=r"refused: .*permission"):
        store.get_many(["gyl:a", "secret"])
    assert store.get_many(["gyl:a"]) == [b"1"]
    store.close()


def test_opening_a_store_loads_neither_numpy_nor_tensorflow_nor_the_other_client(tmp_path: Path) -> None:
    program = f"""
import sys
from pipeline.stores.opening import open_store
open_store("sqlite://{tmp_path}/store").close()
print(sorted(set(sys.modules) & {{"numpy", "tensorflow", "redis", "apache_beam"}}))
"""
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
