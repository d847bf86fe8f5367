"""SIGTERM and Ctrl-C set an event, and a process ends in order once it looks at it."""

from __future__ import annotations

import signal
import threading
from queue import SimpleQueue


def stop_on_signals(stop: threading.Event) -> None:
    """Call it in the main thread. From then on SIGTERM and SIGINT set `stop`.

    A thread sets it, not the handler: a handler runs between two bytecodes of the main thread, and where these are in
    `stop.wait` or `stop.is_set`, which hold the event's lock, setting it would wait for that lock for ever. Putting on
    a SimpleQueue is safe in a handler (Python documentation, `queue.SimpleQueue.put`).
    """
    told: SimpleQueue[int] = SimpleQueue()

    def await_signal() -> None:
        told.get()
        stop.set()

    threading.Thread(target=await_signal, name="signals", daemon=True).start()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, _: told.put(received))
