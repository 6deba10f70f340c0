# SPDX-License-Identifier: GPL-2.0-only
"""Two vCPUs at once: what each is answered follows from the order of the events, and from nothing else."""

import gzip
import json
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest
from test_replay import Seen

from kvm_pf.common.errors import InputError
from kvm_pf.conformance import parties
from kvm_pf.conformance.join import faults
from kvm_pf.conformance.recordings import read_recording
from kvm_pf.conformance.replay import replay
from kvm_pf.guest.machine import Exit, Machine
from kvm_pf.guest.memory import PLACES
from kvm_pf.state import MemoryFault

NAME = "6.12-two-vcpus"
DATA = Path(__file__).parents[1] / "data" / "recordings" / NAME
RETRY, EMULATE, FIXED, SPURIOUS = 1, 2, 5, 6  # of 6.12
SLOT, MMIO = 0x40000000, 0x60000000


@pytest.fixture(scope="module")
def recording():
    return read_recording(DATA)


# --- the recording ---


def test_what_is_left_to_chance_is_named_and_counted():
    """Step 4 of 1-par: one vCPU faults again and again while the other's copy-on-write is in progress."""
    report = replay(DATA)
    assert report.differences == []
    assert report.chance == {parties.IN_PROGRESS: 47, parties.ENDED: 1}
    assert f"left to chance: {parties.IN_PROGRESS} 47" in str(report)
    assert "handler's result" not in report.given
    assert {"out_mmu_seq", "handler_ret", "fast_ret", "faultin_ret", "in_is_private"} <= set(report.compared)


@pytest.mark.shared
def test_the_raw_recording_says_the_same(shared):
    raw, carried = replay(shared / "recordings-l2" / "par612-smp"), replay(DATA)
    assert (raw.compared, raw.given, raw.chance, raw.differences) == (
        carried.compared, carried.given, carried.chance, [],
    )  # fmt: skip


def test_statistics_of_a_step_count_both_vcpus(recording):
    rows = faults(recording)
    for scenario in recording.scenarios:
        for step in scenario.steps:
            if step.op.split()[0] == "par":
                mine = [row for row in rows if (row.scenario, row.step) == (scenario.name, step.number)]
                told = step.result["stats"]
                assert told.get("pf_taken", 0) == sum(row.handler_ret is not None for row in mine), step.op
                assert told.get("pf_spurious", 0) == sum(row.handler_ret == SPURIOUS for row in mine), step.op


# Where the order is another than "first, held, second, first again": see the reasons.
ELSEWHERE = {
    ("1-par", 4): "nothing is held",
    ("1-par", 23): "in step 20 the vCPU ends an MMIO access and does not come to its read",
    ("1-par", 31): "held is a fault on the guest's own page table",
}


@pytest.mark.parametrize("name", ["1-par", "2-par-swprot"])
def test_operations_alone_give_the_recorded_answers(recording, name):
    """Of the recording, nothing but the operations is used: the second party acts when the first is held."""
    scenario = next(scenario for scenario in recording.scenarios if scenario.name == name)
    rows = [row for row in faults(recording) if row.scenario == name and row.run is not None]
    machine = Machine("default", "npt", "v6_12")
    compared = 0
    for step in scenario.steps:
        done = machine.run(step.op)
        if step.op.split()[0] != "par" or (name, step.number) in ELSEWHERE:
            continue
        for vcpu, party in enumerate(done):
            if isinstance(party, int):
                assert party == step.result[f"host{vcpu}"]["rc"]
                continue
            mine = [
                row for row in rows if (row.step, row.vcpu) == (step.number, vcpu) and row.address >= 1 << 30
            ]
            assert [fault.handled.ret for fault in party.faults] == [row.handler_ret for row in mine], step.op
            told = step.result[f"vcpu{vcpu}"]
            assert (party.exit.errno, party.exit.memory_fault.exit_reason == 39) == (
                told["errno"], told["name"] == "MEMORY_FAULT",
            ), step.op  # fmt: skip
            if parts := told.get("memory_fault"):
                wanted = (39, *(int(parts[key], 0) for key in ("gpa", "size", "flags")))
                assert party.exit.memory_fault == MemoryFault(*wanted)
            compared += 1
    assert compared == {"1-par": 24, "2-par-swprot": 8}[name]


# --- other timings ---


