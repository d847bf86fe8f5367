"""From a URL to an event log."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from pipeline.logs.files import FileLog
from pipeline.logs.log import EventLog, LogError


def open_log(url: str) -> EventLog:
    """The event log of a URL: file:///absolute/folder or kafka://host:port/prefix. LogError when the URL names none."""
    parts = urlsplit(url)
    if parts.scheme == "file":
        return FileLog(_folder(url))
    if parts.scheme == "kafka":
        from pipeline.logs.kafka.kafka_log import KafkaLog  # only what is used is loaded

        return KafkaLog(url)
    expected = "file:///absolute/folder or kafka://host:port/prefix"
    message = f"cannot open event log: expected {expected}, found scheme {parts.scheme!r}"
    raise LogError(message)


def _folder(url: str) -> Path:
    parts = urlsplit(url)
    path = Path(unquote(parts.path))
    if parts.netloc or parts.query or parts.fragment or not parts.path or not path.is_absolute():
        message = f"cannot open event log {url!r}: expected file:///absolute/folder (three slashes), nothing after it"
        raise LogError(message)
    return path
