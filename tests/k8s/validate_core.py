"""Core objects against Kubernetes' own schemas, strictly: run by the environment of the tools, apart from ours.

{"versions": ["1.30"], "objects": [...]} on standard input; a list of problems, each a text, on standard output.
"""

from __future__ import annotations

import functools
import json
import sys

from kubernetes_validate import utils


def problems(given: dict) -> list[str]:
    utils.schema_contents = functools.cache(utils.schema_contents)
    found = []
    for version in given["versions"]:
        for each in given["objects"]:
            where = f"Kubernetes {version}: {each['kind']} {each['metadata']['name']}"
            try:
                utils.validate(each, version, strict=True)
            except utils.SchemaNotFoundError:
                found.append(f"{where}: no such kind in {each['apiVersion']}")
            except utils.ValidationError as error:
                found.append(f"{where}: {'.'.join(map(str, error.absolute_path))}: {error.message[:200]}")
    return found


if __name__ == "__main__":
    json.dump(problems(json.load(sys.stdin)), sys.stdout)
