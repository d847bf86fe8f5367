"""The capacity plan is made of what was measured, says what was not, and its arithmetic is right."""

from __future__ import annotations

from benchmarks.capacity import DOCS, markdown, results

SIZES = {
    "events": 1_000, "impressions": 200, "transitions": 100, "archive_bytes": 70.0,
    "log_bytes": {"events": 300.0, "transitions": 200.0},
}  # fmt: skip
SOAK = {
    "measured_on": "2026-01-01", "rate": 1_000.0, "trend": {"rss_mb": [200.0, 210.0]},
    "intervals": [{"at_s": 10.0, "cores": 0.2}, {"at_s": 600.0, "cores": 0.3}],
}  # fmt: skip


def rows(text: str) -> dict[str, list[str]]:
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {cells[0].split(" =")[0].split(":")[0]: cells[1:] for cells in lines}


def test_the_document_is_of_what_was_measured() -> None:
    assert markdown(results()) in DOCS.read_text(), "docs/capacity.md is out of date: `make capacity`"


def test_the_arithmetic() -> None:
    found = rows(markdown({"sizes": SIZES, "soak": SOAK, "embeddings": {"items": 10, "bytes_per_item": 250.0}}))
    assert found["events per day"] == ["9 M", "86 M", "864 M", "8,640 M"]
    assert found["pages per second"][0] == "20"
    assert found["transitions per second"][3] == "10,000"
    assert found["written to Kafka, MB/s"][3] == "50.00"  # 100,000 x 500 bytes
    # 100 x (300 bytes x 7 days + 200 x 14 days) x 3 / 0.7
    assert found["Kafka disks"][0] == "181.4 GB"
    assert found["archive"][0] == "77.8 GB"  # 100 x 70 x 86,400 x 90 / 0.7
    assert found["cores of the embedded stream"] == ["0.1", "0.4", "3.6", "35.8"]  # at 4,000 per core-second
    assert found["Redis, vectors"][2] == "2.5 GB"
    assert found["memory of the pod"][2] == "3.6 GB"


def test_what_was_not_measured_is_not_guessed() -> None:
    text = markdown({"sizes": None, "soak": None, "embeddings": None})
    assert text.count("not measured yet: `") == 3
    assert "bytes" not in text
