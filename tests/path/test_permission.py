# SPDX-License-Identifier: GPL-2.0-only
"""Where bit 48 is read: SMAP, the kernel's shield against its own user pages."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvm_pf import revisions

PRESENT, WRITE, USER, RSVD, FETCH, PK, SS = 1, 2, 4, 8, 16, 32, 64
IMPLICIT = 1 << 48
ALL = ("before", "posted", "posted_series", "merged_patch", "v6_10", "v6_12", "v7_3")


def smap(revision="posted", access=0, cpl=0, ac=False, cr4_smap=True, page_user=True):
    return revisions.get(revision).link("smap_applies")(access, cpl, ac, cr4_smap, page_user)


@pytest.mark.parametrize("revision", ALL)
class TestSmap:
    @pytest.mark.parametrize("access", [0, WRITE, PRESENT, PRESENT | WRITE])
    @pytest.mark.parametrize("cpl", [0, 1, 2])
    def test_forbids_the_kernels_data_access_to_a_user_page(self, revision, access, cpl):
        assert smap(revision, access, cpl)

    def test_needs_the_control_bit_and_a_user_page(self, revision):
        assert not smap(revision, cr4_smap=False)
        assert not smap(revision, page_user=False)
        assert not smap(revision, IMPLICIT, cr4_smap=False)
        assert not smap(revision, IMPLICIT, page_user=False)

    def test_is_waived_by_ac(self, revision):
        assert not smap(revision, WRITE, ac=True)

    def test_is_not_waived_for_an_implicit_access(self, revision):
        assert smap(revision, IMPLICIT, ac=True)
        assert smap(revision, IMPLICIT | WRITE, ac=True)

    def test_does_not_concern_user_code(self, revision):
        assert not smap(revision, cpl=3)
        assert not smap(revision, USER, cpl=3)

    def test_an_implicit_access_is_the_kernels_even_under_user_code(self, revision):
        assert smap(revision, IMPLICIT, cpl=3)
        assert smap(revision, IMPLICIT, cpl=3, ac=True)

    def test_a_word_with_the_user_bit_is_a_user_access(self, revision):
        assert not smap(revision, USER | IMPLICIT)

    def test_does_not_concern_fetches(self, revision):
        assert not smap(revision, FETCH)
        assert not smap(revision, FETCH | IMPLICIT)

    def test_flags_may_be_numbers(self, revision):
        assert smap(revision, IMPLICIT, 0, 1, 1, 1) is True
        assert smap(revision, 0, 0, 1, 1, 1) is False

    @given(access=st.integers(0, 2**64 - 1), cpl=st.integers(0, 3), ac=st.booleans())
    def test_never_looks_at_bits_above_31_but_the_implicit_one(self, revision, access, cpl, ac):
        low = access & (2**32 - 1 | IMPLICIT)
        assert smap(revision, access, cpl, ac) == smap(revision, low, cpl, ac)


class TestUnknownBits:
    def test_reserved_bit_switches_smap_off_until_7_3(self):
        assert not smap("v6_12", RSVD)
        assert not smap("posted", RSVD | IMPLICIT)

    def test_reserved_bit_is_dropped_from_7_3(self):
        assert smap("v7_3", RSVD)
        assert smap("v7_3", RSVD | IMPLICIT, ac=True)

    @pytest.mark.parametrize(
        ("access", "kept", "warned"),
        [
            (PRESENT | WRITE | USER | FETCH, 0x17, False),
            (PK, PK, True),
            (RSVD, RSVD, True),
            (SS | 1 << 15, SS | 1 << 15, False),
            (1 << 31, 1 << 31, False),
            (IMPLICIT | 1 << 32 | WRITE, WRITE, False),
        ],
    )
    def test_until_7_3_two_bits_are_warned_about_and_none_dropped(self, access, kept, warned):
        for revision in ("posted", "v6_12"):
            assert revisions.get(revision).link("permission_pfec")(access) == (kept, warned)

    @pytest.mark.parametrize(
        ("access", "kept", "warned"),
        [
            (PRESENT | WRITE | USER | FETCH, 0x17, False),
            (PK | WRITE, WRITE, True),
            (RSVD, 0, True),
            (SS | USER, USER, False),
            (1 << 15, 0, True),
            (1 << 31 | FETCH, FETCH, True),
            (IMPLICIT | 1 << 32 | WRITE, WRITE, False),
        ],
    )
    def test_from_7_3_unknown_ones_are_dropped_and_all_but_shadow_stack_warned_about(
        self, access, kept, warned
    ):
        assert revisions.get("v7_3").link("permission_pfec")(access) == (kept, warned)


class TestEmulatedAccess:
    @pytest.mark.parametrize(
        ("cpl", "implicit", "word"),
        [
            (0, False, WRITE),
            (3, False, WRITE | USER),
            (0, True, WRITE | IMPLICIT),
            (3, True, WRITE | IMPLICIT),
        ],
    )
    def test_user_bit_from_the_level_unless_implicit(self, cpl, implicit, word):
        assert revisions.get("posted").link("emulated_access")(WRITE, cpl, implicit) == word
