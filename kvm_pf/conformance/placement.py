# SPDX-License-Identifier: GPL-2.0-only
"""Which revision a recorded kernel is: by its release, and by where its trace shows that private faults are told.

A kernel that somebody built for an experiment has the release of the one it was made from.  What was changed shows
in the trace: a code that should have been cleaned, a private fault without its bit, or a look-up where there is
none.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from kvm_pf.attributes import kvm_mem_is_private
from kvm_pf.bits import PFERR_GUEST_ENC_MASK, PFERR_PRIVATE_ACCESS, PFERR_SYNTHETIC_MASK
from kvm_pf.common.errors import InputError
from kvm_pf.common.text import one_line
from kvm_pf.common.typed import typed
from kvm_pf.conformance.ftrace import TraceEvent
from kvm_pf.conformance.recordings import Recording
from kvm_pf.revisions import REVISIONS, ROWS, Revision, get, of_release
from kvm_pf.state import Fault, Lookups, Vm

__all__ = ("KERNELS", "kernel_of", "placements", "revision_for")

KERNELS = sorted((row.kernel, row.name) for row in ROWS if row.kernel)
"""Kernels and the revisions made from them; any other kernel takes the one before it."""


@typed()
def revision_for(kernel: str | None) -> tuple[Revision, str]:
    """Return the revision for a kernel's release, and a remark if it is only the nearest older one.

    Raises InputError for a release that says no version or one older than all of them.
    """
    if kernel and ("seedv1" in kernel or kernel.endswith("-posted")):
        return get("posted_on_6_12"), ""
    found = re.match(r"([0-9]{1,4})\.([0-9]{1,4})", kernel or "")
    version = (int(found[1]), int(found[2])) if found else (0, 0)
    revision = of_release(version)
    if revision is None:
        raise InputError(
            f"kernel {one_line(repr(kernel), 80)}: 6.1 or newer can be replayed; name a revision for another"
        )
    exact = revision.row is not None and revision.row.kernel == version
    return revision, "" if exact else f"the nearest older than {version[0]}.{version[1]}"


def look_again(vm: Vm, fault: Fault) -> tuple[bool, Lookups]:
    """Ask after the walk, about the page that was found: `walked_is_private` of a kernel made as a counter-example."""
    return kvm_mem_is_private(vm, fault.gfn)


PLACEMENTS = {
    "posted": "it cleans the error code in kvm_mmu_page_fault(), as posted",
    "before": "it looks the attribute up in kvm_mmu_do_page_fault(), as before the patch",
    "again": "it looks the attribute up again after the walk of the guest's tables",
}
"""Changes that a trace shows, and in words."""

_HANDLERS = {"tdp", "p64", "pept"}


def placements(events: Iterator[TraceEvent], npt: bool) -> set[str]:
    """Return which of PLACEMENTS a trace of 6.10 or newer shows; `npt`: codes in it are those of nested page faults."""
    found: set[str] = set()
    for event in events:
        match event.name, event.fields:
            case "kvm_page_fault", {"error_code": int(code)} if npt and not code & PFERR_GUEST_ENC_MASK:
                found |= {"posted"} if code & PFERR_SYNTHETIC_MASK else set()
            case name, {"is_private": 1, "err": int(code)} if name in _HANDLERS:
                found |= set() if code & PFERR_PRIVATE_ACCESS else {"before"}
            case "look_p64" | "look_pept", _:
                found.add("again")
    return found


def _changes(base: Revision, placement: str) -> dict[str, Any]:
    posted = REVISIONS["posted_on_6_12"]
    before = REVISIONS["before"]
    return {
        "posted": {name: posted.step(name) for name in ("sanitize", "npf_synthetic")},
        "before": {name: before.step(name) for name in ("mark_private", "is_private")},
        "again": {"walked_is_private": look_again},
    }[placement]


@typed()
def kernel_of(recording: Recording) -> tuple[Revision, str]:
    """Return the revision that a recording is replayed with, and a remark if it is not that of its release alone.

    Raises InputError as `revision_for` does, and if nothing names the kernel.
    """
    if recording.kernel is None:
        known = ", ".join(
            filter(None, (f"traces: {len(recording.scenarios)}", recording.vendor, recording.mode))
        )
        raise InputError(
            f"{recording.name}: no dmesg.txt or console.log there names its kernel ({known}); give its revision "
            f"(--revision, revision=): {', '.join(name for _, name in KERNELS)} or another"
        )
    base, remark = revision_for(recording.kernel)
    if not base.has("callers-strip"):  # 6.1, 6.8, and kernels that say themselves what was put back
        return base, remark
    events = (event for scenario in recording.scenarios for event in scenario.trace)
    found = placements(events, recording.mode == "npt")
    for placement in (name for name in PLACEMENTS if name in found):
        base = base.derive(f"{base.name}+{placement}", **_changes(base, placement))
        remark = "; ".join(filter(None, (remark, PLACEMENTS[placement])))
    return base, remark
