"""From a URL to the store it names."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from pipeline.stores.store import KeyValueStore, StoreError

_EXPECTED = "expected sqlite:///absolute/path, redis://host:port/db or rediss://user:password@host:port/db"


def open_store(url: str, *, timeout_s: float = 2.0) -> KeyValueStore:
    """The store, reachable now. `timeout_s` bounds each command (Redis) or the wait for a lock (SQLite: at least 5 s).

    Raises: StoreError for an unknown scheme, an unreachable host, an unusable file. Passwords are never shown.
    """
    scheme = url.partition("://")[0] if "://" in url else ""
    if scheme in ("redis", "rediss"):
        from pipeline.stores.redis_store import RedisStore  # only what is used is loaded

        return RedisStore(url, timeout_s=timeout_s)
    if scheme == "sqlite":
        from pipeline.stores.sqlite import SqliteStore

        return SqliteStore(_sqlite_path(url), busy_timeout_s=max(timeout_s, 5.0))
    found = f"{scheme}://" if scheme else "no scheme"
    message = f"store URL: {_EXPECTED}; found {found}"
    raise StoreError(message)


def _sqlite_path(url: str) -> Path:
    parts = urlsplit(url)
    if parts.netloc or not parts.path.startswith("/") or parts.path.endswith("/"):
        message = f"store URL: expected sqlite:///absolute/path/of/a/file; found {url}"
        raise StoreError(message)
    return Path("/" + unquote(parts.path).lstrip("/"))  # a fourth slash is as common and means the same
