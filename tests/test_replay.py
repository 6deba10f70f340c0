# SPDX-License-Identifier: GPL-2.0-only
"""Replay: recordings agree with their kernel's revision, with no other, and every compared value can fail."""

import functools
import gzip
import json
import re
import shutil
import sys
from collections import Counter
from pathlib import Path

import pytest

from kvm_pf.cli import main
from kvm_pf.common.errors import InputError
from kvm_pf.conformance.expect import COMPARED, INPUTS, NOT_COMPARED, RUN_FIELDS
from kvm_pf.conformance.fault_rows import columns
from kvm_pf.conformance.follow import follow
from kvm_pf.conformance.join import faults, walk
from kvm_pf.conformance.placement import PLACEMENTS, kernel_of, revision_for
from kvm_pf.conformance.recordings import read_recording
from kvm_pf.conformance.replay import Replay, ReplayDifference, ReplayReport, replay

DATA = Path(__file__).parents[1] / "data" / "recordings"
REVISION = {
    "6.1-debian": "v6_1", "6.12": "v6_12", "6.12-intel": "v6_12", "6.12-shadow-paging": "v6_12",
    "6.12-trace-cmd": "v6_12", "7.3-intel": "v7_3", "posted-on-6.12": "posted_on_6_12",
    "6.12-debian": "v6_12", "6.12-debian-shadow": "v6_12", "6.12-debian-intel": "v6_12",
    "6.12-debian-intel-shadow": "v6_12", "6.12-nested": "v6_12", "6.12-nested-emulated": "v6_12",
    "posted-on-6.12-nested": "v6_12+posted", "6.12-two-vcpus": "v6_12",
    "6.12-selftests": "v6_12", "6.12-nested-dirty": "v6_12", "6.12-nested-intel": "v6_12",
}  # fmt: skip
RAW = [name for name in REVISION if not re.match("6.12-debian|.*nested|.*-two-|.*-selftests", name)]
"""Recordings of one vCPU that were made elsewhere; the others come from tools/recorder."""
SMALL = "6.12-shadow-paging"


def test_there_is_a_test_for_every_recording():
    assert {path.name for path in DATA.iterdir() if path.is_dir()} == set(REVISION)


replayed = functools.cache(lambda name: replay(DATA / name))


@functools.cache
def read_once(name):
    recording = read_recording(DATA / name)
    return recording, list(walk(recording))


@pytest.fixture(autouse=True)
def carried_recordings_are_read_once(monkeypatch):
    """What a replay does to one that is carried begins where reading it ends; one that a test altered is read."""
    taken = []

    def recording_of(folder, limit):
        if folder.parent != DATA:
            return read_recording(folder, limit)
        taken.append(read_once(folder.name))
        return taken[-1][0]

    def rows_of(recording):
        return next((rows for each, rows in taken if each is recording), None) or walk(recording)

    monkeypatch.setattr(sys.modules[replay.__module__], "read_recording", recording_of)
    monkeypatch.setattr(sys.modules[replay.__module__], "walk", rows_of)


@pytest.mark.parametrize("name", REVISION)
def test_the_kernel_and_its_revision_agree_on_every_value(name):
    report = replayed(name)
    assert report.differences == []
    assert report.revision == REVISION[name]
    assert (
        report.remark == PLACEMENTS[report.revision.partition("+")[2]]
        if "+" in report.revision
        else not report.remark
    )
    assert report.faults == len(faults(read_once(name)[0]))
    assert report.compared.total() > 30 * report.faults
    assert {"trace_error_code", "pf_err", "in_error_code", "handler_ret", "pf_ret"} <= set(report.compared)


@pytest.mark.shared
@pytest.mark.parametrize("name", RAW)
def test_raw_recordings_say_the_same_as_carried_ones(name, shared):
    raw, carried = replay(shared / "recordings" / name), replayed(name)
    assert (raw.compared, raw.not_compared, raw.given) == (
        carried.compared,
        carried.not_compared,
        carried.given,
    )
    assert raw.differences == []


