# SPDX-License-Identifier: GPL-2.0-only
"""The compiler, numba: import this module only where something is compiled.

Settings of it in the environment that mean nothing are left out, as if they were not set.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from kvm_pf.run.inputs import brief

if TYPE_CHECKING:
    import numpy as np

__all__ = ("kept", "numba", "read_only")

_threads = os.environ.get("NUMBA_NUM_THREADS", "1")
if not (_threads.isascii() and _threads.isdecimal() and 1 <= int(_threads[:9]) < 100_000):
    del os.environ["NUMBA_NUM_THREADS"]
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it warns of each with a traceback, and goes on
    import numba


def kept(compiled: Callable[[bool], Any], level: int = 3) -> Any:
    """Return what `compiled(True)` compiles and keeps for later processes, or loads; it is to name all types.

    Where the cache of compiled code cannot be used, warn of it (`level` as in warnings.warn) and compile without.
    """
    try:
        return compiled(True)
    except numba.core.errors.NumbaError:
        raise
    except Exception as error:  # no folder to write to, or what is there is damaged
        made = compiled(False)
        what = f"{type(error).__name__}: {brief(str(error))}"
        warnings.warn(f"compiled code is not kept, its cache cannot be used: {what}", stacklevel=level)
        return made


def read_only(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return a view that cannot be written to.  pandas gives some so, and for others numba would compile once more."""
    view = array.view()
    view.flags.writeable = False
    return view
