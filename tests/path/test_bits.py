# SPDX-License-Identifier: GPL-2.0-only
"""The bit tables: each bit once, names and numbers one to one, unknown bits visible."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvm_pf import bits
from kvm_pf.bits import EPT, PFERR, TABLES, decode, describe, encode
from kvm_pf.common.errors import InputError

CODES = st.integers(0, (1 << 64) - 1)

# Linux arch/x86/include/asm/kvm_host.h, blob 4077c46c61ab (the posted patch applied)
KERNEL = {
    "PFERR_PRESENT_MASK": 0, "PFERR_WRITE_MASK": 1, "PFERR_USER_MASK": 2, "PFERR_RSVD_MASK": 3,
    "PFERR_FETCH_MASK": 4, "PFERR_PK_MASK": 5, "PFERR_SGX_MASK": 15, "PFERR_GUEST_RMP_MASK": 31,
    "PFERR_GUEST_FINAL_MASK": 32, "PFERR_GUEST_PAGE_MASK": 33, "PFERR_GUEST_ENC_MASK": 34,
    "PFERR_GUEST_SIZEM_MASK": 35, "PFERR_GUEST_VMPL_MASK": 36, "PFERR_IMPLICIT_ACCESS": 48,
    "PFERR_PRIVATE_ACCESS": 49,
}  # fmt: skip


@pytest.mark.parametrize("name", KERNEL)
def test_masks_stand_where_the_kernel_has_them(name):
    assert getattr(bits, name) == 1 << KERNEL[name]


def test_the_composite_masks_are_the_kernels():
    assert bits.PFERR_SYNTHETIC_MASK == 0x3000000000000
    assert bits.PFERR_NESTED_GUEST_PAGE == 0x200000003


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_each_bit_and_each_name_stands_once_in_order_with_meaning_and_source(table):
    positions = [row.bit for row in table]
    names = [row.name for row in table if row.name]
    assert positions == sorted(set(positions))
    assert len(names) == len(set(names))
    assert all(row.means and row.source for row in table)


def test_only_kvm_sets_the_synthetic_bits_and_nothing_else_is_kvms():
    assert {row.bit for row in PFERR if row.set_by is bits.KVM} == {48, 49}


@given(CODES)
def test_decoding_loses_no_bit(code):
    assert sum(row.mask for row in decode(code)) == code


@given(CODES, st.sampled_from([PFERR, EPT]))
def test_names_and_numbers_are_one_to_one(code, table):
    assert encode(describe(code, table), table) == code


def test_a_bit_without_a_name_stays_visible():
    assert [row.label for row in decode(1 << 50 | 1)] == ["PRESENT", "bit 50"]
    assert describe(1 << 37 | 1 << 63) == "bit37|bit63"


@pytest.mark.parametrize("code", [-1, 1 << 64])
def test_a_code_that_is_no_u64_is_refused(code):
    with pytest.raises(ValueError, match="unsigned 64-bit"):
        decode(code)


@pytest.mark.parametrize("word", ["WRIT", "bit64", "bit-1", "bit", "WRITE||USER", "", "1"])
def test_a_word_that_is_no_bit_is_named(word):
    with pytest.raises(ValueError, match="no bit is called"):
        encode(word)


def test_no_bits_have_a_name_too():
    assert encode("0") == 0
    assert describe(0) == "0"


@pytest.mark.parametrize("code", [True, None, "6", 1.0, -1, 1 << 64, 1 << 200])
def test_what_is_no_u64_is_refused(code):
    with pytest.raises(InputError, match="unsigned 64-bit number"):
        decode(code)


@pytest.mark.parametrize("table", [None, "PFERR", 3, [1, 2]])
def test_what_is_no_table_of_bits_is_refused(table):
    with pytest.raises(InputError, match="table of bits"):
        decode(1, table)


@pytest.mark.parametrize("names", [None, 6, b"WRITE"])
def test_names_are_text(names):
    with pytest.raises(InputError, match="it takes text"):
        encode(names)