@pytest.mark.parametrize(
    ("name", "revision"),
    [
        ("6.12", "before"), ("6.12", "posted"), ("6.12", "v6_10"), ("6.12", "v7_3"), ("6.12", "posted_on_6_12"),
        ("posted-on-6.12", "v6_12"), ("7.3-intel", "v6_12"), ("6.12-intel", "v7_3"), ("6.1-debian", "before"),
        ("6.1-debian", "v6_12"), ("6.12-shadow-paging", "before"), ("6.12-shadow-paging", "v7_3"),
    ],
)  # fmt: skip
def test_another_revision_differs(name, revision):
    report = replay(DATA / name, revision)
    assert report.differing > 0
    assert report.remark == "by request"


def test_only_the_placement_of_the_check_parts_the_patched_kernel_from_6_12():
    report = replay(DATA / "posted-on-6.12", "v6_12")
    assert {difference.fault.split(",")[0] for difference in report.differences} == {
        "3-inject",
        "4-inject-swprot",
    }


# --- it can fail ---


class Seen(Replay):
    """A replay that notes which cells it compared, and may find recorded values altered."""

    def __init__(self, name, alter=()):
        recording, rows = read_once(name)
        super().__init__(recording, kernel_of(recording)[0], ReplayReport(name, None, ""), rows)
        self.cells = []
        self.rows = [
            (_altered(row, dict(alter).get((row.scenario, row.fault))), state) for row, state in self.rows
        ]

    def cell(self, row, name, want, where):
        before = self.report.compared.total()
        super().cell(row, name, want, where)
        if self.report.compared.total() > before and getattr(row, name) is not None:
            self.cells.append(((row.scenario, row.fault), name))

    def play(self):
        for scenario in self.recording.scenarios:
            self.scenario(scenario)
        return self


DEPENDENT = {"emul_in_pf": ("emul_in_pf", "emul_gpa", "emul_type")}
"""What hangs on a column: arguments of a call that was not made."""


def _altered(row, name):
    if name is None:
        return row
    value = getattr(row, name)
    other = (
        (not value) if isinstance(value, bool) else value + 1 if isinstance(value, int) else f"not {value}"
    )
    return row._replace(**{name: 0 if name == "in_slot" and value else other})


# Under shadow paging entries are told by earlier events: a mark of MMIO that is altered alters what is found later.
# Where two vCPUs are at work, one's answer may be the other's input: see test_two_vcpus.
@pytest.mark.parametrize(
    "name", [name for name in REVISION if not re.match("6.12-debian.*-shadow|.*-two-", name)]
)
def test_an_altered_value_of_any_compared_column_is_found(name):
    """In each pass every fault has at most one value altered; exactly these are reported."""
    cells = Seen(name).play().cells
    left = dict.fromkeys(column for _, column in cells)
    while left:
        alter = {}
        for place, column in reversed(cells):
            if column in left and place not in alter:
                alter[place] = column
                del left[column]
        found = Seen(name, alter).play()
        where = {(row.scenario, row.fault): row for row, _ in found.rows}
        wanted = Counter(
            (f"{s}, step {where[s, n].step} ({where[s, n].op}), line {where[s, n].first_line}", each)
            for (s, n), column in alter.items()
            for each in DEPENDENT.get(column, (column,))
        )
        assert Counter((d.fault, d.field) for d in found.report.differences) == wanted


def test_all_columns_are_compared_in_some_recording():
    compared = Counter()
    for name in REVISION:
        compared.update(replayed(name).compared)
    # Fast MMIO was recorded on Intel only, where its address is the input.
    # No kernel that looks up again after the walk is carried.
    assert set(COMPARED) | set(RUN_FIELDS) <= {*compared, "fast_mmio_gpa", "walk_look_gfn", "walk_look_word"}


def test_a_column_is_an_input_or_compared_or_has_a_reason():
    groups = [INPUTS, set(COMPARED), set(NOT_COMPARED), set(RUN_FIELDS)]
    assert set().union(*groups) == set(columns())
    assert sum(map(len, groups)) == len(columns())


def _copy(name, to):
    """Copy a recording, its files unzipped."""
    for path in (DATA / name).iterdir():
        if path.suffix == ".gz":
            (to / path.name.removesuffix(".gz")).write_bytes(gzip.decompress(path.read_bytes()))
        else:
            shutil.copy(path, to)
    return to


def _one(scenario, to):
    """Copy one scenario of 6.12, without the logs: the revision must be named."""
    for path in (DATA / "6.12").glob(f"{scenario}.*.gz"):
        (to / path.name.removesuffix(".gz")).write_bytes(gzip.decompress(path.read_bytes()))
    return to


