"""A real server with the configuration that is mounted, and the users that make-secrets.sh makes."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from model_export.switches import roll_back, set_off
from pipeline.events import encode
from pipeline.serving.launch import free_port
from pipeline.stores.published import (
    GoBack,
    Heartbeat,
    Pointer,
    Served,
    VersionRecord,
    candidates_key,
    change_pointer,
    parameters_key,
    read_candidates,
    read_heartbeats,
    read_pointers,
    sent_back,
    vector_key,
    version_key,
    write_heartbeat,
)
from pipeline.stores.redis_store import RedisStore
from pipeline.stores.store import StoreError
from tests.k8s.contract import feature_config
from tests.k8s.manifests import Object, generated
from tests.k8s.secrets import redis_users

pytestmark = [pytest.mark.k8s, pytest.mark.needs_redis]
ROOT = Path(__file__).resolve().parents[2]
Login = Callable[[str], RedisStore]


@pytest.fixture(scope="module")
def prefix(rendered: Callable[[str], list[Object]]) -> str:
    config = feature_config(rendered("prod"))
    assert config is not None
    return config.kv_prefix


@pytest.fixture(scope="module")
def config(rendered: Callable[[str], list[Object]]) -> str:
    text: str = generated(rendered("prod"), "redis-config")["data"]["redis.conf"]
    return text


@contextmanager
def serving(binary: str, config: str, prefix: str, folder: Path) -> Iterator[int]:
    """The port of a server with the mounted configuration, which keeps its data in the folder."""
    users, port = folder / "users.acl", free_port()
    users.write_text(redis_users(prefix)["users.acl"])
    for mounted, here in {
        "aclfile /etc/redis-users/users.acl": f"aclfile {users}",
        "dir /data": f"dir {folder}",
        "port 6379": f"port {port}",
    }.items():
        assert mounted in config.splitlines()
        config = config.replace(mounted, here)
    (folder / "redis.conf").write_text(config)
    process = subprocess.Popen([binary, str(folder / "redis.conf")], stdout=subprocess.DEVNULL)
    try:
        await_pong(port, process)
        yield port
    finally:
        process.terminate()
        process.wait(250)


@pytest.fixture(scope="module")
def port(redis_binary: str, config: str, prefix: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with serving(redis_binary, config, prefix, tmp_path_factory.mktemp("redis")) as port:
        yield port


def await_pong(port: int, process: subprocess.Popen[bytes]) -> None:
    """As the probe does: without a user."""
    deadline_s = time.monotonic() + 250
    while cli(port, "ping").stdout != b"PONG\n":
        assert process.poll() is None
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


def cli(port: int, *words: str, **env: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        ["redis-cli", "-p", str(port), *words], capture_output=True, check=False, env=os.environ | env
    )


def opened_as(user: str, port: int, prefix: str) -> RedisStore:
    env = {"PAGETURN_REDIS_USERNAME": user, "PAGETURN_REDIS_PASSWORD": redis_users(prefix)[user]}
    return RedisStore(f"redis://127.0.0.1:{port}/0", timeout_s=10, environment=env)


@pytest.fixture(scope="module")
def login(port: int, prefix: str) -> Iterator[Login]:
    opened = []

    def store(user: str) -> RedisStore:
        opened.append(opened_as(user, port, prefix))
        return opened[-1]

    yield store
    for each in opened:
        each.close()


def refused() -> pytest.RaisesExc[StoreError]:
    return pytest.raises(StoreError, match=r"refused: .*permission")


def test_nobody_gets_in_without_a_user(port: int) -> None:
    assert b"NOPERM" in cli(port, "get", "x").stdout + cli(port, "get", "x").stderr


def test_a_controller_publishes_and_an_agent_follows(login: Login, prefix: str) -> None:
    controller, agent = login("controller"), login("agent")
    token = controller.acquire_lease(f"{prefix}:controller", "c", 60_000)
    assert token is not None
    controller.put_many({parameters_key(prefix, "sha"): b"snapshot"})
    assert controller.fenced_put(f"{prefix}:controller", token, f"{prefix}:verdict:rl:1", b"{}")
    change_pointer(controller, prefix, "rl", lambda _: Pointer(stable=Served(1, "sha")))
    assert read_pointers(agent, prefix, ("rl",))["rl"].stable == Served(1, "sha")
    assert agent.get(parameters_key(prefix, "sha")) == b"snapshot"
    write_heartbeat(agent, prefix, Heartbeat("agent-1", 1, {"rl": 1}))
    assert [beat.agent for beat in read_heartbeats(controller, prefix)] == ["agent-1"]
    assert controller.keys(f"{prefix}:ptr:") == [f"{prefix}:ptr:rl"]
    controller.delete_many([parameters_key(prefix, "sha")])
    controller.release_lease(f"{prefix}:controller", "c")


def test_an_agent_cannot_publish(login: Login, prefix: str) -> None:
    agent = login("agent")
    with refused():
        change_pointer(agent, prefix, "other", lambda _: Pointer(stable=Served(9, "x")))
    with refused():
        agent.put(parameters_key(prefix, "sha"), b"other")
    with refused():
        agent.acquire_lease(f"{prefix}:controller", "agent", 1_000)
    with refused():
        agent.get("another-feed:ptr:rl")


def test_an_agent_leaves_the_list_of_agents(login: Login, prefix: str) -> None:
    from pipeline.stores.published import forget_agents

    agent = login("agent")
    write_heartbeat(agent, prefix, Heartbeat("agent-2", 1, {}))
    forget_agents(agent, prefix, ["agent-2"])
    assert "agent-2" not in [beat.agent for beat in read_heartbeats(agent, prefix)]


def test_vectors_are_loaded_by_one_and_read_by_trainers_and_agents(login: Login, prefix: str) -> None:
    key = vector_key(prefix, "shop", "e1", "7")
    login("loader").put_many({key: b"vector"})
    assert login("trainer").get_many([key]) == login("agent").get_many([key]) == [b"vector"]
    with refused():
        login("trainer").put(key, b"other")
    with refused():
        login("trainer").get(parameters_key(prefix, "sha"))
    with refused():
        login("loader").put(f"{prefix}:ptr:rl", b"{}")


def test_a_trainer_reads_where_it_is_to_go_back_to_and_writes_nothing(login: Login, prefix: str) -> None:
    controller, trainer = login("controller"), login("trainer")
    back = GoBack(1, "candidate")
    change_pointer(controller, prefix, "gone", lambda now: sent_back(now, Served(1, "sha"), "candidate"))
    controller.put(candidates_key(prefix, "gone"), b'{"1": "candidate"}')
    assert read_pointers(trainer, prefix, ("gone",))["gone"].back == back
    assert read_candidates(trainer, prefix, ("gone",)) == {"gone": {1: "candidate"}}
    with refused():
        change_pointer(trainer, prefix, "gone", lambda now: Pointer())


def test_an_operator_rolls_back(login: Login, prefix: str) -> None:
    controller, operator = login("controller"), login("operator")
    for version in (1, 2):
        record = VersionRecord("back", version, "feed_back", f"sha-{version}", "config", f"c{version}", 1)
        controller.put(version_key(prefix, "back", version), encode(record))
    change_pointer(
        controller, prefix, "back", lambda _: Pointer(stable=Served(2, "sha-2"), previous=Served(1, "sha-1"))
    )
    assert roll_back(operator, prefix, "back")[1] == Served(1, "sha-1")


def test_an_operator_switches_and_writes_nothing_else(login: Login, prefix: str) -> None:
    operator = login("operator")
    set_off(operator, prefix, ("rl",), True)
    assert read_pointers(operator, prefix, ("rl",))["rl"].off
    set_off(operator, prefix, ("rl",), False)
    with refused():
        operator.put(parameters_key(prefix, "sha"), b"x")


def test_a_backup_is_a_copy_that_an_empty_server_starts_from_and_old_ones_go(
    port: int, login: Login, prefix: str, tmp_path: Path, redis_binary: str, config: str
) -> None:
    key = vector_key(prefix, "shop", "e1", "8")
    login("loader").put_many({key: b"kept"})
    for day in ("01", "02", "03"):
        (tmp_path / f"redis-202601{day}T031700Z.rdb").write_bytes(b"old")
    env = {
        "FOLDER": str(tmp_path), "REDIS_HOST": "127.0.0.1", "REDIS_PORT": str(port), "KEEP": "2", "CLI": "redis-cli",
        "REDISCLI_AUTH": redis_users(prefix)["backup"],
    }  # fmt: skip
    script = str(ROOT / "k8s" / "base" / "cronjobs" / "redis-backup.sh")
    done = subprocess.run(["sh", script], env=os.environ | env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    *older, newest = sorted(path.name for path in tmp_path.glob("redis-*.rdb"))
    assert older == ["redis-20260103T031700Z.rdb"]
    assert not (tmp_path / ".tmp.rdb").exists()
    restored = tmp_path / "restored"
    restored.mkdir()
    shutil.copy(tmp_path / newest, restored / "appendonly.aof")
    with serving(redis_binary, config, prefix, restored) as other, closing(opened_as("agent", other, prefix)) as store:
        assert store.get(key) == b"kept"
