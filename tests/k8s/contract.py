"""What manifests say to our programs: command lines, variables, files, models, topics. The programs' code judges."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any
from unittest.mock import patch

import click
import redis

from pageturn.__main__ import main
from pageturn.deadletters import REPLAYS
from pageturn.embeddings import external_tables
from pageturn.options import HEARTBEAT
from pipeline.config.reading import parse_config
from pipeline.config.schema import FeatureConfig
from pipeline.errors import PageturnError
from pipeline.logs.kafka.settings import settings_of
from pipeline.logs.kafka.topics import BATCH_BYTES
from pipeline.logs.log import EVENTS, OUTPUTS
from pipeline.serving.standin import flags
from tests.k8s.commands import Command, commands
from tests.k8s.manifests import Objects, at, named, names, of_kind
from tests.k8s.start_script import start_script

ROOT = Path(__file__).resolve().parents[2]
_KNOWN = {HEARTBEAT, "PAGETURN_REDIS_USERNAME", "PAGETURN_REDIS_PASSWORD"}
_WRITTEN = ("--state", "--staging", "--models", "--to")  # folders that a process writes to
_JOB_SERVER = "/opt/pageturn/flink-job-server.jar"
_EVENTS_BYTES, _OUTPUT_BYTES = 1024 * 1024, 16 * 1024 * 1024


def check(objects: Objects) -> Iterator[str]:
    ours = [command for command in commands(objects) if command.is_ours]
    for command in ours:
        yield from _command_line(command)
        yield from _variables(command)
        yield from _files(command, objects)
        yield from _tables(command, objects)
        yield from _urls(command)
        yield from _metrics(command)
    yield from _servers(objects)
    yield from _partitions(ours, objects)
    yield from _users(ours, objects)
    yield from _topics(objects)


# Command lines and variables --------------------------------------------------------------------------------------


def _command_line(command: Command) -> Iterator[str]:
    """Parsed by the real command, in the container's environment, and not run."""
    args = [argument.replace(_JOB_SERVER, __file__) for argument in command.args]  # has to exist
    env = {name: value for name, value in command.env.items() if name.startswith("PAGETURN_")}
    with patch.dict(os.environ, env):
        try:
            context = main.make_context("pageturn", args)
            while isinstance(context.command, click.Group):  # a command of a command
                words = [*context._protected_args, *context.args]
                _, found, rest = context.command.resolve_command(context, words)
                assert found is not None
                context = found.make_context(found.name, rest, parent=context)
        except (click.ClickException, click.exceptions.Exit) as error:
            message = error.format_message() if isinstance(error, click.ClickException) else "only asks for help"
            yield f"{command.where}: pageturn {' '.join(command.args)}: {message}"


def _variables(command: Command) -> Iterator[str]:
    for name in command.env:
        if name.startswith("PAGETURN_") and not name.startswith("PAGETURN_KAFKA_") and name not in _KNOWN:
            yield f"{command.where}: nobody reads {name}"
    beat = command.env.get(HEARTBEAT)
    probes = [str(at(command.container, (probe, "exec", "command"))) for probe in ("startupProbe", "livenessProbe")]
    if beat is not None and not all(beat in probe for probe in probes):
        yield f"{command.where}: its probes do not look at its {HEARTBEAT}, {beat}"


def option(command: Command, name: str) -> str | None:
    return next((a.partition("=")[2] for a in command.args if a.startswith(f"{name}=")), None)


def _urls(command: Command) -> Iterator[str]:
    log, store = option(command, "--log"), option(command, "--store")
    if log is not None:
        try:
            settings = settings_of(log, command.env)
        except PageturnError as error:
            yield f"{command.where}: {error}"
            return
        for name, path in settings.client.items():
            if name.endswith(".location") and _mounted(command, path) is None:
                yield f"{command.where}: {name} is {path}, where nothing is mounted"
    if store is not None:
        try:
            pool = redis.ConnectionPool.from_url(store)
            pool.connection_class(**pool.connection_kwargs)
        except (ValueError, TypeError, redis.RedisError) as error:
            yield f"{command.where}: --store={store}: {error}"
        ca = re.search(r"ssl_ca_certs=([^&]+)", store)
        if ca and _mounted(command, ca[1]) is None:
            yield f"{command.where}: {ca[1]} is where nothing is mounted"