def _edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(
    ("file", "old", "new", "field", "recorded", "model"),
    [
        ("2-swprot.trace", "is_private=1", "is_private=0", "in_is_private", False, True),
        ("2-swprot.trace", "err=0x2000100000004", "err=0x100000004", "in_error_code", 0x100000004, 0x2000100000004),
        ("2-swprot.trace", "kvm_mmu_page_fault) ret=-14", "kvm_mmu_page_fault) ret=1", "pf_ret", 1, -14),
        ("2-swprot.trace", "npf_interception) ret=-14", "npf_interception) ret=1", "entry_ret", 1, -14),
        ("2-swprot.trace", "kvm_faultin_pfn) ret=-14", "kvm_faultin_pfn) ret=0", "faultin_ret", 0, -14),
        ("2-swprot.trace", "kvm_gen 5 spte-gen 4", "kvm_gen 4 spte-gen 4", "check_kvm_gen", 4, 5),
        ("2-swprot.json", '"flags": "0x8"', '"flags": "0x0"', "memory_fault_flags", 0, 8),
        ("2-swprot.json", '"gpa": "0x60001000"', '"gpa": "0x0"', "memory_fault_gpa", 0, 0x60001000),
        ("2-swprot.json", '"size": "0x1000"', '"size": "0x2000"', "memory_fault_size", 0x2000, 0x1000),
        ("2-swprot.json", '"rc": -1, "errno": 14, "exit": 39', '"rc": -1, "errno": 5, "exit": 39', "errno", 5, 14),
        ("2-swprot.json", '"rc": -1, "errno": 14, "exit": 39', '"rc": 0, "errno": 14, "exit": 39', "rc", 0, -1),
        ("2-swprot.json", '"exit": 39', '"exit": 0', "exit", 0, 39),
        ("2-swprot.json", '"pf_taken": 6', '"pf_taken": 7', "stat_pf_taken", 7, 6),
        ("2-swprot.json", '"pf_fixed": 6', '"pf_fixed": 5', "stat_pf_fixed", 5, 6),
        ("2-swprot.json", '"pf_emulate": 1', '"pf_emulate": 0', "stat_pf_emulate", 0, 1),
        ("2-swprot.json", '"pf_fixed": 6', '"pf_fixed": 6, "pf_spurious": 1', "stat_pf_spurious", 1, 0),
        ("2-swprot.json", '"pf_fixed": 6', '"pf_fixed": 6, "pf_guest": 1', "stat_pf_guest", 1, 0),
        ("2-swprot.json", '"pf_mmio_spte_created": 1', '"pf_mmio_spte_created": 2', "stat_pf_mmio_spte_created", 2, 1),
        ("1-default.json", '"pf_fast": 1', '"pf_fast": 0', "stat_pf_fast", 0, 1),
        ("2-swprot.json", '"rc": -1, "errno": 2', '"rc": -1, "errno": 5', "prefault_errno", 5, 2),
        ("2-swprot.json", '"left": "0x1000"', '"left": "0x0"', "prefault_left", 0, 0x1000),
        ("2-swprot.json", 'private", "rc": 0, "errno": 0', 'private", "rc": 0, "errno": 1', "attr_errno", 1, 0),
    ],
)  # fmt: skip
def test_an_altered_file_is_found(tmp_path, file, old, new, field, recorded, model):
    directory = _one(file.partition(".")[0], tmp_path)
    _edit(directory / file, old, new)
    (difference,) = replay(directory, "v6_12").differences
    assert (difference.field, difference.recorded, difference.model) == (field, recorded, model)


def test_a_changed_file_is_followed_anew(tmp_path):
    directory = _one("2-swprot", tmp_path)
    before = follow(directory, "2-swprot", revision="v6_12")
    assert follow(directory, "2-swprot", revision="v6_12") == before
    _edit(directory / "2-swprot.trace", "is_private=1", "is_private=0")
    after = follow(directory, "2-swprot", revision="v6_12")
    assert [one.row.in_is_private for one in after] != [one.row.in_is_private for one in before]