@pytest.fixture
def changed(tmp_path):
    """Write the recording with its trace and its JSON changed; return where.

    Replayed with the revision that it names itself, by request: then causes of differences are not looked for.
    """

    def write(name, trace=lambda lines: lines, told=lambda step: None):
        for path in DATA.iterdir():
            if not path.name.endswith(".gz"):
                shutil.copy(path, tmp_path)
        lines = gzip.decompress((DATA / f"{name}.trace.gz").read_bytes()).decode().splitlines()
        lines = trace(lines)
        count = sum(not line.startswith("#") and line.strip() != "" for line in lines)
        header = re.compile(r"(# entries-in-buffer/entries-written: )\d+/\d+")
        text = "\n".join(header.sub(rf"\g<1>{count}/{count}", line) for line in lines)
        (tmp_path / f"{name}.trace").write_text(text + "\n")
        steps = gzip.decompress((DATA / f"{name}.json.gz").read_bytes()).decode().splitlines()
        objects = [json.loads(step) for step in steps]
        for each in objects:
            told(each)
        (tmp_path / f"{name}.json").write_text("".join(json.dumps(each) + "\n" for each in objects))
        return tmp_path

    return write


def step_lines(lines, number):
    """The places of a step's lines, its mark left out."""
    marks = [at for at, line in enumerate(lines) if re.search(r"tracing_mark_write: (step|end)", line)]
    first = next(at for at in marks if f"tracing_mark_write: step {number}: " in lines[at])
    return range(first + 1, marks[marks.index(first) + 1])


def without_one(lines):
    """Leave out the first fault of vCPU 1 in step 4 that is answered RETRY."""
    block = []
    for at in step_lines(lines, 4):
        if "kvmlab-66 " in lines[at]:
            block = [at] if "kvm_exit:" in lines[at] else [*block, at]
            if (
                any("tdp_ret:" in lines[k] and " ret=1 " in lines[k] for k in block)
                and "kvm_entry:" in lines[at]
            ):
                return [line for k, line in enumerate(lines) if k not in block]
    raise AssertionError("no more")


@pytest.mark.parametrize("wanted", [10, 23, 46])
def test_how_often_a_vcpu_tries_again_is_chance_and_all_else_is_not(changed, wanted):
    """With fewer faults while the invalidation is in progress, nothing differs, but the count must be told."""

    def trace(lines):
        for _ in range(wanted):
            lines = without_one(lines)
        return lines

    def fewer(step):
        if step.get("step") == 4:
            step["stats"]["pf_taken"] -= wanted

    report = replay(changed("1-par", trace, fewer))
    assert report.differences == []
    assert report.chance[parties.IN_PROGRESS] == 47 - wanted
    report = replay(changed("1-par", trace), "v6_12")  # the statistics of all
    assert [(d.field, d.recorded, d.model) for d in report.differences] == [
        ("stat_pf_taken", 51, 51 - wanted)
    ]


def test_probes_of_the_look_ups_are_not_needed(changed):
    report = replay(changed("2-par-swprot", lambda lines: [line for line in lines if ": look_" not in line]))
    assert (report.differences, report.chance) == ([], {})


def test_the_numbers_of_the_vcpus_do_not_matter(changed):
    def trace(lines):
        swap = {"0": "1", "1": "0"}
        text = [re.sub(r"\b(vcpu|party) ([01])\b", lambda m: f"{m[1]} {swap[m[2]]}", line) for line in lines]
        return [re.sub(r"(step \d+: par) (.*) \| (.*)", r"\1 \3 | \2", line) for line in text]

    def told(step):
        if step.get("op", "").startswith("par "):
            first, second = step["op"][4:].split(" | ")
            step["op"] = f"par {second} | {first}"
            for name in ("vcpu", "host"):
                both = {k: step.pop(f"{name}{k}") for k in (0, 1) if f"{name}{k}" in step}
                step |= {f"{name}{1 - k}": value for k, value in both.items()}

    report = replay(changed("1-par", trace, told))
    assert report.differences == []
    assert report.chance == {parties.IN_PROGRESS: 47, parties.ENDED: 1}


