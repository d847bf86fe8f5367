"""YAML 1.2 text -> a tree of nodes that know their lines. Nothing is constructed: `walking.py` reads the nodes."""

from __future__ import annotations

import math

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode

from pipeline.config.problems import ConfigError, Problem

Scalar = bool | int | float | str | None

_CORE = "tag:yaml.org,2002:"
_KNOWN_TAGS = frozenset(
    _CORE + kind for kind in ("map", "seq", "str", "int", "float", "bool", "null", "merge", "timestamp")
)


def compose(text: str, origin: str) -> Node:
    """The document's root. ConfigError with line and column where the text is no YAML."""
    try:
        root: Node | None = YAML(typ="rt", pure=True).compose(text.removeprefix("\ufeff"))
    except MarkedYAMLError as error:
        raise ConfigError(origin, [_unreadable(error)]) from error
    except YAMLError as error:
        raise ConfigError(origin, [Problem("", None, f"not YAML: {' '.join(str(error).split())}")]) from error
    except RecursionError:
        raise ConfigError(origin, [Problem("", None, "not a config: nested too deep")]) from None
    if root is None:
        raise ConfigError(origin, [Problem("", None, "is empty; a config is a mapping")])
    return root


def _unreadable(error: MarkedYAMLError) -> Problem:
    mark = error.problem_mark or error.context_mark
    what = " ".join(str(part) for part in (error.context, error.problem) if part)
    line = None if mark is None else mark.line + 1
    column = "" if mark is None else f", column {mark.column + 1}"
    return Problem("", line, f"not YAML{column}: {what}")


def line_of(node: Node) -> int:
    return int(node.start_mark.line) + 1


def unknown_tag(node: Node) -> str | None:
    """A tag such as !include that this reader gives no meaning."""
    tag = str(node.tag)
    return None if tag in _KNOWN_TAGS else tag


def scalar(node: ScalarNode) -> Scalar:
    """The value as YAML 1.2 reads it: `no` is text, 1e-3 a number, 010 is ten. Dates are text."""
    text = str(node.value)
    match str(node.tag).removeprefix(_CORE):
        case "null":
            return None
        case "bool":
            return text.lower() == "true"
        case "int":
            return _integer(text)
        case "float":
            return float(text.replace("_", "").lower().replace(".inf", "inf").replace(".nan", "nan"))
    return text


def _integer(text: str) -> int | float:
    digits = text.replace("_", "")
    try:
        return int(digits, 0 if digits.lstrip("+-")[:2].lower() in ("0x", "0o", "0b") else 10)
    except ValueError:  # thousands of digits
        return math.inf


def found(node: Node) -> str:
    """What is there, for the end of a message."""
    if isinstance(node, MappingNode):
        return "a mapping"
    if not isinstance(node, ScalarNode):
        return "a list"
    value = scalar(node)
    if value is None:
        return "nothing"
    text = repr(value) if isinstance(value, str) else str(node.value)
    return text if len(text) <= 60 else f"{text[:57]}..."
