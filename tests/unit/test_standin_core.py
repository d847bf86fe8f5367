"""The stand-in's inside with models that are not TensorFlow's."""

import threading
import time
from contextlib import contextmanager

import grpc
import pytest

from pipeline.serving import models_config
from pipeline.serving.protos import ModelSpec
from pipeline.serving.standin import desired
from pipeline.serving.standin.core import Core, Options
from pipeline.serving.standin.manager import Report, State
from pipeline.serving.standin.status import StatusError

QUICK = Options(poll_wait_s=0.02, load_threads=2, unload_threads=1, retries=0)


class Loaded:
    def __init__(self, path):
        self.path = path
        self.closed = threading.Event()

    def close(self):
        self.closed.set()


def load(path):
    if path.endswith("13"):
        raise StatusError(grpc.StatusCode.DATA_LOSS, "broken")
    return Loaded(path)


def config(*entries):
    text = "\n".join(
        f'config {{ name: "{name}" base_path: "{path}" model_platform: "tensorflow" {rest} }}'
        for name, path, rest in entries
    )
    return models_config.parse_message(f"model_config_list {{ {text} }}").model_config_list.config


def add(base, *versions):
    for version in versions:
        (base / str(version)).mkdir(parents=True)


def spec(name, version=None, label=""):
    asked = ModelSpec(name=name)
    if version is not None:
        asked.version.value = version
    if label:
        asked.version_label = label
    return asked


def eventually(condition):
    deadline = time.monotonic() + 250
    while not condition():
        assert time.monotonic() < deadline, "did not happen within 250 s"
        time.sleep(0.01)


@contextmanager
def started(models, options=QUICK, loader=load):
    core = Core(loader, options)
    try:
        core.start(models)
        yield core
    finally:
        core.close()


def available(core, model):
    return {version for version, report in core.reports(model).items() if report.state is State.AVAILABLE}


def ended(core, model):
    return {version for version, report in core.reports(model).items() if report.state is State.END}


def test_latest_follows_the_folder_and_rolls_back_with_it(tmp_path):
    add(tmp_path, 1)
    with started(config(("m", tmp_path, ""))) as core:
        add(tmp_path, 2)
        eventually(lambda: available(core, "m") == {2})
        (tmp_path / "2").rmdir()
        eventually(lambda: available(core, "m") == {1})
        eventually(lambda: ended(core, "m") == {2})


def test_a_version_in_use_is_not_closed(tmp_path):
    add(tmp_path, 1)
    with started(config(("m", tmp_path, ""))) as core:
        with core.use(spec("m", 1)) as servable:
            add(tmp_path, 2)
            eventually(lambda: core.reports("m")[1].state is State.UNLOADING)
            with pytest.raises(StatusError, match=r"^Servable not found for request: Specific\(m, 1\)$"):
                core.use(spec("m", 1)).__enter__()
            assert not servable.bundle.closed.is_set()
        eventually(servable.bundle.closed.is_set)
        eventually(lambda: ended(core, "m") == {1})


def test_start_fails_when_the_highest_version_does(tmp_path):
    add(tmp_path, 13)
    with pytest.raises(StatusError) as raised, started(config(("m", tmp_path, ""))):
        pass
    assert raised.value.code is grpc.StatusCode.UNKNOWN
    assert raised.value.text == (
        "1 servable(s) did not become available: {{{name: m version: 13} due to error: DATA_LOSS: broken}, }"
    )


def test_a_running_server_keeps_the_old_version_when_the_new_one_fails(tmp_path):
    add(tmp_path, 1)
    with started(config(("m", tmp_path, ""))) as core:
        add(tmp_path, 13)
        eventually(lambda: ended(core, "m") == {13})
        assert core.reports("m")[13].failure == (15, "DATA_LOSS", "broken")
        assert available(core, "m") == {1}


def test_a_failed_load_is_repeated_as_often_as_allowed(tmp_path):
    add(tmp_path, 1)
    attempts = []

    def third_time(path):
        attempts.append(path)
        return load(path if len(attempts) == 3 else "13")

    with started(config(("m", tmp_path, "")), Options(retries=2, retry_interval_s=0.0), third_time) as core:
        assert available(core, "m") == {1}
    assert len(attempts) == 3


