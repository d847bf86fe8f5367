"""The key-value seam on Redis (one primary; not Redis Cluster): plain string keys, read with MGET.

A lease `name` is kept in two keys, `<name>!lease` (holder, with expiry) and `<name>!token` (the highest token, which
outlives every holder), so that an access rule for `<prefix>:*` covers it. Set `maxmemory-policy noeviction` and
persistence: an evicted pointer would send everyone to the baseline.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any, TypeVar
from urllib.parse import urlsplit

import hiredis
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from pipeline.stores.store import StoreError

_T = TypeVar("_T")
_CHUNK = 2_000  # keys of one MSET, UNLINK or SCAN step: large enough to be cheap, small enough not to stall others
_ENVIRONMENT = "PAGETURN_REDIS_"
_LEASE, _TOKEN = "!lease", "!token"

_COMPARE_AND_SET = """
local now = redis.call('GET', KEYS[1])
if ARGV[1] == '0' then
  if now then return 0 end
elseif now ~= ARGV[2] then
  return 0
end
redis.call('SET', KEYS[1], ARGV[3])
return 1
"""

_ACQUIRE = """
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return false end
local highest = tonumber(redis.call('GET', KEYS[2]) or '0')
local above = tonumber(ARGV[3])
local token = highest
if not holder or highest <= above then token = math.max(highest, above) + 1 end
redis.call('SET', KEYS[2], string.format('%d', token))
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return token
"""

_RELEASE = """
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
return 1
"""

_FENCED_PUT = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[2], ARGV[2])
return 1
"""


