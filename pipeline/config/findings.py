"""How rules are run over a config that may have unreadable parts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from pipeline.config.problems import DependsOnUnknown, Path, Unknown


class Finding(NamedTuple):
    path: Path
    message: str


Findings = Iterator[Finding]


def until_unknown(rule: Callable[..., Findings], *args: object) -> Findings:
    """What a rule finds before it meets a part that could not be read."""
    try:
        yield from rule(*args)
    except DependsOnUnknown:
        return


def for_each(
    items: Callable[[], Sequence[Any]], prefix: Path, rules: Iterable[Callable[..., Findings]], *args: object
) -> Findings:
    """What the rules find in each readable item: rule(*args, item), paths relative to the item."""
    try:
        readable = [(i, item) for i, item in enumerate(items()) if not isinstance(item, Unknown)]
    except DependsOnUnknown:
        return
    for i, item in readable:
        for rule in rules:
            for finding in until_unknown(rule, *args, item):
                yield Finding((*prefix, i, *finding.path), finding.message)


def all_read(items: Iterable[Any]) -> list[Any]:
    """The items; DependsOnUnknown if one of them could not be read."""
    items = list(items)
    if any(isinstance(item, Unknown) for item in items):
        raise DependsOnUnknown
    return items


def repeated_names(items: Sequence[Any], prefix: Path) -> Findings:
    first: dict[str, int] = {}
    for i, item in enumerate(items):
        if isinstance(item, Unknown) or isinstance(item.name, Unknown):
            continue
        if item.name in first:
            yield Finding(
                (*prefix, i, "name"), f'"{item.name}" is used twice (entries {first[item.name] + 1} and {i + 1})'
            )
        first.setdefault(item.name, i)
