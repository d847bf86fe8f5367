"""A tree of YAML nodes -> a value of a msgspec type, with every problem on the way. Generic: the types are the schema.

A part that cannot be read becomes UNKNOWN and the walk goes on.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Iterable
from typing import Any

import msgspec.inspect as mi
from msgspec import NODEFAULT
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from pipeline.config.problems import UNKNOWN, Path, Places, Problem, closest, suggestion
from pipeline.config.tree import found, line_of, scalar, unknown_tag

_DURATION = re.compile(r"([0-9]{1,12})(ms|s|m|h|d)")
_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_LONGEST_LABEL = 64

Entries = dict[str, tuple[Node, Node]]  # key -> its node and the value's


class Walker:
    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.places = Places()

    def read(self, node: Node, type_: mi.Type, path: Path = ()) -> Any:
        self.places.lines.setdefault(path, line_of(node))
        if tag := unknown_tag(node):
            return self._refuse(path, node, f"the tag {tag} means nothing here")
        match type_:
            case mi.Metadata():
                return self._special(node, type_, path)
            case mi.UnionType():
                return self._union(node, type_, path)
            case mi.StructType():
                return self._struct(node, (type_,), path)
            case mi.DictType():
                return self._dict(node, type_, path)
            case mi.VarTupleType() | mi.TupleType():
                return self._list(node, type_, path)
        return self._scalar(node, (type_,), path)

    def _refuse(self, path: Path, node: Node, message: str) -> Any:
        line = None if node.value == "" else line_of(node)  # what is not there has the line of its key
        self.problems.append(self.places.problem(path, message, line))
        return UNKNOWN

    # Mappings ---------------------------------------------------------------------------------------------------

    def _entries(self, node: Node, path: Path) -> Entries | None:
        if not isinstance(node, MappingNode):
            self._refuse(path, node, f"must be a mapping, got {found(node)}")
            return None
        entries: Entries = {}
        for key_node, value in node.value:
            key = str(key_node.value) if isinstance(key_node, ScalarNode) else None
            if key is None:
                self._refuse(path, key_node, f"keys must be text, got {found(key_node)}")
            elif key in entries:
                self._refuse(path, key_node, f'duplicate key "{key}" (first in line {line_of(entries[key][0])})')
            else:
                entries[key] = (key_node, value)
                self.places.lines[(*path, key)] = line_of(key_node)
        return entries

    def _dict(self, node: Node, type_: mi.DictType, path: Path) -> Any:
        """A key that is not allowed stays in, so that nothing else complains about its absence."""
        entries = self._entries(node, path)
        if entries is None:
            return UNKNOWN
        for key, (key_node, _) in entries.items():
            if isinstance(type_.key_type, mi.LiteralType):
                self._known_key(key, key_node, [str(v) for v in type_.key_type.values], path)
            else:
                self.read(key_node, type_.key_type, (*path, key))
        return {key: self.read(value, type_.value_type, (*path, key)) for key, (_, value) in entries.items()}

    def _known_key(self, key: str, key_node: Node, allowed: Iterable[str], path: Path) -> None:
        if key not in allowed:
            hint = suggestion(key, allowed) or f"; allowed: {', '.join(allowed)}"
            self._refuse(path, key_node, f'unknown key "{key}"{hint}')

    def _struct(self, node: Node, types: tuple[mi.StructType, ...], path: Path) -> Any:
        """One of several structs, told apart by their tag, or the only one."""
        entries = self._entries(node, path)
        if entries is None:
            return UNKNOWN
        type_ = self._tagged(node, entries, types, path) if types[0].tag_field else types[0]
        return UNKNOWN if type_ is None else self._fields(node, entries, type_, path)

    def _tagged(
        self, node: Node, entries: Entries, types: tuple[mi.StructType, ...], path: Path
    ) -> mi.StructType | None:
        field = str(types[0].tag_field)
        by_tag = {str(t.tag): t for t in types}
        if field not in entries:
            self._refuse(path, node, f'missing key "{field}": {_one_of(by_tag)}')
            return None
        value = entries[field][1]
        type_ = by_tag.get(str(value.value)) if isinstance(value, ScalarNode) else None
        if type_ is None:
            self._refuse((*path, field), value, f"must be {_one_of(by_tag)}; got {found(value)}")
        return type_

    def _fields(self, node: Node, entries: Entries, type_: mi.StructType, path: Path) -> Any:
        fields = {f.encode_name: f for f in type_.fields}
        allowed = [str(type_.tag_field), *fields] if type_.tag_field else list(fields)
        for key, (key_node, _) in entries.items():
            self._known_key(key, key_node, allowed, path)
        misspelt = {closest(key, allowed) for key in entries if key not in allowed}
        values = {}
        for key, field in fields.items():
            if key in entries:
                values[field.name] = self.read(entries[key][1], field.type, (*path, key))
            elif key in misspelt:
                values[field.name] = UNKNOWN
            else:
                values[field.name] = self._default(node, field, path)
        return type_.cls(**values)

    def _default(self, node: Node, field: mi.Field, path: Path) -> Any:
        if field.required:
            return self._refuse(path, node, f'missing key "{field.encode_name}"')
        return field.default if field.default is not NODEFAULT else field.default_factory()

    # Lists ------------------------------------------------------------------------------------------------------

    def _list(self, node: Node, type_: mi.VarTupleType | mi.TupleType, path: Path) -> Any:
        if not isinstance(node, SequenceNode):
            return self._refuse(path, node, f"must be a list, got {found(node)}")
        items = node.value
        if isinstance(type_, mi.TupleType):
            types = type_.item_types
            if len(items) != len(types):
                return self._refuse(path, node, f"must be a list of {len(types)}, got {len(items)}")
        else:
            types = (type_.item_type,) * len(items)
            if len(items) < (type_.min_length or 0):
                return self._refuse(path, node, "must not be empty")
        self._label(items, path)
        return tuple(self.read(item, t, (*path, i)) for i, (item, t) in enumerate(zip(items, types, strict=True)))

    def _label(self, items: list[Node], path: Path) -> None:
        """Items are called by their `name`; one whose name is taken keeps its position."""
        taken: set[str] = set()
        for i, item in enumerate(items):
            name = _name(item)
            if name and name not in taken:
                self.places.labels[(*path, i)] = name
                taken.add(name)

    # Scalars ----------------------------------------------------------------------------------------------------

    def _special(self, node: Node, type_: mi.Metadata, path: Path) -> Any:
        extra = type_.extra or {}
        if extra.get("duration"):
            return self._duration(node, type_.type, path)
        if extra.get("magnitude") and isinstance(value := _scalar(node), int | float) and value < 0:
            return self._refuse(path, node, f"is a magnitude that gets subtracted; write {-value}, not {value}")
        return self.read(node, type_.type, path)

    def _duration(self, node: Node, type_: mi.Type, path: Path) -> Any:
        value = _scalar(node)
        match = _DURATION.fullmatch(value) if isinstance(value, str) else None
        if match is None and not (type(value) is int and value == 0):
            return self._refuse(path, node, f"must be a duration such as 30s, 10m, 12h or 7d, got {found(node)}")
        ms = 0 if match is None else int(match[1]) * _MS[match[2]]
        if wrong := _out_of_bounds(ms, type_, _as_days):
            return self._refuse(path, node, f"must be {wrong}, got {found(node)}")
        return ms

    def _union(self, node: Node, type_: mi.UnionType, path: Path) -> Any:
        if isinstance(node, ScalarNode) and scalar(node) is None and _has(type_.types, mi.NoneType):
            return None
        types = tuple(t for t in type_.types if not isinstance(t, mi.NoneType))
        structs = tuple(t for t in types if isinstance(t, mi.StructType))
        if structs:
            return self._struct(node, structs, path)
        return self.read(node, types[0], path) if len(types) == 1 else self._scalar(node, types, path)

    def _scalar(self, node: Node, types: tuple[mi.Type, ...], path: Path) -> Any:
        """The first of the types that takes the value."""
        value = _scalar(node)
        for type_ in types:
            if _fits(value, type_):
                number = _float(value) if isinstance(type_, mi.FloatType) else value
                wrong = _out_of_bounds(number, type_, str) or _wrong_text(number, type_)
                return self._refuse(path, node, f"must be {wrong}, got {found(node)}") if wrong else number
        expected = " or ".join(_expected(t) for t in types)
        separator = ";" if isinstance(types[-1], mi.LiteralType) and len(types) == 1 else ","
        return self._refuse(path, node, f"must be {expected}{separator} got {found(node)}{_unquote(value, types)}")


def _name(item: Node) -> str | None:
    pairs = item.value if isinstance(item, MappingNode) else []
    for key, value in pairs:
        if key.value == "name" and isinstance(value, ScalarNode) and len(value.value) <= _LONGEST_LABEL:
            return str(value.value)
    return None


def _one_of(names: Iterable[object]) -> str:
    texts = [str(name) for name in names]
    return f"one of {', '.join(texts)}" if len(texts) > 1 else texts[0]


def _scalar(node: Node) -> Any:
    """The node's value; a mapping or a list as UNKNOWN, which fits no type."""
    return scalar(node) if isinstance(node, ScalarNode) else UNKNOWN


