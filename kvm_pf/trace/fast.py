# SPDX-License-Identifier: GPL-2.0-only
"""Read `kvm_page_fault` out of very large ftrace text: compiled, in chunks, on several threads, in bounded memory.

Only unwrapped text is read here (ftrace, trace-cmd report, perf script, payload-only lines); `kvm_pf.trace.read`
reads everything, and joins the events around a fault.  Both give the same values for what both read.
"""

from __future__ import annotations

import functools
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvm_pf.common.errors import InputError
from kvm_pf.common.typed import typed
from kvm_pf.revisions import Revision
from kvm_pf.trace.faults import SHARED, protected, sense, spread
from kvm_pf.trace.lines import LONGEST

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

CHUNK = 16 << 20
"""Bytes that one thread reads at a time."""

_SHORTEST = 40
"""No line with a fault is shorter: "kvm_page_fault: address 0 error_code 0" and its end."""

_WHOLE, _VCPU, _RIP, _TIME, _HIDDEN, _HIDDEN_SHARED = 1, 2, 4, 8, 16, 32
_KIND = _WHOLE | _HIDDEN | _HIDDEN_SHARED
"""Of what a fault has, that which decides with its code what is said of it."""


_NAME = b"kvm_page_fault:"


def _finder() -> Callable[..., Any]:
    """Compile a search for the event's name: the C library's, which uses vectors, or one's own where it has none."""
    import ctypes

    import numpy as np

    from kvm_pf.run.compiler import numba

    size = len(_NAME)
    needle = np.frombuffer(_NAME, dtype=np.uint8)
    try:
        memmem = ctypes.CDLL(None).memmem
    except (AttributeError, OSError, TypeError):  # Windows
        skip = np.full(256, size, dtype=np.int64)
        skip[[*_NAME[:-1]]] = range(size - 1, 0, -1)

        @numba.njit(nogil=True, cache=False)  # type: ignore[untyped-decorator]
        def find(text: Any, start: int, end: int) -> int:
            """Give the place of the first name that lies in [start, end); -1 if there is none."""
            last = start + size - 1
            while last < end:
                n = 0
                while n < size and text[last - n] == needle[size - 1 - n]:
                    n += 1
                if n == size:
                    return last - size + 1
                last += skip[text[last]]
            return -1

    else:
        memmem.restype = ctypes.c_ssize_t  # addresses, which numba is to add to int64
        memmem.argtypes = [ctypes.c_ssize_t] * 4

        @numba.njit(nogil=True, cache=False)  # type: ignore[untyped-decorator]
        def find(text: Any, start: int, end: int) -> int:
            """Give the place of the first name that lies in [start, end); -1 if there is none."""
            if start >= end:
                return -1
            first = np.int64(text.ctypes.data)
            found = memmem(first + start, end - start, np.int64(needle.ctypes.data), size)
            return found - first if found else -1

    compiled: Callable[..., Any] = find
    return compiled