def test_a_retry_is_given_up_when_the_version_is_not_wanted_any_more(tmp_path):
    add(tmp_path, 1)
    patient = Options(poll_wait_s=0.02, load_threads=1, unload_threads=1, retries=5, retry_interval_s=3600)
    with started(config(("m", tmp_path, "")), patient) as core:
        add(tmp_path, 13)
        eventually(lambda: core.reports("m").get(13) is not None and core.reports("m")[13].state is State.LOADING)
        (tmp_path / "13").rmdir()
        eventually(lambda: ended(core, "m") == {13})


def test_reload_waits_for_new_models_and_drops_old_ones(tmp_path):
    add(tmp_path / "a", 1)
    add(tmp_path / "b", 4)
    with started(config(("a", tmp_path / "a", ""))) as core:
        core.reload(config(("b", tmp_path / "b", "")), 20)
        assert available(core, "b") == {4}
        eventually(lambda: ended(core, "a") == {1})


def test_reload_gives_up_at_its_deadline_and_later_ones_work(tmp_path):
    add(tmp_path / "a", 1)
    (tmp_path / "b").mkdir()
    with started(config(("a", tmp_path / "a", ""))) as core:
        with pytest.raises(StatusError) as raised:
            core.reload(config(("a", tmp_path / "a", ""), ("b", tmp_path / "b", "")), 0.05)
        assert raised.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
        core.reload(config(("a", tmp_path / "a", "")), 20)


def test_a_missing_base_path_unloads_nothing(tmp_path):
    add(tmp_path / "a", 1)
    with started(config(("a", tmp_path / "a", ""))) as core:
        (tmp_path / "a").rename(tmp_path / "away")
        with pytest.raises(StatusError):  # time for several polls
            core.reload(config(("a", tmp_path / "a", ""), ("b", tmp_path / "b", "")), 0.3)
        assert available(core, "a") == {1}


def test_labels_point_at_available_versions(tmp_path):
    add(tmp_path, 1, 2)
    every = "model_version_policy { all {} }"
    labelled = every + ' version_labels { key: "stable" value: %d }'
    with started(config(("m", tmp_path, every))) as core:
        eventually(lambda: available(core, "m") == {1, 2})
        core.reload(config(("m", tmp_path, labelled % 1)), 20)
        with core.use(spec("m", label="stable")) as servable:
            assert servable.version == 1
        with pytest.raises(StatusError, match="Request to assign label to version 9 of model m, which is not"):
            core.reload(config(("m", tmp_path, labelled % 9)), 20)
        with pytest.raises(StatusError, match=r"^Unrecognized servable version label: canary$"):
            core.use(spec("m", label="canary")).__enter__()


def test_with_leave_a_new_label_may_point_anywhere_but_a_moved_one_may_not():
    entries = config(("m", "/m", 'version_labels { key: "stable" value: 9 }'))
    reports = {"m": {1: Report(State.AVAILABLE, None, 1)}}
    assert desired.check_labels(entries, {}, reports, True) == {"m": {"stable": 9}}
    with pytest.raises(StatusError):
        desired.check_labels(entries, {"m": {"stable": 1}}, reports, True)
    with pytest.raises(StatusError):
        desired.check_labels(entries, {}, reports, False)


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("", {12: "/m/00012"}),
        ("model_version_policy { latest { num_versions: 2 } }", {7: "/m/7", 12: "/m/00012"}),
        ("model_version_policy { all {} }", {-1: "/m/-1", 7: "/m/7", 12: "/m/00012"}),
        ("model_version_policy { specific { versions: 7 versions: 99 } }", {7: "/m/7"}),
    ],
)
def test_version_policies_and_folder_names(policy, expected):
    children = ["7", "00012", "-1", ".tmp-13", "bad", "1e3", "99999999999999999999"]
    assert desired.versions(config(("m", "/m", policy))[0], children) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('config { name: "m" base_path: "/a" } config { name: "m" base_path: "b" }', "multiple times in config list"),
        ('config { name: "m" base_path: "a" }', "to have an absolute path or URI; got base_path()=a"),
        ('config { name: "m" base_path: "/a" }', "Illegal setting neither ModelServerConfig::model_type"),
        ('config { name: "m" base_path: "/a" model_platform: "other" }', "platform was tensorflow and new platform"),
        ('config { name: "n" base_path: "/a" model_platform: "other" }', "Model n requests unsupported platform other"),
    ],
)
def test_configs_are_refused_with_the_first_objection(text, expected):
    new = models_config.parse_message(f"model_config_list {{ {text} }}").model_config_list.config
    with pytest.raises(StatusError) as raised:
        desired.validate(new, config(("m", "/a", "")))
    assert raised.value.code is grpc.StatusCode.INVALID_ARGUMENT
    assert expected in raised.value.text
