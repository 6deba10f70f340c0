# SPDX-License-Identifier: GPL-2.0-only
"""KVM's page-fault path in Python: run it, watch it, run it over tables, check it against the kernel.

`kvm_pf.explain` follows one fault.  `kvm_pf.evaluate` runs a table of them.  `kvm_pf.REVISIONS` names the
kernels.  Importing this package loads none of the libraries that its rooms use.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvm_pf.batch import evaluate, evaluate_faultin, evaluate_parquet, evaluate_sources
    from kvm_pf.bits import decode, describe, encode
    from kvm_pf.check import check_table
    from kvm_pf.claims import CLAIMS, prove, prove_all
    from kvm_pf.compare import compare
    from kvm_pf.corpus import load_corpus
    from kvm_pf.errors import InputError
    from kvm_pf.follow import follow
    from kvm_pf.machine import Machine
    from kvm_pf.patch import identify, read_patch
    from kvm_pf.replay import replay
    from kvm_pf.revisions import REVISIONS, Revision
    from kvm_pf.verdict import verdict
    from kvm_pf.watch import explain

_ROOMS = {
    "CLAIMS": "claims",
    "InputError": "errors",
    "Machine": "machine",
    "REVISIONS": "revisions",
    "Revision": "revisions",
    "check_table": "check",
    "compare": "compare",
    "decode": "bits",
    "describe": "bits",
    "encode": "bits",
    "evaluate": "batch",
    "evaluate_faultin": "batch",
    "evaluate_parquet": "batch",
    "evaluate_sources": "batch",
    "explain": "watch",
    "follow": "follow",
    "identify": "patch",
    "load_corpus": "corpus",
    "prove": "claims",
    "prove_all": "claims",
    "read_patch": "patch",
    "replay": "replay",
    "verdict": "verdict",
}

__all__ = (
    "CLAIMS", "REVISIONS", "InputError", "Machine", "Revision", "check_table", "compare", "decode", "describe",
    "encode", "evaluate", "evaluate_faultin", "evaluate_parquet", "evaluate_sources", "explain", "follow", "identify",
    "load_corpus", "prove", "prove_all", "read_patch", "replay", "verdict",
)  # fmt: skip


class _Package(ModuleType):
    """The package: a name it offers, such as `follow`, is never the room that it stands in."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _ROOMS and isinstance(value, ModuleType)):  # importing a room binds it here
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module 'kvm_pf' has no attribute {name!r}")
    value = getattr(import_module(f"kvm_pf.{_ROOMS[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_ROOMS))
