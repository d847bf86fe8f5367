"""Kubernetes' schemas for its own kinds, and those of the operators for theirs."""

from __future__ import annotations

import functools
import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

from tests.k8s.manifests import Objects

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / ".cluster" / "k8s"
VERSIONS = ("1.30", "1.33", "1.36")  # the oldest that we run on, and later ones
_CUSTOM = ("kafka.strimzi.io", "flink.apache.org", "monitoring.coreos.com")
_SCHEMAS = "PAGETURN_CRD_SCHEMAS"  # a file: {"group/version/Kind": JSON schema}


def is_custom(each: dict[str, Any]) -> bool:
    return str(each["apiVersion"]).partition("/")[0] in _CUSTOM


def check_core(objects: Objects, versions: Sequence[str] = VERSIONS) -> list[str]:
    """A kind of no group that we know is a problem, too."""
    core = [each for each in objects if not is_custom(each)]
    script = str(Path(__file__).with_name("validate_core.py"))
    done = subprocess.run(
        [str(TOOLS / "venv" / "bin" / "python"), script],
        input=json.dumps({"versions": versions, "objects": core}), capture_output=True, text=True, check=True,
    )  # fmt: skip
    found: list[str] = json.loads(done.stdout)
    return found


def crd_file() -> Path | None:
    named = os.environ.get(_SCHEMAS)
    path = Path(named) if named else ROOT.parent / "shared" / "crd-schemas.json"
    return path if path.is_file() else None


@functools.cache
def _validators(path: Path) -> dict[str, Draft202012Validator]:
    return {name: Draft202012Validator(schema) for name, schema in json.loads(path.read_bytes()).items()}


def check_custom(objects: Objects, path: Path) -> Iterator[str]:
    for each in filter(is_custom, objects):
        where = f"{each['kind']} {each['metadata']['name']}"
        validator = _validators(path).get(f"{each['apiVersion']}/{each['kind']}")
        if validator is None:
            yield f"{where}: {path.name} has no schema of {each['apiVersion']}/{each['kind']}"
            continue
        for error in validator.iter_errors(each):
            yield f"{where}: {'.'.join(map(str, error.absolute_path))}: {error.message[:200]}"
