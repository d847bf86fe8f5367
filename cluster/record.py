"""What is known of a shape that is up, in its folder: where things are."""

from __future__ import annotations

from pathlib import Path

import msgspec
from msgspec import Struct

from pipeline import durable
from pipeline.errors import PageturnError

_FILE = "shape.json"
FEATURE_CONFIG = "feature_config.yaml"


class ShapeError(PageturnError):
    """The shape is not up, is up already, or does not come up."""


class Record(Struct, frozen=True):
    overlay: str
    factor: float
    visits_per_s: float
    agent: str
    store_url: str
    prometheus: int
    alertmanager: int


def write_record(folder: Path, record: Record) -> None:
    durable.write(folder / _FILE, msgspec.json.encode(record))


def read_record(folder: Path) -> Record:
    try:
        return msgspec.json.decode((folder / _FILE).read_bytes(), type=Record)
    except (OSError, msgspec.MsgspecError) as error:
        message = f"{folder}: expected a shape that is up, found {error}; `make up` starts one"
        raise ShapeError(message) from error
