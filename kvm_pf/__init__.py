# SPDX-License-Identifier: GPL-2.0-only
"""KVM's page-fault path in Python: run it, watch it, run it over tables, prove it, check it against the kernel.

The modules beside this file are the fault path; each folder holds what one verb of the README needs.  Importing
this package loads none of the libraries that the folders use.  These are the names it offers:

`decode`, `describe`, `encode`: a code and the names of its bits.

>>> describe(0x2000100000006)
'WRITE|USER|GUEST_FINAL|PRIVATE_ACCESS'
>>> hex(encode("WRITE|USER"))
'0x6'
>>> [row.bit for row in decode(0x6)]
[1, 2]

`explain`: one fault, step by step.

>>> explain("WRITE|USER", vm_type="sw-protected", private=True).outcome.handled.fault.is_private
True

`evaluate`: a table of faults.

>>> import pandas as pd
>>> evaluate(pd.DataFrame({"error_code": ["0x6", "0xe"], "vm_type": 1, "attrs": 8}))["attr_lookups"].tolist()
[1, 0]

`REVISIONS`: the kernels.  One more is made by replacing a step.

>>> mine = REVISIONS["posted"].derive("mine", sanitize=lambda error_code: (error_code, 0))

`verdict`: which cases notice such a change, which claims fall, and the smallest fault that shows it.  A function
stands for the step of its name.

>>> def sanitize(error_code):
...     return error_code, 0
>>> "sanitize-both-bits" in verdict(sanitize, ["sanitiser-is-a-mask"]).cases
True

`prove`: a claim, asked of a revision for all states of all faults.

>>> prove("reserved-never-private")
reserved-never-private, posted: holds (proved)

`compare`: all states in which two revisions differ.

>>> len(compare("before", "posted", way="kvm_mmu_page_fault").kinds)
4

`Machine`: a guest over time.

>>> guest = Machine("sw-protected")
>>> guest.add_slot(1, 0x40000000, 0x200000, "gmem")
0

`follow`: a recorded scenario, the kernel's values beside the model's.

>>> len(follow("posted-on-6.12", "2-swprot", step=10))
1

`load_corpus`: the curated cases, kernel vectors and recordings as tables.

>>> "sanitize-both-bits" in set(load_corpus().cases["id"])
True

Whatever is wrong with an argument raises `InputError`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvm_pf.bits import decode, describe, encode
    from kvm_pf.common.errors import InputError
    from kvm_pf.conformance.corpus import load_corpus
    from kvm_pf.conformance.follow import follow
    from kvm_pf.guest.machine import Machine
    from kvm_pf.proof.ask import prove
    from kvm_pf.proof.compare import compare
    from kvm_pf.proof.verdict import verdict
    from kvm_pf.revisions import REVISIONS
    from kvm_pf.run.batch import evaluate
    from kvm_pf.run.watch import explain

_HOMES = {
    "InputError": "common.errors",
    "Machine": "guest.machine",
    "REVISIONS": "revisions",
    "compare": "proof.compare",
    "decode": "bits",
    "describe": "bits",
    "encode": "bits",
    "evaluate": "run.batch",
    "explain": "run.watch",
    "follow": "conformance.follow",
    "load_corpus": "conformance.corpus",
    "prove": "proof.ask",
    "verdict": "proof.verdict",
}

__all__ = (
    "REVISIONS", "InputError", "Machine", "compare", "decode", "describe", "encode", "evaluate", "explain", "follow",
    "load_corpus", "prove", "verdict",
)  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'kvm_pf' has no attribute {name!r}")
    value = getattr(import_module(f"kvm_pf.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_HOMES))
