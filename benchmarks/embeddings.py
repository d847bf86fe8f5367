"""Item vectors in a real Redis: what they take, how fast they are loaded, and how fast a page's are read.

    python -m benchmarks.embeddings [--items 10000000] [--reads 2000] [--json FILE]

Vectors of 32 float32, under the keys that agents read. A read asks for 200 vectors, of ids drawn in Zipf's manner: in
turn by a bare MGET for comparison, and as an agent does it, past its memory, by one MGET, and through it.
"""

from __future__ import annotations

import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import hiredis
import numpy as np
import redis
from msgspec import Struct

from benchmarks.awake import cores
from benchmarks.serving_load import Times
from benchmarks.serving_place import redis_server
from benchmarks.shares import BenchmarkError
from benchmarks.telling import parser, say, tell
from pipeline.features.stored_vectors import Loaded, Portion, StoredVectors, load_portions
from pipeline.stores.opening import open_store
from pipeline.stores.published import vector_key
from pipeline.stores.store import KeyValueStore

PREFIX, TABLE, EPOCH = "gyl", "shop", "e1"
DIM, PORTION = 32, 20_000
READ, WARM = 200, 200
IN_MEMORY = 200_000  # vectors of an agent, as `AgentSettings` has it
BYTES_PER_ITEM, READ_MS = 270.0, 0.5  # the bars


class Reads(Struct, frozen=True):
    """Of 200 vectors."""

    awake: bool  # whether cores were kept from halting between reads
    bare: Times  # an MGET by hiredis over a socket: what Redis and the machine take
    mget: Times  # all from Redis
    through_memory: Times
    from_memory: float  # share of the last that needed no Redis


class Result(Struct, frozen=True):
    items: int
    bytes_per_item: float  # of Redis's own count
    resident_bytes_per_item: float
    loaded_per_s: float
    delta_items: int  # new ones, to a table that is loaded
    delta_per_s: float
    reads: tuple[Reads, ...]


def measure(items: int, reads: int) -> Result:
    if items < 1_000:
        message = f"--items: expected 1000 or more, found {items}"
        raise BenchmarkError(message)
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="pageturn-bench-"))
        url = stack.enter_context(redis_server(Path(folder)))
        client = stack.enter_context(closing(redis.Redis.from_url(url)))
        store = stack.enter_context(closing(open_store(url)))
        empty = _memory(client)
        loaded_s, _ = _timed(lambda: _load(store, 0, items))
        full = _memory(client)
        say(f"{items} items loaded in {loaded_s:.0f} s")
        delta = items // 100
        delta_s, added = _timed(lambda: _load(store, items, items + delta))
        assert added.added == delta
        pages = _pages(items, WARM + reads)
        found = [_reads(url, store, pages, awake=awake) for awake in (False, True)]
    return Result(
        items=items,
        bytes_per_item=round((full["used_memory"] - empty["used_memory"]) / items, 1),
        resident_bytes_per_item=round((full["used_memory_rss"] - empty["used_memory_rss"]) / items, 1),
        loaded_per_s=round(items / loaded_s),
        delta_items=delta,
        delta_per_s=round(delta / delta_s),
        reads=tuple(found),
    )


def _memory(client: Any) -> dict[str, int]:
    found: dict[str, int] = client.info("memory")
    return found


_T = TypeVar("_T")


def _timed(work: Callable[[], _T]) -> tuple[float, _T]:
    began = time.perf_counter()
    done = work()
    return time.perf_counter() - began, done


def _load(store: KeyValueStore, first: int, end: int) -> Loaded:
    said = [time.monotonic()]

    def told(rows: int) -> None:
        if time.monotonic() - said[0] > 30.0:
            said[0] = time.monotonic()
            say(f"{rows} items")

    return load_portions(store, PREFIX, TABLE, EPOCH, _portions(first, end), told)


def _portions(first: int, end: int) -> Iterator[Portion]:
    rng = np.random.default_rng(first)
    for start in range(first, end, PORTION):
        ids = [str(i) for i in range(start, min(start + PORTION, end))]
        yield Portion(ids, rng.standard_normal((len(ids), DIM), np.float32))