def test_a_warning_too_few_is_found(tmp_path):
    directory = _copy("6.12", tmp_path)
    _edit(directory / "dmesg.txt", "WARNING: CPU: 0 PID: 56 at arch/x86/kvm/svm/svm.c", "nothing")
    fields = {difference.field for difference in replay(directory).differences}
    assert fields == {"warning"}


def test_a_warning_too_many_is_found(tmp_path):
    directory = _copy("6.12", tmp_path)
    line = "WARNING: CPU: 0 PID: 9 at arch/x86/kvm/mmu/mmu.c:1 kvm_mmu_page_fault+0x1/0x2\n"
    (directory / "dmesg.txt").write_text((directory / "dmesg.txt").read_text() + line)
    assert replay(directory).differences == [
        ReplayDifference("kernel log, WARN 2", "warning", "kvm_mmu_page_fault, task 9", None)
    ]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("PID: 56 at arch/x86/kvm/svm", "PID: 57 at arch/x86/kvm/svm"),
        ("npf_interception+", "kvm_handle_page_fault+"),
    ],
)
def test_a_warning_of_another_task_or_function_is_found(tmp_path, old, new):
    _edit(_copy("6.12", tmp_path) / "dmesg.txt", old, new)
    assert [difference.field for difference in replay(tmp_path).differences] == ["warning"]


def test_without_a_kernel_log_warnings_are_counted_and_not_compared(tmp_path):
    report = replay(_one("3-inject", tmp_path), "v6_12")
    assert report.differences == []
    assert report.not_compared["warning"] == {"there is no kernel log": 2}


def test_a_warning_elsewhere_in_the_kernel_is_named_and_not_compared(tmp_path):
    directory = _copy("6.12", tmp_path)
    line = "WARNING: CPU: 0 PID: 9 at kernel/sched/core.c:1 schedule+0x1/0x2\n"
    (directory / "dmesg.txt").write_text((directory / "dmesg.txt").read_text() + line)
    report = replay(directory)
    assert report.differences == []
    assert report.not_compared["warning"] == {"outside the path": 1}


# --- inputs are inputs ---


def test_the_armed_change_is_what_the_exit_handler_gets(tmp_path):
    """The operation is an input: altered, the model follows it, and what KVM then did differs."""
    directory = _one("3-inject", tmp_path)
    for file in ("3-inject.trace", "3-inject.json"):
        _edit(directory / file, "sh inj npf 0x400000000 0 0x40004000", "sh inj npf 0x800000000 0 0x40004000")
    fields = {difference.field for difference in replay(directory, "v6_12").differences}
    assert fields == {"inject_cpu_to", "trace_error_code", "pf_err", "in_error_code", "out_error_code"}


def test_what_user_space_declared_decides(tmp_path):
    directory = _one("2-swprot", tmp_path)
    for file in ("2-swprot.trace", "2-swprot.json"):
        _edit(directory / file, "attr 0x40000000 0x200000 private", "attr 0x50000000 0x200000 private")
    fields = {difference.field for difference in replay(directory, "v6_12").differences}
    assert {"in_is_private", "in_error_code", "gmem_gfn"} <= fields


def test_what_was_lost_is_not_held_against_the_kernel(tmp_path):
    directory = _copy(SMALL, tmp_path)
    trace = directory / "1-default.trace"
    lines = trace.read_text().splitlines(keepends=True)
    for cut in range(40, len(lines), 97):
        trace.write_text("".join(lines[:cut]))
        report = replay(directory)
        assert report.differences == []
        assert any("events were lost" in reasons for reasons in report.not_compared.values())


@pytest.mark.parametrize(
    ("name", "column"),
    [("6.12-trace-cmd", "trace_error_code"), ("6.12-intel", "trace_error_code"), (SMALL, "khpf_err")],
)
def test_without_exits_what_the_handler_was_given_is_the_input(tmp_path, name, column):
    directory = _copy(name, tmp_path)
    for path in directory.glob("*.trace"):
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(x for x in lines if "kvm_exit:" not in x and "entries-in-buffer" not in x))
    (directory / "console.log").write_text("LAB boot 1 6.12.95\n" + (directory / "console.log").read_text())
    report = replay(directory)
    assert report.differences == []
    assert not report.compared[column]
    assert report.compared["pf_ret"] > 40


