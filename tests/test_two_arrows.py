# SPDX-License-Identifier: GPL-2.0-only
"""The picture of L2: the page that was meant, the page that was looked up."""

import pytest

from kvm_pf.common.errors import InputError
from kvm_pf.guest.machine import Machine
from kvm_pf.show.nested import two_arrows


def picture(*ops, revision="v6_12"):
    machine = Machine("sw-protected", revision=revision)
    for op in ("slot 1 0x40000000 0x200000 gmem,touch", "nest", "l2map 0x4a002000 0x40002000", *ops):
        done = machine.run(op)
    ax = two_arrows(done.faults[-1], machine).axes[0]
    drawn = {artist.get_gid() for artist in ax.get_children()} - {None}
    return drawn, [text.get_text() for text in ax.texts]


def test_two_arrows_lead_to_two_pages():
    drawn, texts = picture("attr 0x4a002000 0x1000 private", "l2r 0x4a002000")
    assert {"arrow:looked-up", "arrow:meant", "looked-up", "meant", "l2"} <= drawn
    assert {"page 0x4a002", "gfn 0x4a002", "gfn 0x40002", "private, no slot", "shared, slot 1"} <= set(texts)
    assert {"so the fault is private", "compared with: shared", "L2 reads here"} <= set(texts)
    assert texts[-1] == "they differ: -EFAULT, exit 39, address 0x40002000, flags 8"


def test_a_page_that_is_mapped_and_those_mapped_ahead():
    ops = ("l2map 0x4a000000 0x40000000", "l2map 0x4a001000 0x40001000", "l2r 0x4a001000", "zap 0x40001000 0x1000",
           "poke 0x40001000 1", "l2w 0x4a000000 1")  # fmt: skip
    _, texts = picture(*ops)
    assert texts[-1] == "they agree: the page is mapped; mapped ahead without a question: gfn 0x40001"
    assert "L2 writes here" in texts


def test_a_fault_that_is_l1s_has_one_arrow():
    drawn, texts = picture("l2x 0x4c000000")
    assert "arrow:looked-up" in drawn
    assert "arrow:meant" not in drawn
    assert texts[-1] == "no comparison: L1 sees the fault as an exit of its guest"


def test_a_reserved_fault_is_not_looked_up():
    drawn, texts = picture(
        "l2map 0x4b000000 0x60000000", "l2r 0x4b000000", "slot 4 0xa0000000 0x1000 touch", "l2r 0x4b000000"
    )
    assert "arrow:looked-up" not in drawn
    assert "nothing was looked up" in texts
    assert texts[-1] == "user space emulates the access"


def test_only_faults_of_l2_can_be_drawn():
    machine = Machine()
    machine.run("slot 1 0x40000000 0x1000 touch")
    with pytest.raises(InputError, match="a fault of L2's is wanted"):
        two_arrows(machine.run("r 0x40000000").faults[0], machine)