def _metrics(command: Command) -> Iterator[str]:
    """At an address that others reach, and at the port of that name."""
    address = option(command, "--metrics")
    ports = {port["name"]: port["containerPort"] for port in command.container.get("ports") or ()}
    expected = f"0.0.0.0:{ports['metrics']}" if "metrics" in ports else None
    if address != expected:
        yield f"{command.where}: expected --metrics={expected}, by its port `metrics`; found {address}"


# Files -----------------------------------------------------------------------------------------------------------


def _mounted(command: Command, path: str) -> Mapping[str, Any] | None:
    """The mount that holds the path."""
    mounts = command.container.get("volumeMounts") or ()
    return next((m for m in mounts if PurePosixPath(path).is_relative_to(m["mountPath"])), None)


def _files(command: Command, objects: Objects) -> Iterator[str]:
    for name in (*_WRITTEN, HEARTBEAT):
        path = command.env.get(name) if name == HEARTBEAT else option(command, name)
        if path is not None:
            mount = _mounted(command, path)
            if mount is None or mount.get("readOnly"):
                yield f"{command.where}: {name} is {path}, where nothing is mounted to write to"
    path = option(command, "--config")
    if path is not None:
        try:
            mounted_config(command, path, objects)
        except (PageturnError, LookupError) as error:
            yield f"{command.where}: --config={path}: {error}"


def _tables(command: Command, objects: Objects) -> Iterator[str]:
    """What vectors are loaded for, and from where."""
    if command.args[:1] != ("embeddings",):
        return
    config, table, source = feature_config(objects), option(command, "--table"), command.args[2]
    if config is not None and table not in external_tables(config):
        yield f"{command.where}: --table={table} is no external table of the config"
    if _mounted(command, source) is None:
        yield f"{command.where}: {source} is where nothing is mounted"


def mounted_config(command: Command, path: str, objects: Objects) -> FeatureConfig:
    """LookupError where no file is; ConfigError where it is wrong."""
    mount = _mounted(command, path)
    if mount is None:
        message = "nothing is mounted there"
        raise LookupError(message)
    volume = command.pod.volumes[mount["name"]]
    text = named(objects, "ConfigMap", volume["configMap"]["name"])["data"][PurePosixPath(path).name]
    return _parsed(text)


@cache
def _parsed(text: str) -> FeatureConfig:
    return parse_config(text)


def feature_config(objects: Objects) -> FeatureConfig | None:
    for command in commands(objects):
        path = option(command, "--config")
        if command.is_ours and path is not None:
            try:
                return mounted_config(command, path, objects)
            except (PageturnError, LookupError):
                return None  # told of elsewhere
    return None


# TF-Serving ------------------------------------------------------------------------------------------------------


def _servers(objects: Objects) -> Iterator[str]:
    for command in commands(objects):
        if command.container.get("command") == ["/usr/bin/tensorflow_model_server"]:
            yield from _flags(command)
            yield from _models(command, objects)
            yield from _shared_volume(command, objects)
    if not any("tensorflow_model_server" in str(c.container.get("command")) for c in commands(objects)):
        yield "nobody runs /usr/bin/tensorflow_model_server itself"


def _flags(command: Command) -> Iterator[str]:
    """Those of serving_config/tensorflow_model_server.sh, and as many threads as CPUs."""
    try:
        flags.parse(command.args)
    except flags.FlagError as error:
        yield f"{command.where}: {error}"
    for missing in sorted(set(start_script()) - set(command.args)):
        yield f"{command.where}: expected {missing}, as serving_config/tensorflow_model_server.sh has it"
    cpus = at(command.container, ("resources", "limits", "cpu"))
    for pool in ("intra", "inter"):
        if option(command, f"--tensorflow_{pool}_op_parallelism") != cpus:
            yield f"{command.where}: expected --tensorflow_{pool}_op_parallelism={cpus}, the CPUs of its limit"
    ports = {port["name"]: str(port["containerPort"]) for port in command.container["ports"]}
    if (option(command, "--port"), option(command, "--rest_api_port")) != (ports.get("grpc"), ports.get("rest")):
        yield f"{command.where}: its ports are not those that it listens on"
    monitoring = option(command, "--monitoring_config_file")
    if monitoring is None or _mounted(command, monitoring) is None:
        yield f"{command.where}: {monitoring} is where nothing is mounted"


def _models(command: Command, objects: Objects) -> Iterator[str]:
    config = feature_config(objects)
    models = {config.model_name(policy) for policy in config.learned_policies()} if config else set()
    for probe in ("startupProbe", "readinessProbe"):
        path = str(at(command.container, (probe, "httpGet", "path")))
        found = re.fullmatch(r"/v1/models/([a-z0-9_]+)/metadata", path)
        if config is not None and (found is None or found[1] not in models):
            expected = f"/v1/models/NAME/metadata of one of {', '.join(sorted(models))}"
            yield f"{command.where}: {probe}: expected {expected}; found {path}"