@pytest.mark.parametrize(
    ("name", "step", "what"),
    [("1-par", 34, {parties.BEGUN: 1, parties.ENDED: 1}), ("2-par-swprot", 14, {parties.CHANGED: 1})],
)
def test_where_the_order_is_not_traced_the_faults_own_record_decides(changed, name, step, what):
    """The task that takes the page away, or changes its attribute, shows no further event."""

    def trace(lines):
        mine = step_lines(lines, step)
        pid = next(re.search(r"kvmlab-(\d+)", lines[at])[1] for at in mine if "party 1:" in lines[at])
        begun = next(at for at in mine if "party 1:" in lines[at])
        later = [at for at in mine if at > begun and f"kvmlab-{pid} " in lines[at]]
        kept = later[:1] if name == "1-par" else []  # the zap's own
        return [line for at, line in enumerate(lines) if at not in set(later) - set(kept)]

    plain = Counter({parties.IN_PROGRESS: 47, parties.ENDED: 1} if name == "1-par" else {})
    report = replay(changed(name, trace))
    assert report.differences == []
    assert report.chance == plain + Counter(what)


# --- what is malformed ---


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [("party 1: priv 0x40001000", "party 1: priv here", "'here' is no number"),
     ("party 1: priv 0x40001000", "party 1: priv", "'' is no number")],
)  # fmt: skip
def test_a_party_that_acts_nowhere_is_refused(changed, old, new, message):
    folder = changed("2-par-swprot", lambda lines: [line.replace(old, new) for line in lines])
    with pytest.raises(InputError, match=rf"2-par-swprot\.trace:\d+: {message}"):
        replay(folder)


@pytest.mark.parametrize("name", ["vcpu0", "host1", "stats"])
@pytest.mark.parametrize("value", [5, "x", None, []])
def test_a_result_that_is_no_object_is_refused(changed, name, value):
    def told(step):
        if step.get("step") == 8:
            step[name] = value

    with pytest.raises(InputError, match=r"2-par-swprot\.json:9: "):
        replay(changed("2-par-swprot", told=told))


def test_a_party_whose_trace_is_cut_is_taken_as_far_as_it_goes(changed):
    """The trace ends while the first party is held."""

    def trace(lines):
        at = next(at for at in step_lines(lines, 14) if "held at 3" in lines[at])
        return lines[: at + 1]

    folder = changed("2-par-swprot", trace)
    path = folder / "2-par-swprot.trace"
    path.write_text(re.sub(r"(written: )\d+/\d+", r"\g<1>612/612", path.read_text()))  # as it was promised
    report = replay(folder)
    assert report.damage
    assert report.differences == []


# --- it can fail ---


def test_a_retry_without_an_invalidation_is_a_difference(changed):
    """Step 34: the host's zap is moved to after the fault that it made retry."""

    def trace(lines):
        mine = step_lines(lines, 34)
        zap = next(at for at in mine if "kvm_unmap_hva_range" in lines[at])
        after = next(at for at in mine if "tdp_ret:" in lines[at])
        return [*lines[:zap], *lines[zap + 1 : after + 1], lines[zap], *lines[after + 1 :]]

    report = replay(changed("1-par", trace), "v6_12")
    assert ("handler_ret", RETRY, FIXED) in [(d.field, d.recorded, d.model) for d in report.differences]


def test_a_page_that_is_installed_although_it_was_taken_away_is_a_difference(changed):
    """Step 34: the kernel's answer is changed to that of a fault which nobody disturbed."""

    def trace(lines):
        at = next(at for at in step_lines(lines, 34) if "tdp_ret:" in lines[at])
        return [*lines[:at], lines[at].replace(" ret=1 ", " ret=5 "), *lines[at + 1 :]]

    report = replay(changed("1-par", trace), "v6_12")
    assert ("handler_ret", FIXED, RETRY) in [(d.field, d.recorded, d.model) for d in report.differences]


