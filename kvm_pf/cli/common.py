# SPDX-License-Identifier: GPL-2.0-only
"""What the commands share: exit statuses, what is shown and how, and how a command is ended."""

from __future__ import annotations

import argparse
import errno
import io
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

from kvm_pf.common.files import discard_unfinished
from kvm_pf.common.processes import beginning
from kvm_pf.common.text import visible

OK, DIFFERENT, UNREADABLE, BROKEN = 0, 1, 2, 3
"""Exit statuses: fine, differences found, unusable input, a mistake in this program."""

GONE = 128 + signal.SIGPIPE
"""The exit status if nobody reads the output to its end, and no difference had been found until then."""

PLAIN = argparse.RawDescriptionHelpFormatter

ERASE = "\r\x1b[K"
"""What empties the line of a terminal that the cursor is on."""


def empty_terminal() -> None:
    """Empty the terminal that the output goes to, if it goes to one."""
    if sys.stdout.isatty() and sys.__stdout__ is not None:
        with suppress(OSError):
            print("\x1b[H\x1b[2J", end="", file=sys.__stdout__, flush=True)


def mebibytes(text: str) -> int:
    """Read a limit on the bytes that are read."""
    return _limit(text, "MiB")


def millions(text: str) -> int:
    """Read a limit on the rows that are read."""
    return _limit(text, "millions")


def files(text: str) -> int:
    """Read a limit on the files that are read."""
    return _limit(text, "files")


def _limit(text: str, unit: str) -> int:
    if not text.isascii() or not text.isdecimal() or not 1 <= len(text) <= 6 or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: a whole number of {unit} is wanted, 1 to 999999")
    return int(text)


class Shown(io.TextIOBase):
    """A stream that shows every control character but the ends of lines and tabs, and keeps what went wrong."""

    def __init__(self, stream: TextIO | None) -> None:
        self.stream = stream
        self.error: OSError | None = None

    def write(self, text: str) -> int:
        """Write it visibly."""
        try:
            if self.stream is None:
                raise OSError(errno.EBADF, os.strerror(errno.EBADF))
            self.stream.write(visible(text, keep="\n\t"))
        except OSError as error:
            self.error = error
            raise
        return len(text)

    def flush(self) -> None:
        """Hand on what was written; raise what went wrong, now or before."""
        if self.error:
            raise self.error
        if self.stream:
            self.stream.flush()

    def isatty(self) -> bool:
        """Whether somebody is looking."""
        return self.stream is not None and self.stream.isatty()

    def close(self) -> None:
        """Leave the stream open, which is another's: Python closes at the end what it no longer needs."""

    def close_quietly(self) -> None:
        """Let what cannot be written go, so that Python does not try again when it ends."""
        with suppress(OSError, AttributeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())  # type: ignore[union-attr]


class Progress:
    """What is being done, on the error stream, if it takes over two seconds and somebody is looking."""

    def __init__(self, name: str) -> None:
        self.name, self.start, self.shown = name, time.monotonic(), False

    def show(self, what: object) -> None:
        """Say what is being done."""
        if self._is_seen() and time.monotonic() > self.start + 2:
            self._write(f"{ERASE}{visible(f'{self.name}: {what}')[:78]}")
            self.shown = True

    def done(self) -> None:
        """Erase what was shown."""
        if self.shown:
            self._write(ERASE)
            self.shown = False

    def note(self, line: str) -> None:
        """Say what happened, in a line that stays, also if nobody is looking."""
        self.done()
        self._write(f"kvm-pf: {visible(line)}\n")

    @staticmethod
    def _is_seen() -> bool:
        return sys.__stderr__ is not None and sys.stderr.isatty()

    @staticmethod
    def _write(text: str) -> None:
        with suppress(OSError):
            print(text, end="", file=sys.__stderr__, flush=True)


# Being ended by a signal

_SAID = {"SIGINT": "interrupted", "SIGTERM": "terminated", "SIGHUP": "hung up"}


def end_on_signals() -> None:
    """From here on, end the process on SIGINT, SIGTERM or SIGHUP within a second, whatever it is doing.

    A thread of its own waits for them, because Python runs no handler while the main thread is in a library's code.
    A signal that is ignored, such as SIGHUP under nohup, stays ignored.
    """
    waited, told = os.pipe()
    os.set_blocking(told, False)
    for name in _SAID:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _nothing)
    signal.set_wakeup_fd(told, warn_on_full_buffer=False)
    # The process that cleans up after processes of ours has nothing to say about it.
    os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker")
    threading.Thread(target=_wait, args=(waited,), daemon=True).start()


def _nothing(number: int, frame: object) -> None:
    """Stand for a handler: only where there is one does Python tell the thread that waits, which is let run.

    What searches a long text calls handlers now and then, and lets no other thread run of itself.
    """
    time.sleep(0.01)


def _wait(waited: int) -> None:
    while True:
        for number in os.read(waited, 64):
            if number == signal.SIGINT and _stops:
                _stops.pop()()
            elif signal.Signals(number).name in _SAID:
                end(number)


_stops: list[Callable[[], None]] = []


@contextmanager
def stopped_by_interrupt(stop: Callable[[], None]) -> Iterator[None]:
    """Within the block, the first Ctrl-C calls `stop`, so that what was begun is brought to an end; the next one ends.

    `stop` may be called by another thread.
    """
    _stops.append(stop)
    is_waited_for = signal.getsignal(signal.SIGINT) == _nothing
    before = None
    if not is_waited_for and threading.current_thread() is threading.main_thread():
        before = signal.signal(signal.SIGINT, lambda *_: _stops.pop()() if _stops else end(signal.SIGINT))
    try:
        yield
    finally:
        if stop in _stops:
            _stops.remove(stop)
        if before is not None:
            signal.signal(signal.SIGINT, before)


def end(number: int) -> None:
    """End the process as a signal does, with nothing left behind: no file, no process; one line says so."""
    last = threading.Timer(0.5, os._exit, [128 + number])  # even if the line below is read by nobody
    last.daemon = True
    last.start()
    discard_unfinished()
    beginning.acquire(timeout=0.3)
    for child in multiprocessing.active_children():
        child.kill()
    with suppress(OSError, ValueError):
        tty = os.isatty(2)
        os.write(2, f"{ERASE if tty else ''}kvm-pf: {_SAID[signal.Signals(number).name]}\n".encode())
    os._exit(128 + number)
