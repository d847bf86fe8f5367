"""From a kafka:// URL, the environment and a file to the settings of the clients. Pure but for reading that file.

    kafka://host:port[,host:port ...][/prefix][?name=value&...]

Topic t of the log is topic `prefix.t` of the cluster, or `t` without a prefix. A name is a setting of librdkafka
(security.protocol, sasl.username, ssl.ca.location, linger.ms ...), `topic.` and a setting of the topics that are made
here, `timeout_s`, or `settings`: a file of lines name=value. The environment may say PAGETURN_KAFKA_SASL_PASSWORD for
sasl.password, and so on. The URL goes before the environment, and that before the file. URLs are shown in process
lists and messages, so secrets may not be in one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

from pipeline.logs.log import LogError

_EXPECTED = "expected kafka://host:port[,host:port...][/prefix][?name=value&...]"
_BROKER = re.compile(r"([^\s:/@\[\]]+|\[[0-9a-fA-F:.]+\])(:[0-9]{1,5})?")
_PREFIX = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,99}")
_ENVIRONMENT = "PAGETURN_KAFKA_"

_PRODUCER = {"linger.ms", "batch.size", "compression.type", "compression.level"}
_CLIENT = {"client.id", "client.rack", "broker.address.family", "metadata.max.age.ms"}
_FAMILIES = ("security.", "sasl.", "ssl.", "socket.", "reconnect.", "topic.")
_OURS = {"timeout_s", "settings"}
_SECRET = re.compile(r"password|secret|\.pem$|oauthbearer\.config|assertion|login")
_FORCED_OF_TOPICS = {"topic.message.timestamp.type", "topic.cleanup.policy"}


@dataclass(frozen=True)
class Settings:
    brokers: str
    prefix: str
    timeout_s: float  # the longest wait of any call
    topic: Mapping[str, str]  # of topics that are made here
    replication: int  # of them; -1 for the cluster's default
    client: Mapping[str, str] = field(repr=False)  # may hold secrets
    producer: Mapping[str, str]

    @property
    def where(self) -> str:
        """For messages."""
        return f"kafka://{self.brokers}/{self.prefix}"

    def name_of(self, topic: str) -> str:
        """The topic's name in the cluster."""
        return f"{self.prefix}.{topic}" if self.prefix else topic


def settings_of(url: str, environment: Mapping[str, str]) -> Settings:
    """LogError, without the URL's text where it may hold a secret, if anything is not as it must be."""
    parts = urlsplit(url)
    prefix = unquote(parts.path).strip("/")
    if "@" in parts.netloc:
        raise LogError(_told("a user or password in it", "put them into the environment: see docs/operations.md"))
    if not all(_BROKER.fullmatch(broker) for broker in parts.netloc.split(",")):
        raise LogError(_told(f"brokers {parts.netloc!r}"))
    if parts.fragment or (prefix and not _PREFIX.fullmatch(prefix)):
        raise LogError(_told(f"prefix {prefix!r}", "letters, digits, _ . and - only"))
    named = _checked(_from_url(parts.query), "the URL")
    named = _checked(_from_environment(environment), "the environment") | named
    if "settings" in named:
        named = _checked(_from_file(Path(named["settings"])), named["settings"]) | named
    return _settings(parts.netloc, prefix, named)


def _told(found: str, remedy: str = "") -> str:
    return f"event log URL: {_EXPECTED}; found {found}" + (f"; {remedy}" if remedy else "")


def _from_url(query: str) -> dict[str, str]:
    try:
        named = dict(parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query)))
    except ValueError as error:
        raise LogError(_told("a part after the question mark that is not name=value")) from error
    if secret := sorted(name for name in named if _SECRET.search(name)):
        variables = ", ".join(_ENVIRONMENT + name.upper().replace(".", "_") for name in secret)
        raise LogError(_told(f"{', '.join(secret)}", f"a URL is no place for it: set {variables}, or use a file"))
    return named


def _from_environment(environment: Mapping[str, str]) -> dict[str, str]:
    found = {name.removeprefix(_ENVIRONMENT): v for name, v in environment.items() if name.startswith(_ENVIRONMENT)}
    return {"timeout_s" if n == "TIMEOUT_S" else n.lower().replace("_", "."): value for n, value in found.items()}


def _from_file(path: Path) -> dict[str, str]:
    try:
        lines = [line.strip() for line in path.read_text().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        message = f"cannot read the Kafka settings {path}: {getattr(error, 'strerror', None) or 'not text'}"
        raise LogError(message) from error
    pairs = [(number, *line.partition("=")) for number, line in enumerate(lines, 1) if line and line[0] != "#"]
    if wrong := [number for number, _, equals, _ in pairs if not equals]:
        message = f"{path}:{wrong[0]}: expected name=value"
        raise LogError(message)
    return {name.strip(): value.strip() for _, name, _, value in pairs}


def _checked(named: dict[str, str], where: str) -> dict[str, str]:
    known = _PRODUCER | _CLIENT | _OURS
    unknown = sorted(n for n in named if (n not in known and not n.startswith(_FAMILIES)) or n in _FORCED_OF_TOPICS)
    if unknown:
        allowed = ", ".join(sorted(known)) + ", " + ", ".join(f"{family}*" for family in _FAMILIES)
        message = f"Kafka settings in {where}: expected {allowed}; found {', '.join(unknown)}"
        raise LogError(message)
    return named


def _settings(brokers: str, prefix: str, named: Mapping[str, str]) -> Settings:
    topic = {name.removeprefix("topic."): value for name, value in named.items() if name.startswith("topic.")}
    return Settings(
        brokers,
        prefix,
        _number("timeout_s", named.get("timeout_s", "30"), 1, 600),
        topic,
        int(_number("topic.replication.factor", topic.pop("replication.factor", "-1"), -1, 1_000)),
        _without(named, _PRODUCER | _OURS),
        {name: value for name, value in named.items() if name in _PRODUCER},
    )


def _without(named: Mapping[str, str], names: Iterable[str]) -> dict[str, str]:
    return {name: value for name, value in named.items() if name not in names and not name.startswith("topic.")}


def _number(name: str, text: str, least: float, most: float) -> float:
    try:
        number = float(text)
    except ValueError:
        number = least - 1
    if not least <= number <= most:
        message = f"Kafka settings: expected {name} from {least} to {most}, found {text!r}"
        raise LogError(message)
    return number