def _reads(url: str, store: KeyValueStore, pages: Sequence[Sequence[str]], *, awake: bool) -> Reads:
    """The three ways in turn, so that what else the machine does meets them alike. Each reads each page once, a third
    of them before the next does: what Redis touches is as cold."""
    fetched = [0]

    def count(table: str, ids: int) -> None:
        fetched[0] += ids

    past = StoredVectors(store, PREFIX, capacity=0, monotonic=time.monotonic)
    through = StoredVectors(store, PREFIX, capacity=IN_MEMORY, monotonic=time.monotonic, fetched=count)
    for ids in pages[:WARM]:
        through.vectors(TABLE, EPOCH, ids)
    fetched[0], asked = 0, pages[WARM:]
    with closing(socket.create_connection(_address(url))) as connection, cores(awake=awake):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        stem = vector_key(PREFIX, TABLE, EPOCH, "")
        ways = (
            partial(_mget, connection, stem),
            partial(past.vectors, TABLE, EPOCH),
            partial(through.vectors, TABLE, EPOCH),
        )
        seconds: list[list[float]] = [[] for _ in ways]
        for number in range(len(asked)):
            for way, (read, spent) in enumerate(zip(ways, seconds, strict=True)):
                ids = asked[(number + way * len(asked) // len(ways)) % len(asked)]
                spent.append(_timed(partial(read, ids))[0])
    bare, mget, memory = map(Times.of, seconds)
    return Reads(awake, bare, mget, memory, round(1 - fetched[0] / sum(map(len, asked)), 3))


def _address(url: str) -> tuple[str | None, int | None]:
    return urlsplit(url).hostname, urlsplit(url).port


def _mget(connection: socket.socket, stem: str, ids: Sequence[str]) -> None:
    connection.sendall(hiredis.pack_command(("MGET", *(stem + each for each in ids))))
    reader = hiredis.Reader()
    while (found := reader.gets()) is False:
        reader.feed(connection.recv(65_536))
    assert isinstance(found, list)
    assert None not in found


def _pages(items: int, count: int) -> list[list[str]]:
    """Distinct ids. The popular ones are spread over the whole table, as those of a shop are.

    All before the first is read: between two reads their making would leave the cores' caches full of itself.
    """
    rng = np.random.default_rng(3)
    spread = rng.permutation(items)
    made = []
    for _ in range(count):
        ranks = dict.fromkeys(rank % items for rank in rng.zipf(1.2, 10 * READ).tolist())
        made.append([str(spread[rank]) for rank in list(ranks)[:READ]])
    return made


def table(result: Result) -> str:
    total = result.items * result.bytes_per_item / 1e9
    rows = [
        ("items", f"{result.items:,}"),
        ("bytes per item", f"{result.bytes_per_item} (bar {BYTES_PER_ITEM:.0f}); {total:.2f} GB"),
        ("resident", f"{result.resident_bytes_per_item} bytes per item"),
        ("load", f"{result.loaded_per_s:,} per s"),
        ("delta", f"{result.delta_per_s:,} per s, {result.delta_items:,} new ones"),
        *(row for reads in result.reads for row in _rows(reads)),
    ]
    return "\n".join(f"{name:22} {value}" for name, value in rows)


def _rows(reads: Reads) -> Iterator[tuple[str, str]]:
    yield "", "cores kept awake:" if reads.awake else "cores left alone:"
    yield f"{READ} vectors, bare", f"p50 {reads.bare.p50} ms, p99 {reads.bare.p99} ms"
    yield f"{READ} vectors, MGET", f"p50 {reads.mget.p50} ms (bar {READ_MS}), p99 {reads.mget.p99} ms"
    yield f"{READ} vectors, memory", f"p50 {reads.through_memory.p50} ms, p99 {reads.through_memory.p99} ms"
    yield "from memory", f"{100 * reads.from_memory:.1f} %"


def main(arguments: Sequence[str] | None = None) -> int:
    known = parser("embeddings", __doc__)
    known.add_argument("--items", type=int, default=10_000_000)
    known.add_argument("--reads", type=int, default=2_000, help="of 200 vectors each")
    options = known.parse_args(arguments)
    return tell(lambda: measure(options.items, options.reads), table, options.json)


if __name__ == "__main__":
    sys.exit(main())
