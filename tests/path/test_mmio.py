# SPDX-License-Identifier: GPL-2.0-only
"""The MMIO walk: which SPTE is the lowest, and which are checked for reserved bits."""

import pytest

from kvm_pf.mmio import MMIO_EPT, MMIO_NPT
from kvm_pf.revisions import get
from kvm_pf.spte import SPTE_MMU_PRESENT_MASK
from kvm_pf.state import Walk

PRESENT = SPTE_MMU_PRESENT_MASK | 0x7
RESERVED_ADDRESS = 1 << 50  # above 46 and 48 address bits alike
LEVELS = (5, 4, 3, 2, 1)


def walk(leaf, **sptes):
    words = {f"spte{level}": PRESENT if level > leaf else 0 for level in LEVELS}
    return Walk(5, leaf, **{**words, **sptes})


def lowest(leaf, mmio_cfg=MMIO_EPT, **sptes):
    path = get("posted")
    return path.link("get_mmio_spte")(path.link("mmio_format")(mmio_cfg, True), walk(leaf, **sptes))


@pytest.mark.parametrize("leaf", LEVELS)
def test_the_lowest_spte_is_the_leafs_whatever_its_level(leaf):
    assert lowest(leaf, **{f"spte{leaf}": 0x1230}) == (0x1230, False)


@pytest.mark.parametrize("leaf", LEVELS)
@pytest.mark.parametrize("mmio_cfg", [MMIO_EPT, MMIO_NPT])
def test_a_leaf_is_checked_only_if_it_is_present(leaf, mmio_cfg):
    name = f"spte{leaf}"
    assert lowest(leaf, mmio_cfg, **{name: RESERVED_ADDRESS})[1] is False
    assert lowest(leaf, mmio_cfg, **{name: RESERVED_ADDRESS | PRESENT})[1] is True


@pytest.mark.parametrize("level", LEVELS[:-1])
def test_every_level_above_the_leaf_is_checked(level):
    assert lowest(1, **{f"spte{level}": PRESENT | RESERVED_ADDRESS})[1] is True


def test_without_an_spte_there_is_nothing_to_check():
    assert lowest(-1, spte4=RESERVED_ADDRESS | PRESENT) == (0, False)
