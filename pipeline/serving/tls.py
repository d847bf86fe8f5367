"""gRPC credentials from a folder as Kubernetes mounts a TLS Secret: tls.crt, tls.key, ca.crt (PEM).

A server reads its folder again when a file in it changes, so that a renewed certificate needs no restart. A client
reads it once: its channels live as long as it does.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import NamedTuple

import grpc

from pipeline.errors import PageturnError

_CERTIFICATE, _KEY, _AUTHORITY = "tls.crt", "tls.key", "ca.crt"
_LOG = logging.getLogger(__name__)


class TlsError(PageturnError):
    """A certificate, key or authority is missing or cannot be used."""


class Identity(NamedTuple):
    """What one side of a connection shows, and whom it believes; bytes of PEM files."""

    certificate: bytes | None
    key: bytes | None
    authority: bytes | None


def read_identity(folder: Path) -> Identity:
    """Raises TlsError where a file cannot be read, or of certificate and key only one is there."""
    identity = Identity(*(_read(folder / name) for name in (_CERTIFICATE, _KEY, _AUTHORITY)))
    if (identity.certificate is None) != (identity.key is None):
        message = f"{folder}: expected {_CERTIFICATE} and {_KEY}, found only one of them"
        raise TlsError(message)
    return identity


def client_credentials(folder: Path) -> grpc.ChannelCredentials:
    """ca.crt: whom to believe. With tls.crt and tls.key: what to show (mutual TLS). Raises TlsError."""
    identity = read_identity(folder)
    if identity.authority is None:
        message = f"{folder}: expected {_AUTHORITY}, to know the server by"
        raise TlsError(message)
    return grpc.ssl_channel_credentials(identity.authority, identity.key, identity.certificate)


def server_credentials(folder: Path) -> grpc.ServerCredentials:
    """tls.crt and tls.key: what to show. With ca.crt only callers with a certificate of it are let in (mutual TLS).

    Whether callers need one is settled here; certificate, key and authority may change later. Raises TlsError.
    """
    identity = read_identity(folder)
    if identity.certificate is None:
        message = f"{folder}: expected {_CERTIFICATE} and {_KEY}, to show to callers"
        raise TlsError(message)
    renewal = _Renewal(folder, identity)
    mutual = identity.authority is not None
    return grpc.dynamic_ssl_server_credentials(_configuration(identity), renewal, mutual)


class _Renewal:
    """Asked at every handshake: what to show from now on, or None for no change."""

    def __init__(self, folder: Path, identity: Identity) -> None:
        self._folder, self._identity, self._trouble = folder, identity, ""

    def __call__(self) -> grpc.ServerCertificateConfiguration | None:
        try:
            identity = read_identity(self._folder)
        except TlsError as error:
            self._keep(str(error))
            return None
        if identity == self._identity:
            return None
        if (identity.authority is None) != (self._identity.authority is None) or identity.certificate is None:
            self._keep(f"{self._folder}: expected the same files as at the start; going on with what was there")
            return None
        self._identity, self._trouble = identity, ""
        _LOG.info("%s: a new certificate", self._folder)
        return _configuration(identity)

    def _keep(self, trouble: str) -> None:
        if trouble != self._trouble:
            _LOG.warning("%s", trouble)
            self._trouble = trouble


def _configuration(identity: Identity) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(identity.key, identity.certificate)], identity.authority)


def _read(file: Path) -> bytes | None:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        message = f"{file}: cannot be read: {error.strerror}"
        raise TlsError(message) from error
