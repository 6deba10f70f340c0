# SPDX-License-Identifier: GPL-2.0-only
"""What the first pages of the walkthrough, up to `06_why_synthetic`, say and do not show, run."""

from __future__ import annotations

import pytest

from kvm_pf import REVISIONS, Machine, encode, explain, load_corpus
from kvm_pf.bits import PFERR, PFERR_IMPLICIT_ACCESS, PFERR_PRIVATE_ACCESS, PFERR_SYNTHETIC_MASK, Origin
from kvm_pf.permission import smap_applies
from kvm_pf.show import page

WRITE = "WRITE|USER|GUEST_FINAL"
SW = {"vm_type": "sw-protected", "private": True}
STALE = {"error_code": "RSVD|USER|GUEST_FINAL", "mmio_cfg": 2, "walk_leaf": 1, "spte1": 0x8000060010027}


class TestIndex:
    @pytest.mark.parametrize(
        ("fault", "private", "lookups"),
        [
            ({"error_code": WRITE}, "00", "10"),
            ({"error_code": WRITE, **SW}, "11", "11"),
            ({"error_code": WRITE, "vm_type": "sw-protected"}, "00", "11"),
            ({**STALE, **SW}, "10", "10"),
            ({"error_code": f"{WRITE}|GUEST_ENC", "vm_type": "sev"}, "00", "10"),
            ({"error_code": f"{WRITE}|GUEST_ENC", "vm_type": "sev-es"}, "00", "10"),
            ({"error_code": f"{WRITE}|PRIVATE_ACCESS", "vm_type": "snp"}, "00", "10"),
            ({"error_code": f"{WRITE}|PRIVATE_ACCESS", "vm_type": "tdx"}, "00", "10"),
            ({**STALE, **SW, "direct": False}, "10", "10"),
        ],
        ids=[
            "default", "software-protected, private page", "software-protected, shared page",
            "software-protected, reserved fault, stale mark", "SEV", "SEV-ES", "SNP", "TDX", "L2, reserved fault",
        ],
    )  # fmt: skip
    def test_what_changes_for_each_kind_of_vm(self, fault, private, lookups):
        ran = page.results("f_is_private attr_lookups", {"it": fault}, "before", "posted")
        assert ("".join(ran.f_is_private), "".join(ran.attr_lookups)) == (private, lookups)

    @pytest.mark.parametrize("revision", ["before", "posted"])
    def test_l2_is_private_by_the_look_up_though_the_page_that_is_meant_is_shared(self, revision):
        machine = Machine("sw-protected", revision=revision)
        for op in (
            "slot 1 0x40000000 0x200000 gmem",
            "nest",
            "l2map 0x4a000000 0x40000000 w",
            "attr 0x4a000000 0x1000 private",
        ):
            machine.run(op)
        (taken,) = machine.l2_access("r", 0x4A000000).faults
        assert taken.handled.fault.is_private
        assert taken.outcome.lookups.count == 1
        assert (taken.exit.exit_reason, taken.exit.flags) == (39, 8)
