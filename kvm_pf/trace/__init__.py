# SPDX-License-Identifier: GPL-2.0-only
"""Anybody's traces of KVM page faults: read them, count them, find what a guest is stuck on.

read(file)          -> DataFrame, one row a fault; file is a path, or "-" for standard input
load(file)          -> Traced: the same table, and everything else that the file told
storms(faults)      -> the same faults again and again
conversions(traced) -> memory that was made private or shared, per range
"""

from kvm_pf.trace.fast import scan
from kvm_pf.trace.reading import Traced, chunks, load, read
from kvm_pf.trace.report import (
    conversions,
    declared,
    disagreements,
    meanings,
    next_steps,
    page,
    storms,
    summary,
    top_addresses,
)

__all__ = (
    "Traced", "chunks", "conversions", "declared", "disagreements", "load", "meanings", "next_steps", "page", "read",
    "scan", "storms", "summary", "top_addresses",
)  # fmt: skip
