"""A config's text with another value in it; comments and the order of keys stay."""

from __future__ import annotations

from io import StringIO

from ruamel.yaml import YAML


def with_seed(text: str, seed: int) -> str:
    """The config's text with `algorithm.seed` set. It is a valid config."""
    yaml = YAML()
    yaml.width = 120
    yaml.indent(mapping=2, sequence=4, offset=2)
    document = yaml.load(text)
    document["algorithm"]["seed"] = seed
    changed = StringIO()
    yaml.dump(document, changed)
    return changed.getvalue()