@functools.cache
def _scanner() -> Callable[..., Any]:
    """Compile the scanner, once."""
    import numpy as np

    from kvm_pf.run.compiler import numba

    size = len(_NAME)
    find = _finder()
    value_of = np.full(256, 99, dtype=np.uint8)
    value_of[[*b"0123456789"]] = range(10)
    value_of[[*b"abcdef"]] = value_of[[*b"ABCDEF"]] = range(10, 16)
    words = np.zeros((4, 10), dtype=np.uint8)
    lengths = np.array([4, 3, 7, 10], dtype=np.int64)
    for n, word in enumerate((b"vcpu", b"rip", b"address", b"error_code")):
        words[n, : len(word)] = list(word)

    scatter, shared = np.uint64(0x9E3779B97F4A7C15), np.uint64(SHARED)  # the first: 2^64 by the golden ratio

    @numba.njit(nogil=True, cache=False)  # type: ignore[untyped-decorator]
    def byte(text: Any, at: int) -> Any:
        """Give a byte by a place that is never negative, which as an unsigned number need not be asked."""
        return text[np.uint64(at)]

    @numba.njit(nogil=True, cache=False)  # type: ignore[untyped-decorator]
    def scan(
        text: Any,
        start: int,
        end: int,
        time: Any,
        vcpu: Any,
        rip: Any,
        address: Any,
        code: Any,
        have: Any,
        offset: Any,
        kind: Any,
        first: Any,
        slots: Any,
    ) -> tuple[int, int, int]:
        """Fill the columns with the faults whose name begins in [start, end).

        Faults of which the same is said have one number in `kind`; `first` is the row of the first fault of each.
        `slots`, zeros at first, finds that number by a hash; its length is a power of two, twice that of `first`.
        Returns how many faults there are, how many cannot be read, and how many kinds there are, or more kinds than
        `first` has room for.
        """
        count, unread, kinds = 0, 0, 0
        last_slot = np.uint64(len(slots) - 1)
        stop = len(text)
        at = start
        limit = min(end + size - 1, stop)
        while True:
            name = find(text, at, limit)
            if name < 0:
                break
            at = name + size
            p = at
            have[count] = 0
            found = 0
            values_ok = True
            for which in range(4):
                while p < stop and byte(text, p) == 32:
                    p += 1
                matches = p + lengths[which] < stop
                if matches:
                    for n in range(lengths[which]):
                        if byte(text, p + n) != words[which, n]:
                            matches = False
                            break
                if not matches:
                    if which >= 2:
                        values_ok = False
                        break
                    continue
                p += lengths[which]
                while p < stop and byte(text, p) == 32:
                    p += 1
                prefix = p + 1 < stop and byte(text, p) == 48 and byte(text, p + 1) | 32 == 120
                if prefix:
                    p += 2
                value = np.uint64(0)
                begin = p
                while p < stop:
                    d = value_of[byte(text, p)]
                    if d > (9 if which == 0 else 15):
                        break
                    value = (
                        value * np.uint64(10) + np.uint64(d)
                        if which == 0
                        else value << np.uint64(4) | np.uint64(d)
                    )
                    p += 1
                long = 10 if which == 0 else 16
                if p == begin or p - begin > long or (p < stop and byte(text, p) > 32):
                    values_ok = False
                    break
                found += 1
                if which == 0:
                    vcpu[count] = value
                    have[count] |= _VCPU
                elif which == 1:
                    rip[count] = value
                    have[count] |= _RIP
                elif which == 2:
                    address[count] = value
                else:
                    code[count] = value
                    if prefix or value >> np.uint64(32):
                        have[count] |= _WHOLE
            if not values_ok:
                unread += 1
                at = max(p, at)
                continue
            q = name - 1
            if q >= 3 and text[q] == 58 and text[q - 1] == 109:  # "kvm:"
                q -= 4
            while q > 0 and text[q] == 32:
                q -= 1
            if q > 0 and text[q] == 58:
                q -= 1
                scale, whole, part, dots = 1.0, 0.0, 0.0, 0
                weight = 1.0
                last = q
                while q >= 0 and (48 <= text[q] <= 57 or (text[q] == 46 and dots == 0)):
                    if text[q] == 46:
                        dots = 1
                        part, whole = whole, 0.0
                        scale, weight = weight, 1.0
                    else:
                        whole += weight * (text[q] - 48)
                        weight *= 10.0
                    q -= 1
                if q < last and dots == 1:
                    time[count] = (whole * scale + part) / scale
                    have[count] |= _TIME
            offset[count] = name
            if have[count] & _RIP and rip[count] == 0:
                have[count] |= _HIDDEN_SHARED if address[count] & shared else _HIDDEN
            slot = (code[count] ^ np.uint64(have[count] & _KIND)) * scatter >> np.uint64(32) & last_slot
            while True:
                number = slots[slot] - 1
                if number < 0:
                    if kinds == len(first):
                        return count, unread, kinds + 1
                    number = kinds
                    kinds += 1
                    first[number], slots[slot] = count, kinds
                    break
                other = first[number]
                if code[other] == code[count] and (have[other] ^ have[count]) & _KIND == 0:
                    break
                slot = (slot + np.uint64(1)) & last_slot
            kind[count] = number
            count += 1
            at = p
        return count, unread, kinds

    compiled: Callable[..., Any] = scan
    return compiled


def _table(
    found: dict[str, np.ndarray[Any, Any]],
    first: np.ndarray[Any, Any],
    unread: int,
    vendor: str | None,
    revision: Revision | str,
) -> pd.DataFrame:
    """Make the table of the faults that were found; `first` is the row of the first fault of each kind."""
    import numpy as np
    import pandas as pd

    have = found["have"]
    none = np.zeros(len(have), dtype=bool)

    def gaps(name: str, bit: int) -> Any:
        return pd.arrays.IntegerArray(found[name], (have & bit) == 0)

    said = [
        sense(
            "",
            code,
            bool(bits & _WHOLE),
            vendor,
            False,
            revision,
            protected(rip if bits & _RIP else None, address),
        )
        for code, bits, rip, address in zip(
            *(found[name][first].tolist() for name in ("code", "have", "rip", "address")), strict=True
        )
    ]
    columns = {
        "offset": found["offset"],
        "time": pd.arrays.FloatingArray(found["time"], (have & _TIME) == 0),
        "vcpu": gaps("vcpu", _VCPU),
        "rip": gaps("rip", _RIP),
        "address": pd.arrays.IntegerArray(found["address"], none),
        "raw_code": pd.arrays.IntegerArray(found["code"], none.copy()),
        "cut": (have & _WHOLE) == 0,
        **spread(said, found["kind"], ("encoding", "error_code", "access"), as_text=False),
    }
    frame = pd.DataFrame(columns, copy=False)
    frame.attrs["unread"] = unread
    return frame


