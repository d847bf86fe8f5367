"""The alert rules as the Prometheus operator takes them: `python -m tests.k8s.alerts` writes the file anew.

The rules themselves are plain files, which promtool checks; it refuses the operator's form of them.
"""

from __future__ import annotations

from pathlib import Path

import yaml

K8S = Path(__file__).resolve().parents[2] / "k8s"
WRAPPED = K8S / "components" / "monitoring" / "rules.yaml"
_HEAD = "# Made from k8s/monitoring/rules by `make alerts`: change those.\n"


def wrapped() -> str:
    files = sorted((K8S / "monitoring" / "rules").glob("*.yaml"))
    groups = [group for file in files for group in yaml.safe_load(file.read_text())["groups"]]
    resource = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "pageturn"},
        "spec": {"groups": groups},
    }
    return _HEAD + yaml.safe_dump(resource, sort_keys=False, allow_unicode=True, width=120)


if __name__ == "__main__":
    WRAPPED.write_text(wrapped())
