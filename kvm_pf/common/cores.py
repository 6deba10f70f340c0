# SPDX-License-Identifier: GPL-2.0-only
"""How many cores there are to work with."""

import os


def cores() -> int:
    """Return the number of cores that this process may use, at least 1; where nobody can say, of the machine."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