def test_without_marks_nothing_is_known_of_the_guest(tmp_path):
    directory = _one("2-swprot", tmp_path)
    path = directory / "2-swprot.trace"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if "tracing_mark_write" not in line))
    report = replay(directory, "v6_12")
    assert report.compared.total() == 0
    assert sum(n for reasons in report.not_compared.values() for n in reasons.values()) == report.faults


# --- which revision ---


@pytest.mark.parametrize(
    ("kernel", "revision", "remark"),
    [
        ("6.1.0-50-amd64", "v6_1", ""),
        ("6.5.0", "v6_1", "the nearest older than 6.5"),
        ("6.8.0-31-generic", "v6_8", ""),
        ("6.10.3", "v6_10", ""),
        ("6.11.11", "v6_10", "the nearest older than 6.11"),
        ("6.12.95-kvmlab", "v6_12", ""),
        ("6.12.95-kvmlab-seedv1", "posted_on_6_12", ""),
        ("6.12.117-recorder-posted", "posted_on_6_12", ""),
        ("6.12.117-recorder-self", "v6_12", ""),
        ("6.18.2", "v6_12", "the nearest older than 6.18"),
        ("7.3.4-kvmlab", "v7_3", ""),
        ("8.0.1", "v7_3", "the nearest older than 8.0"),
    ],
)
def test_the_release_names_the_revision(kernel, revision, remark):
    found, said = revision_for(kernel)
    assert (found.name, said) == (revision, remark)


@pytest.mark.parametrize("kernel", [None, "", "unknown", "5.10.0-30-amd64"])
def test_a_release_without_a_revision_is_refused(kernel):
    with pytest.raises(InputError, match=re.escape(f"kernel {kernel!r}")):
        revision_for(kernel)


def test_a_recording_that_does_not_name_its_kernel_says_what_it_does_show(tmp_path):
    directory = _one("2-swprot", tmp_path)
    for path in [*directory.glob("dmesg.txt*"), *directory.glob("console.log*")]:
        path.unlink()
    with pytest.raises(InputError, match=r"names its kernel \(traces: 1, amd, npt\);.*--revision.* v6_12"):
        replay(directory)
    assert " a kernel that nothing names as v6_12 (by request): " in str(replay(directory, "v6_12"))


# --- what it says ---


def test_the_report_counts_names_and_gives_reasons():
    first, *rest = str(replayed(SMALL)).splitlines()
    counts = r"48 faults, \d+ fields, \d+ values compared, 0 differences in 0 places"
    assert re.fullmatch(rf"6\.12-shadow-paging: 6\.12\.95-kvmlab as v6_12: {counts}", first)
    assert any("given: " in line and "emulator's answer" in line for line in rest)
    assert any("not compared, a kernel address: " in line and "mark_sptep" in line for line in rest)


def test_the_report_shows_ten_differences_and_counts_the_others_by_column():
    report = replay(DATA / SMALL, "before")
    lines = str(report).splitlines()
    assert sum(": kernel " in line for line in lines) == 10
    assert any(line.startswith("  by field: ") for line in lines)


def test_the_command_line_says_whether_they_agree(capsys, tmp_path):
    assert main(["replay", str(DATA / SMALL)]) == 0
    assert "0 differences" in capsys.readouterr().out
    assert main(["replay", "--revision", "before", str(DATA / SMALL)]) == 1
    assert main(["replay", str(tmp_path)]) == 2
    assert main(["replay", "--revision", "v9", str(DATA / SMALL)]) == 2


@pytest.mark.parametrize(
    ("old", "new"),
    [('"left": "0x1000"', '"left": "much"'), ('"vm_types": "0x3"', '"vm_types": "all"')],
)
def test_a_value_that_is_no_number_is_one_clear_error(tmp_path, old, new):
    directory = _one("2-swprot", tmp_path)
    _edit(directory / "2-swprot.json", old, new)
    with pytest.raises(InputError, match="is no number"):
        replay(directory, "v6_12")


def test_steps_without_a_result_are_replayed(tmp_path):
    directory = _one("2-swprot", tmp_path)
    for path in directory.glob("*.json"):
        caps = path.read_text().splitlines()[0]
        path.write_text(json.dumps(json.loads(caps)) + "\n")
    report = replay(directory, "v6_12")
    assert report.differences == []
    assert not set(report.compared) & set(RUN_FIELDS)
