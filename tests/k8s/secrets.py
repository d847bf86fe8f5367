"""Which Secrets there are: none is with the manifests, so who makes each, and what is in it."""

from __future__ import annotations

import functools
import subprocess
from pathlib import Path
from typing import Any

from tests.k8s.manifests import Objects, load, of_kind

ROOT = Path(__file__).resolve().parents[2]


def secret_keys(objects: Objects) -> dict[str, set[str]]:
    """Name -> keys."""
    found = {
        "redis-users": set(redis_users()),
        "redis-tls": {"ca.crt", "tls.crt", "tls.key"},  # cert-manager: Certificate.spec.secretName
    }
    for kafka in of_kind(objects, "Kafka"):  # Strimzi: the cluster's CA, and a Secret of each user's name
        found[f"{kafka['metadata']['name']}-cluster-ca-cert"] = {"ca.crt", "ca.p12", "ca.password"}
    for user in of_kind(objects, "KafkaUser"):
        found[user["metadata"]["name"]] = {"ca.crt", "user.crt", "user.key", "user.p12", "user.password"}
    return found


@functools.cache
def redis_users(prefix: str = "gyl") -> dict[str, str]:
    """What k8s/make-secrets.sh makes: a password for each user, and `users.acl`."""
    script = str(ROOT / "k8s" / "make-secrets.sh")
    done = subprocess.run([script, prefix], capture_output=True, text=True, check=True)
    [secret] = load(done.stdout)
    made: dict[str, Any] = secret["stringData"]
    return made
