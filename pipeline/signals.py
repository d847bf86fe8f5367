"""How a process is spoken to: SIGTERM and Ctrl-C end it in order, SIGUSR1 has it say what it is doing."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading

_ENDING = (signal.SIGTERM, signal.SIGINT)


def handle_signals(stop: threading.Event) -> None:
    """Call it in the main thread. From then on SIGTERM and SIGINT set `stop`, and SIGUSR1 writes the stack of every
    thread to standard error, also where the process stands still.

    A handler in Python would not do. It runs between two bytecodes of the main thread: where these are in `stop.wait`,
    which holds the event's lock, setting it there waits for that lock for ever; and where the kernel gives the signal
    to another thread, the handler waits for whatever the main thread waits for. So the signal's number goes through a
    pipe (`signal.set_wakeup_fd`) to a thread that sets `stop`.
    """
    told, tells = os.pipe()
    os.set_blocking(tells, False)
    signal.set_wakeup_fd(tells, warn_on_full_buffer=False)  # full: there is enough to read
    for number in _ENDING:
        signal.signal(number, lambda *_: None)

    def await_signal() -> None:
        while os.read(told, 1)[0] not in _ENDING:
            pass
        stop.set()

    threading.Thread(target=await_signal, name="signals", daemon=True).start()
    faulthandler.register(signal.SIGUSR1, file=sys.__stderr__)  # all threads