def _shared_volume(server: Command, objects: Objects) -> Iterator[str]:
    """models.config names paths as the controller sees them."""
    for command in commands(objects):
        models = option(command, "--models")
        if command.is_ours and models is not None:
            theirs, ours = _claim(server, models), _claim(command, models)
            if ours is None or theirs != ours:
                yield f"{command.where}: {models} is claim {ours} here, and {theirs} at {server.where}"
            config = option(server, "--model_config_file")
            if config != f"{models}/models.config":
                yield f"{server.where}: {config} is not what {command.where} writes"


def _claim(command: Command, path: str) -> str | None:
    mount = _mounted(command, path)
    if mount is None or mount["mountPath"] != path:
        return None
    found: str | None = at(command.pod.volumes.get(mount["name"]), ("persistentVolumeClaim", "claimName"))
    return found


# Kafka and Redis -------------------------------------------------------------------------------------------------


def _topics(objects: Objects) -> Iterator[str]:
    topics = of_kind(objects, "KafkaTopic")
    if not topics:
        return
    [log] = {option(command, "--log") for command in commands(objects) if option(command, "--log")}
    try:
        settings = settings_of(str(log), {})
    except PageturnError:
        return  # told of elsewhere
    wanted = {settings.name_of(topic): topic for topic in (EVENTS, *OUTPUTS, REPLAYS)}
    found = {topic["spec"].get("topicName", topic["metadata"]["name"]): topic for topic in topics}
    for name in wanted.keys() ^ found.keys():
        yield f"topic {name}: {'is missing' if name in wanted else 'is none of ours'}"
    brokers = sum(p["spec"]["replicas"] for p in of_kind(objects, "KafkaNodePool") if "broker" in p["spec"]["roles"])
    for name in wanted.keys() & found.keys():
        spec = found[name]["spec"]
        config = spec.get("config") or {}
        least = _OUTPUT_BYTES if wanted[name] in OUTPUTS else max(BATCH_BYTES, _EVENTS_BYTES)
        if config.get("message.timestamp.type") != "LogAppendTime" or config.get("cleanup.policy") != "delete":
            yield f"topic {name}: expected message.timestamp.type LogAppendTime and cleanup.policy delete"
        if int(config.get("max.message.bytes", 0)) < least:
            yield f"topic {name}: expected max.message.bytes of {least} or more"
        if not config.get("min.insync.replicas", 99) <= spec["replicas"] <= brokers:
            yield f"topic {name}: {spec['replicas']} replicas on {brokers} brokers"


def _partitions(ours: Sequence[Command], objects: Objects) -> Iterator[str]:
    topics = {t["spec"].get("topicName"): t["spec"]["partitions"] for t in of_kind(objects, "KafkaTopic")}
    given = {option(command, "--partitions") for command in ours} - {None}
    given |= {str(count) for name, count in topics.items() if name and not name.endswith(f".{REPLAYS}")}
    if len(given) > 1:
        yield f"expected one number of partitions everywhere, found {', '.join(sorted(map(str, given)))}"


def _users(ours: Sequence[Command], objects: Objects) -> Iterator[str]:
    """Who logs in as whom has the password of that user, and, with Kafka, that user's certificate."""
    for command in ours:
        user = command.env.get("PAGETURN_REDIS_USERNAME")
        if option(command, "--store") is not None:
            secret = [
                at(v, ("valueFrom", "secretKeyRef", "key"))
                for v in command.container.get("env") or ()
                if v["name"] == "PAGETURN_REDIS_PASSWORD"
            ]
            if user is None or secret != [user]:
                yield f"{command.where}: is {user} with the password of {secret}"
        if option(command, "--log") is not None and of_kind(objects, "Kafka"):
            yield from _certificate(command, objects)


def _certificate(command: Command, objects: Objects) -> Iterator[str]:
    sources = [s for v in command.pod.volumes.values() for s in at(v, ("projected", "sources")) or ()]
    found = {source["secret"]["name"] for source in sources} & names(objects, "KafkaUser")
    expected = f"kafka-{command.pod.owner['metadata']['name']}"
    if found != {expected}:
        yield f"{command.where}: expected the certificate of {expected}, found {sorted(found)}"
