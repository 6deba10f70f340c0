# SPDX-License-Identifier: GPL-2.0-only
"""Anybody's traces of KVM page faults: read them, count them, find what a guest is stuck on.

read(file)          -> DataFrame, one row a fault; file is a path, or "-" for standard input
load(file)          -> Traced: the same table, and everything else that the file told
storms(faults)      -> the same faults again and again
follows(faults)     -> what should have followed each fault, by the fault path of a kernel, and whether it did
conversions(traced) -> memory that was made private or shared, per range

However large: chunks(file) gives the table in parts, scan(file) reads plain text compiled, convert(source, target)
classifies a Parquet table into another, read_all(files) reads many, on a Dask cluster if one is given.
"""

from kvm_pf.trace.advice import next_steps
from kvm_pf.trace.fast import scan
from kvm_pf.trace.fleet import cluster, read_all
from kvm_pf.trace.follows import follows
from kvm_pf.trace.reading import Traced, chunks, load, read
from kvm_pf.trace.report import (
    conversions,
    declared,
    disagreements,
    meanings,
    page,
    storms,
    summary,
    top_addresses,
)
from kvm_pf.trace.tables import convert

__all__ = (
    "Traced", "chunks", "cluster", "conversions", "convert", "declared", "disagreements", "follows", "load", "meanings",
    "next_steps", "page", "read", "read_all", "scan", "storms", "summary", "top_addresses",
)  # fmt: skip
