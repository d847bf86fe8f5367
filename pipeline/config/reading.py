"""YAML -> FeatureConfig. One call finds all problems: of form (`walking.py`) and of sense (`checks.py`)."""

from __future__ import annotations

import pathlib

import msgspec.inspect as mi

from pipeline.config.checks import check
from pipeline.config.problems import ConfigError, Problem
from pipeline.config.schema import FeatureConfig
from pipeline.config.tree import compose
from pipeline.config.walking import Walker

__all__ = ["ConfigError", "Problem", "load_config", "parse_config"]


def load_config(path: pathlib.Path) -> FeatureConfig:
    """Read a feature config. ConfigError carries every problem with its line."""
    try:
        data = pathlib.Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(str(path), [Problem("", None, f"cannot be read: {error.strerror}")]) from error
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        message = f"is not UTF-8: byte {data[error.start]:#04x} ({error.reason})"
        raise ConfigError(str(path), [Problem("", line, message)]) from error
    return parse_config(text, str(path))


def parse_config(text: str, origin: str = "<text>") -> FeatureConfig:
    """The config that a text in YAML 1.2 describes. `origin` names it in messages."""
    walker = Walker()
    config = walker.read(compose(text, origin), mi.type_info(FeatureConfig))
    problems = walker.problems + [walker.places.problem(*finding) for finding in check(config)]
    if problems:
        raise ConfigError(origin, sorted(problems, key=lambda p: p.line or 0))
    assert isinstance(config, FeatureConfig)
    return config
