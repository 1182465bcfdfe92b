"""Waits for conditions, never for lengths of time."""

import threading
import time

# Short beside what is waited for, long beside the cost of asking.
PAUSE_S = 0.02


def wait_until(what, ask, deadline_s=30.0):
    """Asks until the answer is true and returns it; fails naming `what` after the deadline."""
    end = time.monotonic() + deadline_s
    pause = threading.Event()
    while True:
        answer = ask()
        if answer:
            return answer
        if time.monotonic() > end:
            raise AssertionError(f"{what}: not within {deadline_s} s")
        pause.wait(PAUSE_S)
