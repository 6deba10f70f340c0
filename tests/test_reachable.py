# SPDX-License-Identifier: GPL-2.0-only
"""What can exist: the cases say by a flag what cannot, the rules say why, and the two agree."""

import pytest

from kvm_pf.conformance.corpus import load_corpus
from kvm_pf.proof.case import Case, reachable
from kvm_pf.proof.evidence import curated
from kvm_pf.revisions import get
from kvm_pf.run.tables import SLOT_KINDS
from kvm_pf.state import PAGE_SHIFT

WAY = {"cases": "kvm_mmu_page_fault", "sources": "source", "faultin": "kvm_faultin_pfn"}
SHARED_BIT = 1 << 35


def broken(state, revision, way):
    return [said for said, true in reachable(Case(state), get(revision), way) if not true]


def test_a_case_that_no_revision_can_meet_is_flagged_so():
    """But for those about the proposals to borrow bit 34, which are asked of VMs that came later."""
    cases = load_corpus().cases
    met, flagged = {}, {}
    for row in cases[cases.kind.isin(WAY) & (cases.topic != "guest_enc")].to_dict("records"):
        way, revision = WAY[row["kind"]], get(row["revision"])
        state = dict(curated(way, revision)).get(row["id"])
        if state is not None and not revision.has("no-attributes"):
            met[row["id"]] = met.get(row["id"], False) or not broken(state, revision, way)
            flagged[row["id"]] = "unreachable" in row["flags"]
    assert [name for name in met if not met[name] and not flagged[name]] == []
    assert sum(not there for there in met.values()) > 15


def faultin(addr, **columns):
    columns = {"gfn": addr >> PAGE_SHIFT, "addr": addr, "is_tdp": 1, "cfg_private_mem": 1, **columns}
    columns["slot_kind"] = SLOT_KINDS.index(columns.get("slot_kind", "user"))
    return broken(columns, "v7_3", "kvm_faultin_pfn")


class TestTheFaultInOfATrustDomain:
    ADDR = 0x40000000

    def test_meets_a_shared_address_with_the_bit_stripped_from_the_gfn(self):
        shared = self.ADDR | SHARED_BIT << PAGE_SHIFT
        assert faultin(shared, gfn=self.ADDR >> PAGE_SHIFT, direct_bits=SHARED_BIT) == []

    def test_never_meets_the_bit_left_in_the_gfn(self):
        assert faultin(self.ADDR | SHARED_BIT << PAGE_SHIFT, direct_bits=SHARED_BIT) != []

    @pytest.mark.parametrize("private", [0, 1])
    def test_is_private_as_the_address_says(self, private):
        assert (faultin(self.ADDR, direct_bits=SHARED_BIT, is_private=private) == []) == bool(private)

    def test_is_of_no_nested_guest(self):
        assert faultin(self.ADDR, direct_bits=SHARED_BIT, is_private=1, guest_mode=1) != []


def test_no_slot_has_guest_memfd_and_is_read_only():
    said = faultin(0x40000000, slot_kind="user_gmem_ro")
    assert said == ["a slot with guest_memfd is not read-only"]
    assert faultin(0x40000000, slot_kind="user_gmem") == faultin(0x40000000, slot_kind="user_ro") == []


@pytest.mark.parametrize(
    ("bits", "there"), [(0, False), (SHARED_BIT, True), (1 << 39, True), (1 << 36, False)]
)
def test_a_trust_domain_that_faults_has_its_shared_bit(bits, there):
    from kvm_pf.exits import KIND_TDX

    assert (broken({"kind": KIND_TDX, "direct_bits": bits}, "v7_3", "source") == []) == there
