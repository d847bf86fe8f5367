"""The tables of docs/capacity.md, from the figures in benchmarks/results: `python -m benchmarks.capacity` writes them.

A figure that has not been measured is said to be so, with the command that measures it; none is guessed.
"""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS, DOCS = ROOT / "benchmarks" / "results", ROOT / "docs" / "capacity.md"
RATES = (100, 1_000, 10_000, 100_000)  # events per second
ITEMS = (10_000, 1_000_000, 10_000_000)
_MEASURED_BY = {
    "sizes": "python -m benchmarks.sizes --json benchmarks/results/sizes.json",
    "soak": "python -m benchmarks.soak --json benchmarks/results/soak.json",
    "embeddings": "make bench-embeddings",
}
_BEGIN, _END = "<!-- figures: begin -->", "<!-- figures: end -->"
_DAY_S, _WEEK_S = 86_400, 7 * 86_400
_COPIES, _FULL = 3, 0.7  # replicas in Kafka; how full anything may be in the plan
_ARCHIVE_DAYS = 90

Results = Mapping[str, Any]


def results() -> Results:
    """By name; None for what nobody has measured yet."""
    files = {name: RESULTS / f"{name}.json" for name in _MEASURED_BY}
    return {name: json.loads(file.read_text()) if file.exists() else None for name, file in files.items()}


def markdown(found: Results) -> str:
    return "\n\n".join([*_of_events(found), *_of_items(found)])


def _of_events(found: Results) -> list[str]:
    head = ["events per second", *(f"{rate:,}" for rate in RATES)]
    sizes, soak = found["sizes"], found["soak"]
    rows: list[Sequence[str]] = [["events per day", *(f"{rate * _DAY_S / 1e6:,.0f} M" for rate in RATES)]]
    rows += _sizes(sizes) if sizes else [_not_measured("sizes")]
    rows += _cores(soak) if soak else [_not_measured("soak")]
    return [*filter(None, [_said(sizes), _soaked(soak)]), _table(head, rows)]


def _said(sizes: Any) -> str | None:
    if sizes is None:
        return None
    log, share = sizes["log_bytes"], sizes["impressions"] / sizes["events"]
    parts = ", ".join(f"`{topic}` {size:,.0f}" for topic, size in log.items())
    return (
        f"An event of the simulated feed comes to so many bytes in the log, by topic: {parts}; and to "
        f"{sizes['archive_bytes']:,.0f} in the archive, all tables together. One event in {1 / share:.1f} is an "
        f"impression, that is a page; one in {sizes['events'] / sizes['transitions']:.1f} makes a transition. "
        f"({sizes['events']:,} events; `{_MEASURED_BY['sizes']}`.)"
    )


def _soaked(soak: Any) -> str | None:
    if soak is None:
        return None
    return (
        f"The embedded stream took {_cores_used(soak):.2f} of a core for {soak['rate']:,.0f} events per second, over "
        f"{soak['intervals'][-1]['at_s'] / 60:.0f} minutes, with {soak['trend']['rss_mb'][-1]:,.0f} MB of memory "
        f"at the end: {_per_core(soak):,.0f} events per core-second. ({soak['measured_on']}; `{_MEASURED_BY['soak']}`.)"
    )


def _cores_used(soak: Any) -> float:
    return statistics.mean(interval["cores"] for interval in soak["intervals"])


def _per_core(soak: Any) -> float:
    return float(soak["rate"]) / _cores_used(soak)


def _sizes(sizes: Any) -> list[Sequence[str]]:
    log = sum(sizes["log_bytes"].values())
    kept_s = {topic: 2 * _WEEK_S if topic == "transitions" else _WEEK_S for topic in sizes["log_bytes"]}
    held = sum(size * kept_s[topic] for topic, size in sizes["log_bytes"].items()) * _COPIES / _FULL
    archived = sizes["archive_bytes"] * _DAY_S * _ARCHIVE_DAYS / _FULL
    pages, transitions = sizes["impressions"] / sizes["events"], sizes["transitions"] / sizes["events"]
    return [
        ["pages per second = events x share of impressions", *(f"{rate * pages:,.0f}" for rate in RATES)],
        ["transitions per second", *(f"{rate * transitions:,.0f}" for rate in RATES)],
        [
            "written to Kafka, MB/s = events x bytes, before replication",
            *(f"{rate * log / 1e6:,.2f}" for rate in RATES),
        ],
        [f"Kafka disks = x retention x {_COPIES} replicas / {_FULL}", *(_bytes(rate * held) for rate in RATES)],
        [f"archive = x {_ARCHIVE_DAYS} days / {_FULL}", *(_bytes(rate * archived) for rate in RATES)],
    ]


def _cores(soak: Any) -> list[Sequence[str]]:
    cores = [rate / _per_core(soak) / _FULL for rate in RATES]
    return [
        [
            f"cores of the embedded stream = events / {_per_core(soak):,.0f} / {_FULL}",
            *(f"{math.ceil(10 * c) / 10:g}" for c in cores),
        ]
    ]


def _of_items(found: Results) -> list[str]:
    head, measured = ["items", *(f"{items:,}" for items in ITEMS)], found["embeddings"]
    if measured is None:
        return [_table(head, [_not_measured("embeddings", len(ITEMS))])]
    each = measured["bytes_per_item"]
    row = [f"Redis, vectors = items x {each:,.0f} bytes", *(_bytes(items * each) for items in ITEMS)]
    limit = ["memory of the pod = / 0.7", *(_bytes(items * each / _FULL) for items in ITEMS)]
    return [f"A vector of 32 numbers was measured over {measured['items']:,} items.", _table(head, [row, limit])]


def _not_measured(name: str, columns: int = len(RATES)) -> Sequence[str]:
    return [f"not measured yet: `{_MEASURED_BY[name]}`", *([""] * columns)]


def _bytes(count: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count / 1e3:,.1f} kB"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rule = ["---", *(["---:"] * (len(head) - 1))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *rows))


def main() -> None:
    text = re.sub(
        f"{_BEGIN}.*{_END}", lambda _: f"{_BEGIN}\n{markdown(results())}\n{_END}", DOCS.read_text(), flags=re.S
    )
    DOCS.write_text(text)


if __name__ == "__main__":
    main()
