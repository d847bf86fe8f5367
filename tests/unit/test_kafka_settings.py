"""A kafka:// URL, the environment and a file become clients' settings; and no message shows a secret."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from pipeline.logs.kafka.kafka_log import KafkaLog
from pipeline.logs.kafka.settings import settings_of
from pipeline.logs.log import LogError
from pipeline.logs.opening import open_log

SECRET = "hunter2"


def test_the_least_url() -> None:
    settings = settings_of("kafka://b1:9092", {})
    assert (settings.brokers, settings.prefix, settings.timeout_s) == ("b1:9092", "", 30)
    assert (settings.topic, settings.client, settings.producer) == ({}, {}, {})
    assert settings.name_of("events") == "events"


def test_all_that_a_url_can_say() -> None:
    query = "security.protocol=SASL_SSL&ssl.ca.location=/etc/ca.pem&linger.ms=20&topic.retention.ms=1000&timeout_s=5"
    settings = settings_of(f"kafka://b1:9092,b2:9093,[::1]:9094/team.feed?{query}", {})
    assert settings.brokers == "b1:9092,b2:9093,[::1]:9094"
    assert settings.name_of("events") == "team.feed.events"
    assert settings.client == {"security.protocol": "SASL_SSL", "ssl.ca.location": "/etc/ca.pem"}
    assert settings.producer == {"linger.ms": "20"}
    assert (settings.topic, settings.replication) == ({"retention.ms": "1000"}, -1)
    assert settings.timeout_s == 5


def test_the_url_goes_before_the_environment_and_that_before_the_file(tmp_path: Path) -> None:
    file = tmp_path / "kafka.properties"
    file.write_text(f"# as Kafka's own tools read it\nsasl.password = {SECRET}=x\nclient.id=file\nclient.rack=file\n")
    environment = {
        "PAGETURN_KAFKA_SETTINGS": str(file),
        "PAGETURN_KAFKA_CLIENT_ID": "environment",
        "PAGETURN_KAFKA_CLIENT_RACK": "environment",
        "PAGETURN_KAFKA_TIMEOUT_S": "7",
        "PATH": "/bin",
    }
    settings = settings_of("kafka://b1:9092?client.id=url", environment)
    assert settings.client == {"client.id": "url", "client.rack": "environment", "sasl.password": f"{SECRET}=x"}
    assert settings.timeout_s == 7


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("kafka://", "brokers ''"),
        ("kafka://b1:9092,", "brokers 'b1:9092,'"),
        ("kafka://b1:port", "brokers 'b1:port'"),
        ("kafka://b1/a/b", "prefix 'a/b'"),
        ("kafka://b1/a#b", "prefix 'a'"),
        ("kafka://b1?nonsense", "not name=value"),
        ("kafka://b1?acks=0", "found acks"),
        ("kafka://b1?group.id=x&enable.idempotence=false", "found enable.idempotence, group.id"),
        ("kafka://b1?topic.message.timestamp.type=CreateTime", "found topic.message.timestamp.type"),
        ("kafka://b1?timeout_s=0", "timeout_s from 1 to 600, found '0'"),
        ("kafka://b1?timeout_s=soon", "timeout_s from 1 to 600, found 'soon'"),
        ("kafka://b1?settings=/nowhere/x", "cannot read the Kafka settings /nowhere/x"),
        ("kafka://b1?topic.replication.factor=many", "found 'many'"),
    ],
)
def test_mistakes(url: str, message: str) -> None:
    with pytest.raises(LogError, match=message):
        settings_of(url, {})


@pytest.mark.parametrize(
    "url",
    [
        f"kafka://user:{SECRET}@b1:9092/feed",
        f"kafka://b1:9092?sasl.password={SECRET}",
        f"kafka://b1:9092?ssl.key.password={SECRET}&sasl.username=u",
        f"kafka://b1:9092?sasl.oauthbearer.client.secret={SECRET}",
        f"kafka://b1:9092?ssl.key.pem={SECRET}",
        f"kafkas://user:{SECRET}@b1:9092/feed",
    ],
)
def test_a_secret_in_a_url_is_refused_and_not_shown(url: str) -> None:
    with pytest.raises(LogError) as caught:
        open_log(url)
    assert SECRET not in str(caught.value)
    assert "sasl.password" not in url or "PAGETURN_KAFKA_SASL_PASSWORD" in str(caught.value)


def test_settings_do_not_show_secrets() -> None:
    settings = settings_of("kafka://b1:9092", {"PAGETURN_KAFKA_SASL_PASSWORD": SECRET})
    assert settings.client == {"sasl.password": SECRET}
    assert SECRET not in repr(settings) + settings.where


def test_a_line_of_the_file_that_is_no_setting_is_named_but_not_shown(tmp_path: Path) -> None:
    file = tmp_path / "kafka.properties"
    file.write_text(f"client.id=x\n\n{SECRET}\n")
    with pytest.raises(LogError, match=r"kafka\.properties:3: expected name=value") as caught:
        settings_of(f"kafka://b1:9092?settings={file}", {})
    assert SECRET not in str(caught.value)


def test_a_copy_of_a_log_carries_no_secret() -> None:
    log = KafkaLog("kafka://b1:9092/feed", {"PAGETURN_KAFKA_SASL_PASSWORD": SECRET})
    carried = pickle.dumps(log)
    assert SECRET.encode() not in carried
    copy = pickle.loads(carried)
    assert isinstance(copy, KafkaLog)
    copy.close()
    log.close()
