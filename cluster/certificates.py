"""The Secrets that operators and people make in a cluster: passwords, and certificates of an authority of one's own."""

from __future__ import annotations

from pathlib import Path

import trustme
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from tests.k8s.manifests import Objects, of_kind
from tests.k8s.secrets import redis_users


def secrets(objects: Objects, kv_prefix: str, authority: trustme.CA) -> dict[str, dict[str, str]]:
    """By name: `k8s/make-secrets.sh` for Redis, cert-manager's for TLS, Strimzi's for each user of Kafka."""
    ca = authority.cert_pem.bytes().decode()
    chain, key = _certificate(authority.issue_cert("redis", "127.0.0.1"))
    found = {"redis-users": dict(redis_users(kv_prefix)), "redis-tls": {"ca.crt": ca, "tls.crt": chain, "tls.key": key}}
    for kafka in of_kind(objects, "Kafka"):
        found[f"{kafka['metadata']['name']}-cluster-ca-cert"] = {"ca.crt": ca}
    for user in of_kind(objects, "KafkaUser"):
        name = user["metadata"]["name"]
        chain, key = _certificate(authority.issue_cert(name, common_name=name))
        found[name] = {"user.crt": chain, "user.key": key}
    return found


def write_broker(authority: trustme.CA, folder: Path) -> tuple[Path, Path]:
    """The broker's key with its certificate, and whom it believes: in the form that Java reads."""
    chain, key = _certificate(authority.issue_cert("127.0.0.1"))
    own, trusted = folder / "broker.pem", folder / "clients.pem"
    own.write_text(key + chain)
    own.chmod(0o600)
    trusted.write_bytes(authority.cert_pem.bytes())
    return own, trusted


def _certificate(issued: trustme.LeafCert) -> tuple[str, str]:
    """Its chain and its key, the latter as PKCS 8, which everybody reads."""
    key = load_pem_private_key(issued.private_key_pem.bytes(), None)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return "".join(part.bytes().decode() for part in issued.cert_chain_pems), pem.decode()