@pytest.mark.parametrize(
    ("name", "step", "old", "new"),
    [
        ("1-par", 6, r"(tdp_ret:.*) ret=6", r"\1 ret=5"),  # spurious, counted as fixed
        ("1-par", 28, r"(fast_ret:.*) ret=6", r"\1 ret=5"),
        ("1-par", 28, r"spurious 1 fixed 0", r"spurious 0 fixed 1"),
        ("1-par", 8, r"(tdp_ret:.*) ret=1 (.*)mmu_seq=1", r"\1 ret=1 \2mmu_seq=2"),
        ("1-par", 40, r"mmu_seq=6", r"mmu_seq=5"),
        ("2-par-swprot", 8, r"(faultin_ret:.*) ret=-14", r"\1 ret=0"),
        ("2-par-swprot", 10, r"is_private=1", r"is_private=0"),
        ("2-par-swprot", 14, r"(tdp_ret:.*) ret=1 ", r"\1 ret=5 "),
    ],
)
def test_another_answer_in_the_same_order_is_a_difference(changed, name, step, old, new):
    def trace(lines):
        mine = step_lines(lines, step)
        return [re.sub(old, new, line) if at in mine else line for at, line in enumerate(lines)]

    differences = replay(changed(name, trace), "v6_12").differences
    assert {int(re.search(r"step (\d+)", difference.fault)[1]) for difference in differences} == {step}


def test_a_memory_fault_exit_with_the_new_answer_is_a_difference(changed):
    """Step 8: the page is private by the time that user space is told of a shared access to it."""

    def told(step):
        if step.get("step") == 8:
            step["vcpu0"]["memory_fault"]["flags"] = "0x8"

    (difference,) = replay(changed("2-par-swprot", told=told), "v6_12").differences
    assert (difference.field, difference.recorded, difference.model) == ("memory_fault_flags", 8, 0)


def test_an_altered_value_of_any_compared_column_is_found():
    """In each pass every fault has at most one value altered, and each of these faults differs."""
    plain = Seen(NAME).play()
    assert plain.report.differences == []
    where = {(row.scenario, row.fault): row for row, _ in plain.rows}
    chance = ("1-par", 4)  # while an invalidation is in progress, a fault's record says when it ends
    cells = [cell for cell in plain.cells if (cell[0][0], where[cell[0]].step) != chance]
    left = dict.fromkeys(column for _, column in cells)
    while left:
        alter = {}
        for place, column in reversed(cells):
            if column in left and place not in alter:
                alter[place] = column
                del left[column]
        found = Seen(NAME, alter).play().report.differences
        lines = {difference.fault.rpartition("line ")[2] for difference in found}
        assert {str(where[place].first_line) for place in alter} <= lines


# --- the machine ---


def machine(vm="sw-protected", **options):
    it = Machine(vm, "npt", "v6_12", **options)
    it.add_slot(1, SLOT, 0x200000, *(["gmem"] if vm == "sw-protected" else []))
    it.host.touch(SLOT >> 12, (SLOT >> 12) + 0x200)
    return it


def test_a_fault_that_stops_everywhere_is_the_fault_that_does_not():
    plain, stopped = machine(), machine()
    event = plain.exit_for("w", SLOT)
    fault, seen = stopped.start(event), []
    while fault.taken is None:
        seen.append(fault.at)
        fault.go_on((*PLACES, "done")[PLACES.index(fault.at) + 1])
    assert seen == list(PLACES)
    assert (fault.taken, fault.at) == (plain.take(event), "done")
    assert stopped.entries == plain.entries


def test_two_faults_cross_step_by_step():
    """Neither is nested in the other: both look the page up, then both install it."""
    it = machine()
    event = it.exit_for("r", SLOT)
    first, second = it.start(event, cpu=0), it.start(event, cpu=1)
    for place in PLACES[1:]:
        assert first.go_on(place) is second.go_on(place) is None
    assert first.go_on().handled.ret == FIXED
    assert it.entry(SLOT >> 12)[0] & 2  # the page may be written to
    assert second.go_on().handled.ret == FIXED  # for the entry is built anew, without the dirty bit
    assert not it.take(event).handler.decided  # a write by the CPU, which nobody sees, makes it dirty again


def test_user_space_is_told_the_old_answer_between_the_two_look_ups():
    it = machine()
    held = it.start(it.exit_for("r", SLOT), to="kvm_mem_is_private")
    assert it.set_attributes(SLOT, 0x1000, True) == 0
    taken = held.go_on()
    assert (taken.ret, taken.exit) == (-14, MemoryFault(39, SLOT, 0x1000, 0))  # not 8, "private"
    assert it.access("r", SLOT).faults[0].handled.fault.is_private


def test_after_the_second_look_up_the_fault_is_taken_again():
    it = machine()
    held = it.start(it.exit_for("r", SLOT), to="is_page_fault_stale")
    it.set_attributes(SLOT, 0x1000, True)
    assert held.go_on().handled.ret == RETRY
    access = it.access("r", SLOT)
    assert [fault.handled.ret for fault in access.faults] == [FIXED]
    assert access.exit == Exit("done")


