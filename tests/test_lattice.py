# SPDX-License-Identifier: GPL-2.0-only
"""The lattice: which changes keep which claims, as the facts have it."""

from __future__ import annotations

from kvm_pf.proof.lattice import closed, combinations, later, opened, stages, table

HOLDS, EMPTY, FAILS, UNKNOWN = "holds", "empty", "fails", "unknown"


def test_only_all_three_changes_give_the_patch():
    found = combinations(["outside-bits-never-survive", "declared-is-private", "private-means-declared"])
    assert found.to_dict("index") == {
        name: dict(zip(found.columns, answers, strict=True))
        for name, answers in {
            "none": (FAILS, HOLDS, HOLDS),
            "sanitize": (HOLDS, HOLDS, HOLDS),
            "mark_private": (FAILS, HOLDS, HOLDS),
            "is_private": (FAILS, FAILS, FAILS),  # nobody marks; a caller's bit 49 passes
            "sanitize + mark_private": (HOLDS, HOLDS, HOLDS),
            "sanitize + is_private": (HOLDS, FAILS, EMPTY),  # nobody marks, and nobody may
            "mark_private + is_private": (FAILS, HOLDS, FAILS),
            "sanitize + mark_private + is_private": (HOLDS, HOLDS, HOLDS),
        }.items()
    }


def test_each_later_patch_closes_its_gap():
    found = later(["declared-is-private", "callers-may-say-private", "private-and-reserved-is-refused"])
    assert {name: gap for name, gap in closed(found).items() if gap} == {
        "05: as posted": ["declared-is-private"],
        "07: #NPF drops the bits": ["callers-may-say-private"],
        "merged: private and reserved is refused": ["private-and-reserved-is-refused"],
    }
    assert {name: gap for name, gap in opened(found).items() if gap} == {
        "07: #NPF drops the bits": ["private-and-reserved-is-refused"]
    }


def test_the_stages_end_with_the_merged_steps():
    last = list(stages().values())[-1]
    assert last.step("page_ready_code") is not stages()["05: as posted"].step("page_ready_code")
    assert next(iter(stages())) == "05 without 04: codes of 32 bits"


def test_a_table_of_any_revisions():
    found = table({"as it is": "posted", "cut": "posted_u32"}, ["nothing-is-private"])
    assert found["nothing-is-private"].to_dict() == {"as it is": FAILS, "cut": HOLDS}
