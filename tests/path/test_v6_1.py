# SPDX-License-Identifier: GPL-2.0-only
"""Linux 6.1, whose recording is replayed: what it does not know yet."""

import pandas as pd

import kvm_pf
from kvm_pf.bits import PFERR_GUEST_FINAL_MASK, PFERR_IMPLICIT_ACCESS, PFERR_WRITE_MASK


def one(**given):
    return kvm_pf.evaluate(pd.DataFrame({name: [value] for name, value in given.items()}), "v6_1").iloc[0]


def test_nobody_warns_of_bit_48_and_the_cut_to_32_bits_drops_it():
    got = one(error_code=PFERR_IMPLICIT_ACCESS | PFERR_GUEST_FINAL_MASK | PFERR_WRITE_MASK)
    assert (got.warns, got.f_error_code, got.f_write) == ("", PFERR_WRITE_MASK, 1)


def test_no_fault_is_private_and_no_attribute_is_asked():
    got = one(error_code=PFERR_WRITE_MASK, vm_type=1, attrs=8)
    assert (got.f_is_private, got.attr_lookups) == (0, 0)


def test_the_handler_finds_gfn_and_slot_empty_even_on_a_direct_mmu():
    got = one(error_code=PFERR_WRITE_MASK, cr2_or_gpa=0x12345000)
    assert (got.f_addr, got.f_gfn, got.f_slot) == (0x12345000, 0, 0)


def test_errors_and_missing_slots_are_looked_at_after_the_look_up():
    faults = kvm_pf.follow("6.1-debian", "1-default")
    assert len(faults) > 20
    assert all("no" not in set(seen.table()["agree"]) for seen in faults)
    assert {seen.row.faultin_ret for seen in faults} >= {0}
