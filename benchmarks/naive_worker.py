"""Beam's Python worker as it is, started by a task manager: for the naive job, without what ours changes of it."""

from __future__ import annotations

from apache_beam.runners.worker import sdk_worker_main

from pipeline.streaming.flink import worker

if __name__ == "__main__":
    worker.prepare()
    sdk_worker_main.main([])
