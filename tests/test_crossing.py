# SPDX-License-Identifier: GPL-2.0-only
"""Two parties and one page: what each step of a held fault is told, and the picture of it."""

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kvm_pf.common.errors import InputError
from kvm_pf.guest.crossing import cross
from kvm_pf.guest.machine import Machine
from kvm_pf.guest.memory import PLACES
from kvm_pf.show.crossing import two_parties
from kvm_pf.show.draw import png


@pytest.fixture
def guest():
    machine = Machine("sw-protected", revision="v6_12")
    machine.run("slot 1 0x40000000 0x200000 gmem")
    return machine


def test_the_second_party_acts_just_before_the_step_at_which_the_first_is_held(guest):
    told = cross(guest, "r 0x40000000 | priv 0x40000000", "kvm_mem_is_private")
    assert [(moment.party, moment.step) for moment in told] == [
        *((0, place) for place in PLACES[:3]), (1, "priv"), (0, "kvm_mem_is_private"), (0, "kvm_faultin_pfn"),
    ]  # fmt: skip
    assert [(moment.private, moment.seq) for moment in told] == [(False, 0)] * 3 + [(True, 1)] * 3
    assert [moment.answer for moment in told if moment.answer] == ["exit: shared"]


def test_an_answer_stands_at_the_last_step_of_each_fault(guest):
    told = cross(guest, "r 0x40000000 | r 0x40000000", "is_page_fault_stale")
    assert [(moment.party, moment.answer) for moment in told if moment.answer] == [
        (1, "FIXED"),
        (0, "SPURIOUS"),
    ]
    assert [moment.entry for moment in told][-3:] == ["read-only"] * 3  # the zero page


@pytest.mark.parametrize(
    ("revision", "op", "held", "last"),
    [
        (
            "posted",
            "r 0x40000000 | priv 0x40000000",
            "kvm_mem_is_private",
            "kvm_faultin_pfn: the count has moved",
        ),
        ("posted", "r 0x40000000 | priv 0x40000000", "__kvm_faultin_pfn", "__kvm_faultin_pfn: they differ"),
        ("v6_12", "r 0x40000000 | priv 0x40000000", "kvm_mem_is_private", "kvm_faultin_pfn: they differ"),
        (
            "v6_12",
            "r 0x40000000 | zap 0x40000000",
            "kvm_mem_is_private",
            "kvm_faultin_pfn: the count has moved",
        ),
        (
            "v6_12",
            "r 0x40000000 | zap 0x40000000",
            "__kvm_faultin_pfn",
            "__kvm_faultin_pfn: looks for the page",
        ),
        ("v6_12", "r 0x40000000 | r 0x40000000", "kvm_tdp_mmu_map", "kvm_tdp_mmu_map: finds the same entry"),
        ("v6_12", "w 0x40000000 | w 0x40000000", "kvm_tdp_mmu_map", "kvm_tdp_mmu_map: makes the entry"),
    ],
)
def test_the_last_step_names_the_kernels_function_and_what_it_did(revision, op, held, last):
    """As `arch/x86/kvm/mmu/mmu.c` has it: v6.9 compares in __kvm_faultin_pfn(), v6.12 in kvm_faultin_pfn()."""
    machine = Machine("sw-protected", revision=revision)
    machine.run("slot 1 0x40000000 0x200000 gmem")
    moment = cross(machine, op, held)[-1]
    assert f"{moment.step}: {moment.text}".startswith(last)


@pytest.mark.parametrize(
    ("given", "last"),
    [
        ("slot 1 0x40000000 0x200000 touch", "__kvm_faultin_pfn: no private memory"),
        ("slot 1 0x60000000 0x200000 gmem", "kvm_faultin_pfn: no private memory"),
    ],
)
def test_a_private_page_without_private_memory(given, last):
    machine = Machine("sw-protected", revision="v6_12")
    assert machine.run(given) == machine.run("attr 0x40000000 0x1000 private") == 0
    moment = cross(machine, "r 0x40000000 | zap 0x40008000", "fast_page_fault")[-1]
    assert f"{moment.step}: {moment.text}".startswith(last)
    assert moment.answer == "exit: private"


def test_the_second_of_two_writes_makes_the_entry_anew(guest):
    """`12_two_vcpus`: 6.12 leaves the dirty bit out of an entry that may be written to already."""
    told = cross(guest, "w 0x40000000 | w 0x40000000", "kvm_tdp_mmu_map")
    assert [(moment.answer, moment.entry) for moment in told if moment.answer] == [
        ("FIXED", "writable, dirty"),
        ("FIXED", "writable"),
    ]


def test_a_party_that_does_not_fault_says_so(guest):
    guest.access("w", 0x40001000)
    told = cross(guest, "r 0x40000000 | r 0x40001000", "kvm_faultin_pfn")
    assert [moment.text for moment in told if moment.party] == ["does not fault"]


@pytest.mark.parametrize(
    ("op", "held"),
    [
        ("r 0x40000000", "kvm_faultin_pfn"), ("r | priv", "kvm_faultin_pfn"), ("", "kvm_faultin_pfn"),
        ("q 0x40000000 | priv 0x40000000", "kvm_faultin_pfn"), ("r 0x40000000 | fly 0x1", "kvm_faultin_pfn"),
        ("r here | priv 0x40000000", "kvm_faultin_pfn"), ("r 0x40000000 | priv 0x40000000", "somewhere"),
        ("rw 0x40000000 | priv 0x40000000", "kvm_faultin_pfn"),
        ("r 0x40000000 | zap 0x40000000", "kvm_tdp_mmu_map"),  # mmu_lock is held
    ],
)  # fmt: skip
def test_what_cannot_cross_is_refused(guest, op, held):
    with pytest.raises(InputError):
        cross(guest, op, held)


def test_a_page_that_is_mapped_does_not_fault(guest):
    guest.access("r", 0x40000000)
    with pytest.raises(InputError, match="does not fault"):
        cross(guest, "r 0x40000000 | priv 0x40000000", "kvm_faultin_pfn")


def test_the_picture_has_a_box_for_each_step_and_marks_what_changed(guest):
    told = cross(guest, "r 0x40000000 | priv 0x40000000", "is_page_fault_stale")
    figure = two_parties(told)
    assert isinstance(figure, Figure)
    gids = [artist.get_gid() for artist in figure.axes[0].get_children() if artist.get_gid()]
    assert [gid for gid in gids if gid.startswith("step:")] == [f"step:{n}" for n in range(len(told))]
    assert [gid for gid in gids if gid.startswith("answer:")] == [f"answer:{len(told) - 1}"]
    assert [gid for gid in gids if gid.startswith("held:")] == ["held:4"]
    bold = {text.get_text() for text in figure.axes[0].texts if text.get_weight() == "bold"}
    assert {"private", "1", "RETRY"} <= bold
    assert "shared" not in bold
    assert png(figure) == png(two_parties(told))


def test_the_picture_is_drawn_into_axes(guest):
    ax = Figure().add_subplot()
    assert isinstance(ax, Axes)
    assert two_parties(cross(guest, "r 0x40000000 | zap 0x40000000", "kvm_faultin_pfn"), ax) is ax


def test_without_a_step_there_is_no_picture():
    with pytest.raises(InputError, match="no step"):
        two_parties([])
