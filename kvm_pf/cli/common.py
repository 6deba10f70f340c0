# SPDX-License-Identifier: GPL-2.0-only
"""What the commands share: exit statuses, and how progress is shown."""

from __future__ import annotations

import argparse
import sys
import time

OK, DIFFERENT, UNREADABLE = 0, 1, 2
"""Exit statuses: fine, differences found, unusable input."""

PLAIN = argparse.RawDescriptionHelpFormatter


class Progress:
    """What is being done, on the error stream, if it takes over two seconds and somebody is looking."""

    def __init__(self, name: str) -> None:
        self.name, self.start, self.width = name, time.monotonic(), 0

    def show(self, what: str) -> None:
        """Say what is being done."""
        if sys.stderr.isatty() and time.monotonic() > self.start + 2:
            line = f"{self.name}: {what}"
            print(f"\r{line:<{self.width}}", end="", file=sys.stderr, flush=True)
            self.width = len(line)

    def done(self) -> None:
        """Erase what was shown."""
        if self.width:
            print(f"\r{'':<{self.width}}\r", end="", file=sys.stderr, flush=True)
