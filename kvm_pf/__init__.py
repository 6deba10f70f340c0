# SPDX-License-Identifier: GPL-2.0-only
"""KVM's page-fault path in Python: run it, watch it, run it over tables, check it against the kernel.

The modules beside this file are the fault path; each folder holds what one verb of the README needs.
`kvm_pf.explain` follows one fault.  `kvm_pf.evaluate` runs a table of them.  `kvm_pf.REVISIONS` names the
kernels.  Importing this package loads none of the libraries that its folders use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvm_pf.bits import decode, describe, encode
    from kvm_pf.common.errors import InputError
    from kvm_pf.conformance.corpus import load_corpus
    from kvm_pf.conformance.follow import follow
    from kvm_pf.conformance.replay import replay
    from kvm_pf.conformance.vectors import check_table
    from kvm_pf.guest.machine import Machine
    from kvm_pf.patch.reader import identify, read_patch
    from kvm_pf.proof.claims import CLAIMS, prove, prove_all
    from kvm_pf.proof.compare import compare
    from kvm_pf.proof.verdict import verdict
    from kvm_pf.revisions import REVISIONS, Revision
    from kvm_pf.run.batch import evaluate, evaluate_faultin, evaluate_parquet, evaluate_sources
    from kvm_pf.run.watch import explain

_HOMES = {
    "CLAIMS": "proof.claims",
    "InputError": "common.errors",
    "Machine": "guest.machine",
    "REVISIONS": "revisions",
    "Revision": "revisions",
    "check_table": "conformance.vectors",
    "compare": "proof.compare",
    "decode": "bits",
    "describe": "bits",
    "encode": "bits",
    "evaluate": "run.batch",
    "evaluate_faultin": "run.batch",
    "evaluate_parquet": "run.batch",
    "evaluate_sources": "run.batch",
    "explain": "run.watch",
    "follow": "conformance.follow",
    "identify": "patch.reader",
    "load_corpus": "conformance.corpus",
    "prove": "proof.claims",
    "prove_all": "proof.claims",
    "read_patch": "patch.reader",
    "replay": "conformance.replay",
    "verdict": "proof.verdict",
}

__all__ = (
    "CLAIMS", "REVISIONS", "InputError", "Machine", "Revision", "check_table", "compare", "decode", "describe",
    "encode", "evaluate", "evaluate_faultin", "evaluate_parquet", "evaluate_sources", "explain", "follow", "identify",
    "load_corpus", "prove", "prove_all", "read_patch", "replay", "verdict",
)  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'kvm_pf' has no attribute {name!r}")
    value = getattr(import_module(f"kvm_pf.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_HOMES))
