"""The types of the feature config as the tables of docs/configuration.md: keys, values, defaults, and their comments.

python -m pageturn.config_table docs/configuration.md    # writes them anew, between their marks
"""

from __future__ import annotations

import inspect
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import FieldInfo, fields

from pipeline.config.schema import FeatureConfig

_BEGIN, _END = "<!-- types: begin -->", "<!-- types: end -->"
_UNITS = (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1))
_PLAIN = {str: "text", int: "whole number", float: "number", bool: "true or false", type(None): "nothing"}


def markdown() -> str:
    return "\n\n".join(_section(each) for each in dict.fromkeys(_reached(FeatureConfig)))


def _reached(type_: type[Struct]) -> Iterator[type[Struct]]:
    """The type, then those of its keys, in their order."""
    yield type_
    for hint in _hints(type_).values():
        for each in _structs(hint):
            yield from _reached(each)


def _structs(hint: Any) -> Iterator[type[Struct]]:
    if isinstance(hint, type) and issubclass(hint, Struct):
        yield hint
    for inner in get_args(hint):
        yield from _structs(inner)


def _hints(type_: type[Struct]) -> dict[str, Any]:
    return get_type_hints(type_, include_extras=True)


def _section(type_: type[Struct]) -> str:
    said, comments, hints = _docstring(type_), _comments(type_), _hints(type_)
    rows = ["| key | value | default | |", "|---|---|---|---|"]
    rows += [f"| `{key}` | `{value}` | | |" for key, value in _tag(type_)]
    for field in fields(type_):
        value, default = _value(hints[field.name]), _default(field, hints[field.name])
        rows.append(f"| `{field.encode_name}` | {value} | {default} | {comments.get(field.name, '')} |")
    return "\n\n".join([f"### {type_.__name__}", *([said] if said else []), "\n".join(rows)])


def _docstring(type_: type[Struct]) -> str:
    return inspect.cleandoc(type_.__dict__.get("__doc__") or "").replace("\n", " ").replace("  ", " ")


def _tag(type_: type[Struct]) -> Iterator[tuple[str, str]]:
    info = type_.__struct_config__
    if info.tag_field is not None:
        yield info.tag_field, str(info.tag)


# Values ----------------------------------------------------------------------------------------------------------


def _value(hint: Any) -> str:
    if hint in _PLAIN:
        return _PLAIN[hint]
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _bounded(inner[0], inner[1:])
    if origin is Literal:
        return " or ".join(f"`{choice}`" for choice in inner)
    if origin in (Union, types.UnionType):
        return " or ".join(_value(each) for each in inner if each is not type(None))
    if origin is tuple:
        return f"list of {_value(inner[0])}" if inner[-1] is ... else f"[{', '.join(map(_value, inner))}]"
    if origin is dict:
        return f"map from {_value(inner[0])} to {_value(inner[1])}"
    return f"[{hint.__name__}](#{hint.__name__.lower()})"


def _bounded(hint: Any, metas: tuple[Any, ...]) -> str:
    if any((meta.extra or {}).get("duration") for meta in metas):
        return "duration"
    text = _value(hint)
    bounds = [bound for meta in metas for bound in _bounds(meta)]
    return f"{text}, {' and '.join(bounds)}" if bounds else text


def _bounds(meta: Meta) -> Iterator[str]:
    signs = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
    for name, words in signs.items():
        if (bound := getattr(meta, name)) is not None:
            yield f"{words} {bound:,}"
    if meta.pattern is not None:
        yield f"like `{meta.pattern}`".replace("|", "\\|")
    if meta.min_length:
        yield "not empty"


def _default(field: FieldInfo, hint: Any) -> str:
    if field.default_factory is not msgspec.NODEFAULT:
        return _shown(field.default_factory(), hint)
    return "**required**" if field.default is msgspec.NODEFAULT else _shown(field.default, hint)


def _shown(value: Any, hint: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, Struct):
        return "its defaults"
    if _value(hint) == "duration":
        return f"`{_duration(value)}`"
    return f"`{msgspec.json.encode(value).decode()}`".replace('"', "")


def _duration(value_ms: int) -> str:
    return next(f"{value_ms // size}{unit}" for unit, size in _UNITS if value_ms % size == 0)


# Comments --------------------------------------------------------------------------------------------------------


def _comments(type_: type[Struct]) -> dict[str, str]:
    """Of the fields, also inherited ones: what stands behind a field's line, or on lines of its own before it."""
    found: dict[str, str] = {}
    for base in reversed(type_.__mro__):
        if issubclass(base, Struct) and base.__module__.startswith("pipeline."):
            found |= _own_comments(inspect.getsource(base))
    return found


def _own_comments(source: str) -> dict[str, str]:
    found, before = {}, list[str]()
    for line in source.splitlines():
        if alone := re.fullmatch(r"\s+# (.*)", line):
            before.append(alone[1])
        elif field := re.match(r"    (\w+): [^#]*(?:#\s*(.*))?$", line):
            found[field[1]] = " ".join([*before, *([field[2]] if field[2] else [])]).replace("|", "\\|")
            before = []
        else:
            before = []
    return {name: text for name, text in found.items() if text}


def main(path: Path) -> None:
    text = re.sub(f"{_BEGIN}.*{_END}", lambda _: f"{_BEGIN}\n{markdown()}\n{_END}", path.read_text(), flags=re.S)
    path.write_text(text)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
