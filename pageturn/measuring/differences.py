"""Where the configs of several runs differ, setting by setting."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from msgspec import to_builtins

from pipeline.config.schema import FeatureConfig

Setting = tuple[str, tuple[str, ...]]  # its path; its value in each run, "–" where there is none
NONE = "–"


def differences(configs: Sequence[FeatureConfig]) -> tuple[Setting, ...]:
    """Defaults are settings like any other: two files that mean the same do not differ."""
    flat = [dict(_flat("", to_builtins(config))) for config in configs]
    paths = dict.fromkeys(path for each in flat for path in each)
    found = ((path, tuple(each.get(path, NONE) for each in flat)) for path in paths)
    return tuple((path, values) for path, values in found if len(set(values)) > 1)


def _flat(path: str, value: Any) -> Iterator[tuple[str, str]]:
    """What has a name goes by it, so that one more feature is not a difference in all that come after it."""
    if isinstance(value, dict) and value:
        for key, each in value.items():
            yield from _flat(f"{path}.{key}" if path else str(key), each)
    elif isinstance(value, list | tuple) and value and all(isinstance(each, dict) and "name" in each for each in value):
        for each in value:
            rest = {key: x for key, x in each.items() if key != "name"}
            yield from _flat(f"{path}[{each['name']}]", rest)
    else:
        yield path, str(value)
