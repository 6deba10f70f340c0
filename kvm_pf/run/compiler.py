# SPDX-License-Identifier: GPL-2.0-only
"""The compiler, numba: import this module only where something is compiled.

Settings of it in the environment that mean nothing are left out, as if they were not set.
"""

from __future__ import annotations

import os
import warnings

__all__ = ("numba",)

_threads = os.environ.get("NUMBA_NUM_THREADS", "1")
if not (_threads.isascii() and _threads.isdecimal() and 1 <= int(_threads[:9]) < 100_000):
    del os.environ["NUMBA_NUM_THREADS"]
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it warns of each with a traceback, and goes on
    import numba
