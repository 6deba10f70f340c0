# SPDX-License-Identifier: GPL-2.0-only
"""The kernel's own selftests of private memory: what they ask for is what the machine does, in every revision."""

import gzip
import json
from collections import Counter
from pathlib import Path

import pytest

from kvm_pf.attributes import kvm_mem_is_private
from kvm_pf.common.paths import data_dir
from kvm_pf.guest.machine import Machine
from kvm_pf.guest.selftests import (
    DATA_GPA,
    DATA_SIZE,
    RANGES,
    SELFTESTS,
    conversions,
    deleted_slot,
    punched_holes,
    run,
)
from kvm_pf.revisions import REVISIONS
from kvm_pf.state import NO_LOOKUP

REVISION = (
    "before",
    "posted",
    "posted_series",
    "merged_patch",
    "v6_8",
    "v6_10",
    "v6_12",
    "v7_3",
    "posted_on_6_12",
)
SCENARIOS = Path(__file__).parents[1] / "tools" / "recorder" / "scenarios"
NAMES = [(name, part) for name, parts in SELFTESTS.items() for part in parts]


@pytest.mark.parametrize("hardware", ["npt", "ept"])
@pytest.mark.parametrize(("name", "part"), NAMES)
def test_every_line_ends_as_the_selftest_asks(name, part, hardware):
    for revision in ("before", "posted", "v6_12", "v7_3"):
        rows = list(run(SELFTESTS[name][part](), Machine("default", hardware, revision)))
        assert [row for row in rows if not row.agrees] == []


@pytest.mark.parametrize("revision", REVISION)
def test_the_exits_hold_in_every_revision_with_private_memory(revision):
    for scenario in SELFTESTS["private_mem_kvm_exits_test"].values():
        *_, last = run(scenario(), Machine("default", "npt", revision))
        assert (last.ended, last.gpa, last.flags, last.agrees) == ("memory-fault", "0xc0000000", "8", True)


def test_a_converted_page_faults_once_for_each_copy():
    """By hand, for the first range, one page: written shared, private, read, shared; the rest stays mapped."""
    rows = [
        row
        for row in run(conversions(False), Machine("default", "npt", "v6_12"))
        if f"{DATA_GPA:#x}" in row.op
    ]
    accesses = [(row.op.split()[0], row.faults, row.private) for row in rows if row.op[0] in "rw"]
    assert accesses[:5] == [("w", 1, "no"), ("w", 0, ""), ("w", 1, "yes"), ("r", 0, ""), ("w", 1, "no")]


def test_a_hole_makes_the_next_access_fault_again():
    lines = list(punched_holes(True, every=1))
    count = Counter(row.faults for row in run(lines, Machine("default", "npt", "v6_12")) if row.op[0] in "rw")
    assert count == {1: 2 * sum(size >> 12 for _, size in RANGES)}


def test_all_of_the_data_is_touched_if_asked_for():
    written = {line.op for line in conversions(False, every=1) if line.op.startswith("w")}
    assert written == {f"w {gpa:#x}" for gpa in range(DATA_GPA, DATA_GPA + DATA_SIZE, 0x1000)}


def test_a_kernel_that_forgets_the_attribute_fails_the_selftests():
    def shared(vm, gfn):
        return False, NO_LOOKUP

    deaf = REVISIONS["v6_12"].derive("deaf", kvm_mem_is_private=shared)
    assert deaf.step("kvm_mem_is_private") is not kvm_mem_is_private
    assert not all(row.agrees for row in run(deleted_slot(), Machine("default", "npt", deaf)))
    assert not all(row.agrees for row in run(conversions(True), Machine("default", "npt", deaf)))


def _parts():
    """The selftests' scenarios by the names that the recorder has for them."""
    exits, conversions_ = SELFTESTS.values()
    names = ("conversions", "conversions-punch", "holes", "holes-precise")
    parts = {name: list(part()) for name, part in zip(names, conversions_.values(), strict=True)}
    return {"exits": [line for part in exits.values() for line in part()]} | parts


PARTS = _parts()


def test_the_recorder_s_scenarios_are_these():
    """`tools/recorder/scenarios/selftest-*.scn` run the same operations in a kernel."""
    found = {path.stem.removeprefix("selftest-"): path for path in SCENARIOS.glob("selftest-*.scn")}
    assert found.keys() == PARTS.keys()
    for name, part in PARTS.items():
        lines = [line.partition("#")[0].strip() for line in found[name].read_text().splitlines()]
        assert [line for line in lines if line] == [line.op for line in part]


def recorded(name):
    """User space's side of a recorded scenario, a dictionary for each step."""
    (path,) = (data_dir() / "recordings" / "6.12-selftests").glob(f"*-selftest-{name}.json.gz")
    with gzip.open(path, "rt") as file:
        _, *steps = map(json.loads, file)
    return steps


@pytest.mark.parametrize("name", PARTS)
def test_the_kernel_itself_ended_each_line_as_the_selftest_asks(name):
    """Row beside row: what the selftest asks of a line, what Linux 6.12.117 answered, what the machine answers."""
    lines, steps = PARTS[name], recorded(name)
    rows = run(lines, Machine("default", "npt", "v6_12"))
    for line, step, row in zip(lines, steps, rows, strict=True):
        assert step["op"] == line.op == row.op
        if line.op[0] not in "rw":
            assert (step["rc"], row.ended) == (0, "0")
            continue
        end = step["run0"]
        assert (end["name"], row.ended) == {
            "done": ("HLT", "done"), "memory-fault": ("MEMORY_FAULT", "memory-fault"),
        }[line.ends]  # fmt: skip
        if line.ends == "memory-fault":
            told = end["memory_fault"]
            assert (int(told["gpa"], 0), int(told["flags"], 0)) == (int(row.gpa, 0), int(row.flags))


def test_a_hole_is_found_empty_and_the_other_copy_as_it_was():
    """Contents, which the machine has not: each read in private memory after a hole was punched gives zero."""
    reads = [step["run0"]["rax"] for step in recorded("holes") if step["op"].startswith("r ")]
    assert set(reads) == {"0x0"}