_own = threading.local()


def _columns(rows: int, size: int) -> tuple[dict[str, np.ndarray[Any, Any]], np.ndarray[Any, Any]]:
    """Give the thread's own columns of that many rows or more, and bytes: new memory for each part would take time."""
    import numpy as np

    dtypes = {
        "time": np.float64, "vcpu": np.uint64, "rip": np.uint64, "address": np.uint64, "code": np.uint64,
        "have": np.uint8, "offset": np.int64, "kind": np.int32,
    }  # fmt: skip
    columns: dict[str, np.ndarray[Any, Any]] = getattr(_own, "columns", {})
    if not columns or len(columns["have"]) < rows:
        columns = _own.columns = {name: np.empty(rows, dtype=dtype) for name, dtype in dtypes.items()}
    text: np.ndarray[Any, Any] | None = getattr(_own, "text", None)
    if text is None or len(text) < size:
        text = _own.text = np.empty(size, dtype=np.uint8)
    return columns, text


def _part(path: str, start: int, end: int, vendor: str | None, revision: Revision | str) -> pd.DataFrame:
    """Read the faults whose name begins in these bytes of a file; their values may go on behind them."""
    import numpy as np

    lead = min(start, LONGEST)  # its first line may begin before it
    first_byte, wanted = start - lead, end - start + lead + LONGEST
    columns, text = _columns((end - start) // _SHORTEST + 2, wanted)
    with open(path, "rb", buffering=0) as file:  # a memory map of a file that shrinks would end the process
        file.seek(first_byte)
        got = 0
        while got < wanted and (more := file.readinto(text[got:wanted].data)):
            got += more
    if got < lead + end - start:
        raise InputError(f"{path}: it became shorter while it was read")
    text = text[:got]
    room = 1 << 7
    different = room + 1
    while different > room:  # few codes are enough for most traces
        room *= 16
        first, slots = np.empty(room, dtype=np.int32), np.zeros(2 * room, dtype=np.int32)
        count, unread, different = _scanner()(text, lead, lead + end - start, *columns.values(), first, slots)
    found = {name: column[:count].copy() for name, column in columns.items()}
    found["offset"] += first_byte
    return _table(found, first[:different], unread, vendor, revision)


@typed(threads=10, chunk=40)
def scan(
    path: str | Path,
    threads: int = 0,
    vendor: str | None = None,
    revision: Revision | str = "posted",
    chunk: int = CHUNK,
    client: Any = None,
) -> Iterator[pd.DataFrame]:
    """Yield the `kvm_page_fault` events of an unpacked text file as tables, in its order; memory stays bounded.

    `threads` of them read chunks of `chunk` bytes at once (0: as many as there are CPUs), or with a Dask `client` its
    workers, which see the same file: the tables are the same.  `vendor` is "amd", "intel" or None, as in
    `kvm_pf.trace.faults.sense`, for codes that were cut to 32 bits; `revision` names the kernel whose exit handlers
    make `error_code`, which is not looked for in the trace.  Columns: `offset` of the event's name in the
    file, in bytes, and as in `read`, words as categories: `time` (s), `vcpu`, `rip`, `address`, `raw_code`, `cut`,
    `encoding`, `error_code`, `access`.
    `attrs["unread"]` counts the events of that name that have other values (wrapped, damaged).  Raises InputError
    if the file cannot be read.
    """
    if not chunk:
        raise InputError("scan: chunk=0: at least one byte is wanted")
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if not size:
                return
            file.peek(1)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
    parts = (
        (os.path.abspath(path), start, min(start + chunk, size), vendor, revision)
        for start in range(0, size, chunk)
    )
    if client is not None:
        most = 2 * sum(client.nthreads().values())
        yield from _in_order((client.submit(_part, *part, pure=False) for part in parts), most)
        return
    threads = threads or os.cpu_count() or 1
    _scanner()
    with ThreadPoolExecutor(threads) as pool:
        yield from _in_order((pool.submit(_part, *part) for part in parts), threads)


def _in_order(futures: Iterator[Any], most: int) -> Iterator[pd.DataFrame]:
    """Give the results in order; at most so many, and one, are under way at once."""
    waiting: deque[Any] = deque()
    for future in futures:
        waiting.append(future)
        if len(waiting) > most:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
