"""The model servers that are there now: at given addresses, or all that have a name, asked for at every look."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from pipeline.serving.client import ModelServer
from pipeline.serving.errors import Unavailable
from pipeline.serving.tls import client_credentials

_NAME = re.compile(r"dns:///([^\s/]+):([0-9]{1,5})")


class Fleet:
    """Iterate over it for a client of each server. `dns:///name:port` stands for every address that the name has.

    A publish has to reach every replica, and a channel to such a name would ask one of them, whichever it likes.
    """

    def __init__(
        self,
        targets: Sequence[str],
        *,
        resolve: Callable[[str, int], Sequence[str]] | None = None,
        connect: Callable[[str, str], ModelServer] = lambda address, _: ModelServer(address),
    ) -> None:
        """`connect` gets HOST:PORT and the host's name: that of `dns:///NAME`, or HOST itself."""
        self._targets = tuple(targets)
        self._resolve = resolve or addresses_of
        self._connect = connect
        self._clients: dict[str, ModelServer] = {}

    def __iter__(self) -> Iterator[ModelServer]:
        """Raises Unavailable where a name has no address: no server is ready."""
        now = {address: name for target in self._targets for address, name in self._addresses(target)}
        for gone in self._clients.keys() - now.keys():
            self._clients.pop(gone).close()
        for address in now.keys() - self._clients.keys():
            self._clients[address] = self._connect(address, now[address])
        return iter([self._clients[address] for address in now])

    def close(self) -> None:
        for client in self._clients.values():
            client.close()
        self._clients.clear()

    def _addresses(self, target: str) -> Iterator[tuple[str, str]]:
        named = _NAME.fullmatch(target)
        if named is None:
            yield target, target.rpartition(":")[0]
            return
        yield from ((address, named[1]) for address in self._resolve(named[1], int(named[2])))


def addresses_of(name: str, port: int) -> tuple[str, ...]:
    """HOST:PORT of all that has the name, sorted. Raises Unavailable."""
    try:
        found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        message = f"dns:///{name}:{port}: no model server has this name: {error}"
        raise Unavailable(message, code="UNAVAILABLE", text=str(error)) from error
    hosts = {str(address[0]) for *_, address in found}
    return tuple(sorted(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host in hosts))


def connector(tls: Path | None) -> Callable[[str, str], ModelServer]:
    """How to reach servers: openly, or by TLS with what is in the folder. A server's certificate is for its name, and
    not for its address of the day. Raises TlsError."""
    if tls is None:
        return lambda address, _: ModelServer(address)
    credentials = client_credentials(tls)
    return lambda address, name: ModelServer(
        address, credentials=credentials, options={"grpc.ssl_target_name_override": name}
    )
