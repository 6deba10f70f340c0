# SPDX-License-Identifier: GPL-2.0-only
"""Processes that work for another and end with it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import parent_process
from threading import Lock, Thread

beginning = Lock()
"""Held while processes are begun: whoever ends them waits for it, for until then they are not known."""


@contextmanager
def spared() -> Iterator[None]:
    """Begin processes that Ctrl-C does not reach: the one that began them ends them."""
    with beginning:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_with_parent() -> None:
    """From here on, end this process when the one that began it has ended, however that came."""

    def wait() -> None:
        parent = parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    Thread(target=wait, daemon=True).start()