class RedisStore:
    """`url`: redis://user:password@host:port/db, or rediss:// for TLS; redis-py's query options (ssl_ca_certs ...).

    A user or password that the URL leaves out is taken from PAGETURN_REDIS_USERNAME and PAGETURN_REDIS_PASSWORD:
    command lines are seen in process lists.
    """

    def __init__(self, url: str, *, timeout_s: float = 2.0, environment: Mapping[str, str] = os.environ) -> None:
        self._name = _without_secrets(url)
        # Retrying is ours, by command: redis-py would also repeat a compare-and-set whose answer got lost.
        try:
            self._client: Any = redis.Redis.from_url(
                url,
                socket_timeout=timeout_s,
                socket_connect_timeout=timeout_s,
                socket_keepalive=True,
                health_check_interval=30,
                retry=Retry(NoBackoff(), 0),
                username=environment.get(f"{_ENVIRONMENT}USERNAME"),  # the URL goes before both
                password=environment.get(f"{_ENVIRONMENT}PASSWORD"),
            )
        except (ValueError, TypeError, redis.RedisError):
            # The cause is left out: its text may hold the URL with its password.
            message = (
                f"redis store {self._name}: not a usable URL; expected redis[s]://[user:password@]host[:port][/db]"
            )
            raise StoreError(message) from None
        self._compare_and_set = self._client.register_script(_COMPARE_AND_SET)
        self._acquire = self._client.register_script(_ACQUIRE)
        self._release = self._client.register_script(_RELEASE)
        self._fenced_put = self._client.register_script(_FENCED_PUT)
        self._repeatable(self._client.ping)

    def get(self, key: str) -> bytes | None:
        value: bytes | None = self._repeatable(lambda: self._client.get(key))
        return value

    def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        """In one MGET, whatever their number; a key of another type than string reads as absent there."""
        if not keys:
            return []
        return self._repeatable(lambda: self._mget(keys))

    def _mget(self, keys: Sequence[str]) -> list[bytes | None]:
        """What the client's `mget` does over the same connections, but for its look at each argument and its notes for
        tracing: a page waits for this read, and they are a sixth of it. A connection that fails closes itself."""
        words: Any = ("MGET", *keys)  # hiredis's own types have room for one
        connection = self._client.connection_pool.get_connection()
        try:
            connection.send_packed_command([hiredis.pack_command(words)])
            found: list[bytes | None] = connection.read_response()
            return found
        finally:
            self._client.connection_pool.release(connection)

    def put(self, key: str, value: bytes) -> None:
        self._repeatable(lambda: self._client.set(key, value))

    def put_many(self, values: Mapping[str, bytes]) -> None:
        for chunk in _chunks(values.items()):
            self._repeatable(partial(self._client.mset, dict(chunk)))

    def delete_many(self, keys: Iterable[str]) -> None:
        for chunk in _chunks(keys):
            self._repeatable(partial(self._client.unlink, *chunk))

    def delete_prefix(self, prefix: str) -> int:
        pattern, cursor, deleted = _escape(prefix) + "*", 0, 0
        while True:
            cursor, found = self._repeatable(partial(self._client.scan, cursor, pattern, _CHUNK))
            doomed = [key for key in found if not key.endswith((_LEASE.encode(), _TOKEN.encode()))]
            if doomed:
                deleted += self._repeatable(partial(self._client.unlink, *doomed))
            if cursor == 0:
                return deleted

    def keys(self, prefix: str) -> list[str]:
        pattern = _escape(prefix) + "*"
        found: set[bytes] = self._repeatable(lambda: set(self._client.scan_iter(match=pattern, count=_CHUNK)))
        return sorted(key for key in map(bytes.decode, found) if not key.endswith((_LEASE, _TOKEN)))

    def compare_and_set(self, key: str, expected: bytes | None, value: bytes) -> bool:
        args: list[bytes] = [b"0", b"", value] if expected is None else [b"1", expected, value]
        return bool(self._once(lambda: self._compare_and_set(keys=[key], args=args)))

    def acquire_lease(self, name: str, holder: str, ttl_ms: int, above: int = 0) -> int | None:
        keys = [name + _LEASE, name + _TOKEN]
        token: int | None = self._repeatable(lambda: self._acquire(keys=keys, args=[holder, ttl_ms, above]))
        return token

    def release_lease(self, name: str, holder: str) -> None:
        self._repeatable(lambda: self._release(keys=[name + _LEASE], args=[holder]))

    def fenced_put(self, lease: str, token: int, key: str, value: bytes) -> bool:
        return bool(self._repeatable(lambda: self._fenced_put(keys=[lease + _TOKEN, key], args=[token, value])))

    def close(self) -> None:
        self._client.close()

    def _repeatable(self, command: Callable[[], _T]) -> _T:
        """Run a command that may run twice; once more when a kept connection turns out to be gone."""
        try:
            return self._once(command)
        except StoreError as error:
            if not _connection_lost(error.__cause__):
                raise
        return self._once(command)

    def _once(self, command: Callable[[], _T]) -> _T:
        try:
            return command()
        except redis.RedisError as error:
            message = f"redis store {self._name}: {_explain(error)}"
            raise StoreError(message) from error


def _connection_lost(error: BaseException | None) -> bool:
    return isinstance(error, redis.ConnectionError) and not isinstance(error, redis.AuthenticationError)


def _explain(error: redis.RedisError) -> str:
    if isinstance(error, redis.TimeoutError):
        return f"no answer in time ({error})"
    if isinstance(error, redis.AuthenticationError):
        return f"the server did not accept the user or password ({error})"
    if isinstance(error, redis.ConnectionError):
        return f"cannot be reached ({error})"
    return f"refused: {error}"


def _without_secrets(url: str) -> str:
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return "(unreadable URL)"
    user = f"{parts.username or ''}:***@" if parts.username or parts.password else ""
    return f"{parts.scheme}://{user}{parts.hostname or ''}{port}{parts.path}"


def _escape(prefix: str) -> str:
    return "".join("\\" + character if character in "*?[]^-\\" else character for character in prefix)


def _chunks(values: Iterable[_T]) -> Iterator[list[_T]]:
    rest = iter(values)
    while chunk := list(islice(rest, _CHUNK)):
        yield chunk