def _as_days(ms: float) -> str:
    return f"{ms / _MS['d']:g}d"


def _has(types: Iterable[mi.Type], cls: type[mi.Type]) -> bool:
    return any(isinstance(t, cls) for t in types)


def _float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _fits(value: Any, type_: mi.Type) -> bool:
    match type_:
        case mi.LiteralType():
            return any(type(value) is type(v) and value == v for v in type_.values)
        case mi.StrType():
            return isinstance(value, str)
        case mi.BoolType():
            return isinstance(value, bool)
        case mi.IntType():
            return isinstance(value, int) and not isinstance(value, bool)
        case mi.FloatType():
            return isinstance(value, int | float) and not isinstance(value, bool)
    return False


def _expected(type_: mi.Type) -> str:
    match type_:
        case mi.LiteralType():
            return _one_of(type_.values)
        case mi.StrType():
            return "text"
        case mi.BoolType():
            return "true or false"
        case mi.IntType():
            return "an integer"
    return "a number"


def _out_of_bounds(value: Any, type_: mi.Type, shown: Any) -> str | None:
    if not isinstance(type_, mi.IntType | mi.FloatType):
        return None
    if isinstance(value, float) and not math.isfinite(value):
        return "finite"
    bounds = ((type_.ge, ">=", operator.ge), (type_.gt, ">", operator.gt), (type_.le, "<=", operator.le))
    for bound, sign, holds in (*bounds, (type_.lt, "<", operator.lt)):
        if bound is not None and not holds(value, bound):
            return f"{sign} {shown(bound)}"
    return None


def _wrong_text(value: Any, type_: mi.Type) -> str | None:
    if not isinstance(type_, mi.StrType):
        return None
    if type_.pattern is not None and not re.fullmatch(type_.pattern, value):
        return f"text that matches {type_.pattern}"
    return "longer" if len(value) < (type_.min_length or 0) else None


def _unquote(value: Any, types: tuple[mi.Type, ...]) -> str:
    """A number in quotes is text."""
    if not isinstance(value, str) or not (_has(types, mi.FloatType) or _has(types, mi.IntType)):
        return ""
    try:
        float(value)
    except ValueError:
        return ""
    return " (without the quotes it is a number)"