def test_an_attribute_that_does_not_change_takes_nothing_away():
    it = machine()
    held = it.start(it.exit_for("r", SLOT), to="is_page_fault_stale")
    it.set_attributes(SLOT, 0x1000, False)
    assert held.go_on().handled.ret == FIXED


@pytest.mark.parametrize(
    ("place", "ret", "seq"),
    [("kvm_mmu_page_fault", FIXED, 1), ("fast_page_fault", FIXED, 1), ("kvm_faultin_pfn", FIXED, 1),
     ("kvm_mem_is_private", RETRY, 0), ("__kvm_faultin_pfn", RETRY, 0), ("is_page_fault_stale", RETRY, 0)],
)  # fmt: skip
def test_the_count_is_noted_once_and_compared_later(place, ret, seq):
    """Whatever is taken away after kvm_faultin_pfn() has begun makes the fault retry, be it another page."""
    it = machine("default")
    held = it.start(it.exit_for("w", SLOT), to=place)
    it.run(f"zap {SLOT + 0x8000:#x} 0x1000")
    taken = held.go_on()
    assert (taken.handled.ret, taken.handler.finished.found.mmu_seq) == (ret, seq)


def test_while_an_invalidation_is_in_progress_each_fault_on_its_pages_is_taken_again():
    it = machine("default")
    it.invalidations.mmu_invalidate_begin()
    it.invalidations.mmu_invalidate_range_add(SLOT >> 12, (SLOT >> 12) + 1)
    event = it.exit_for("w", SLOT)
    assert [it.take(event).handled.ret for _ in range(3)] == [RETRY] * 3
    assert it.take(it.exit_for("w", SLOT + 0x1000)).handled.ret == FIXED
    it.invalidations.mmu_invalidate_end()
    assert it.take(event).handled.ret == FIXED


def test_emulated_memory_cannot_be_taken_away():
    """Without a slot there is nothing to take: the fault goes on whatever ends meanwhile."""
    it = machine("default")
    held = it.start(it.exit_for("r", MMIO), to="is_page_fault_stale")
    it.run(f"zap {SLOT:#x} 0x1000")
    assert held.go_on().handled.ret == EMULATE


def test_an_mmio_page_is_kept_by_the_vcpu_that_met_it():
    it = machine("default")
    it.take(it.exit_for("r", MMIO))
    assert it.caches[0].gfn == MMIO >> 12
    second = it.start(it.exit_for("r", MMIO), cpu=1).go_on()
    assert second.outcome.mmio.checked  # vCPU 1 has nothing in its cache: the entry is looked at
    assert it.caches[1].gfn == MMIO >> 12


def test_another_vcpu_may_mend_the_entry_first():
    """Dirty logging took the right to write; both vCPUs come to fast_page_fault()."""
    it = Machine("default", "npt", "v6_12")
    it.add_slot(3, SLOT, 0x20000, "touch", "log")
    it.access("w", SLOT)
    it.run("cleardirty 3")
    event = it.exit_for("w", SLOT)
    held = it.start(event, to="fast_page_fault")
    assert it.start(event, cpu=1).go_on().handler.fast == FIXED
    assert held.go_on().handler.fast == SPURIOUS


def test_a_mapping_that_another_vcpu_changes_first_is_taken_again():
    it = machine("default")
    held = it.start(it.exit_for("w", SLOT), to="kvm_tdp_mmu_map")
    held.lose()
    assert held.go_on().handled.ret == RETRY


@pytest.mark.parametrize("place", ["", "kvm_mmu_do_page_fault", "tdp", "Done"])
def test_a_place_that_is_none_is_refused(place):
    it = machine()
    with pytest.raises(InputError, match="cannot be held at"):
        it.start(it.exit_for("r", SLOT), to=place)


@pytest.mark.parametrize(
    "op",
    ["par", "par r 0x40000000", "par r 0x40000000 | fly 0x40000000", "par r | r", "par r 0x40000000 | zap",
     "par q 0x40000000 | r 0x40000000", "sh dly 9 0 3000 1", "sh dly 3"],
)  # fmt: skip
def test_an_operation_that_lacks_a_word_is_refused(op):
    with pytest.raises(InputError):
        machine().run(op)
