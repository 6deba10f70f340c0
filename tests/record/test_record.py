# SPDX-License-Identifier: GPL-2.0-only
"""The recorder: a prebuilt kernel recorded anew agrees with the model, and a second time gives the same bytes."""

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from kvm_pf.conformance.join import faults
from kvm_pf.conformance.recordings import read_recording
from kvm_pf.conformance.replay import replay

ROOT = Path(__file__).parents[2]
RECORDER = ROOT / "tools" / "recorder"


def record(out, *words):
    command = [sys.executable, RECORDER / "record.py", "--out", out, *words]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 3:
        pytest.skip(f"packages are missing: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    return record(tmp_path_factory.mktemp("first") / "prebuilt-amd")


def test_the_kernel_and_the_model_agree_on_every_value(recorded):
    report = replay(recorded)
    assert report.differences == []
    assert report.faults > 90
    assert report.compared.total() > 40 * report.faults


def test_all_is_understood_and_nothing_was_lost(recorded):
    assert read_recording(recorded).gaps() == []


def test_every_step_of_every_scenario_was_carried_out(recorded):
    for path in recorded.glob("*.json"):
        if path.name != "provenance.json":
            source = RECORDER / "scenarios" / f"{path.stem.partition('-')[2]}.scn"
            lines = [line.partition("#")[0].strip() for line in source.read_text().splitlines()]
            _, *steps = map(json.loads, path.read_text().splitlines())
            refused = steps[0]["op"] == "vm swprot" and steps[0]["rc"] == -1
            wanted = [line for line in lines if line]
            assert [step["op"] for step in steps] == (wanted[:1] if refused else wanted)


def test_the_faults_are_of_every_kind_that_an_ordinary_vm_has(recorded):
    rows = faults(read_recording(recorded))
    assert {row.source for row in rows} == {"npf", "prefault"}
    assert {row.user_exit for row in rows} >= {"KVM_EXIT_MMIO", "error", None}
    assert {"npf", "pf"} == {row.inject_at for row in rows if row.inject_at}
    assert any(row.out_req_level == 2 and "thp" not in (row.state_slot_flags or "") for row in rows)


def steps(recorded, name):
    (path,) = recorded.glob(f"*-{name}.json")
    return {step["op"]: step for step in map(json.loads, path.read_text().splitlines()) if "op" in step}


def test_a_nested_guest_reads_and_writes_its_hypervisor_s_page(recorded):
    """L2's page 0x48000000 is L1's page 0x40000000, where user space wrote 0x50; 0x78 is HLT."""
    done = steps(recorded, "nested")
    assert done["l2r 0x48000000"]["vmcb12"]["exit_code"] == "0x78"
    assert done["l2w 0x48010000 0x62"]["vmcb12"]["rax"] == "0x62"
    assert done["r 0x40001000"]["run0"]["rax"] == "0x62"
    assert done["l2r 0x48060000"]["run0"]["guest_mode"] == 1  # MMIO: user space is asked while L2 runs


def test_a_fault_that_is_the_hypervisor_s_reaches_it(recorded):
    """A nested page fault (0x400): user and final access, no entry; a write to a page that is there, read-only."""
    done = steps(recorded, "nested")
    seen = [
        [done[op]["vmcb12"][key] for key in ("exit_code", "exit_info_1", "exit_info_2")]
        for op in ("l2r 0x4c000000", "l2w 0x48040000 1")
    ]
    assert seen == [["0x400", "0x100000004", "0x4c000000"], ["0x400", "0x100000007", "0x48040000"]]


def test_a_cpu_is_held_as_often_as_the_scenario_asks(recorded):
    source = (RECORDER / "scenarios" / "par.scn").read_text()
    (trace,) = recorded.glob("*-par.trace")
    assert 0 < source.count("\nsh dly ") == trace.read_text().count("pfdelay: held at")


def test_each_look_up_of_attributes_is_found_in_the_machine_code(recorded):
    """A kernel without software-protected VMs asks in the fault-in and on the fast path only."""
    console = (recorded / "console.log").read_text()
    found = set(re.findall(r"recorder: p:lab/(look_\w+) ", console))
    assert {"look_faultin", "look_faultin_val", "look_fast", "look_fast_val"} <= found
    assert "look_pf" not in found


def test_the_first_of_two_forbidden_bits_is_warned_of(recorded):
    assert [warn.function for warn in read_recording(recorded).warnings] == [
        "npf_interception",
        "kvm_mmu_page_fault",
    ]


def test_what_it_was_made_from_stands_beside_it(recorded):
    made = json.loads((recorded / "provenance.json").read_text())
    kernel = read_recording(recorded).kernel
    assert made["kernel"] == kernel
    assert re.fullmatch(r"[0-9a-f]{64}", made["packages"][f"linux-image-{kernel}"]["sha256"])
    assert made["sha256"]["guest.c"] == hashlib.sha256((RECORDER / "guest.c").read_bytes()).hexdigest()
    assert "tcg,thread=single" in made["command"]
    assert not any("kvm" in word and "kvm." not in word for word in made["command"])


def test_the_same_again_gives_the_same_bytes(recorded, tmp_path):
    again = record(tmp_path / "prebuilt-amd")
    names = sorted(path.name for path in recorded.iterdir())
    assert names == sorted(path.name for path in again.iterdir())
    for name in names:
        assert (recorded / name).read_text().splitlines() == (again / name).read_text().splitlines(), name


@pytest.mark.parametrize(
    ("option", "mode"), [("kvm_amd.npt=0", "shadow"), ("kvm.nx_huge_pages=force", "npt")]
)
def test_kvm_set_up_otherwise_agrees_too(option, mode, tmp_path):
    out = record(tmp_path / "otherwise", "--boot-args", option)
    assert read_recording(out).mode == mode
    # Under shadow paging a fault is tried anew if the other vCPU changed the guest's entry meanwhile (its dirty bit);
    # the machine does not follow that: Linux arch/x86/kvm/mmu/paging_tmpl.h, FNAME(gpte_changed) (v6.12).
    known = "(par r 0x80000000 | w 0x80100000)" if mode == "shadow" else "none"
    assert [each for each in replay(out).differences if known not in each.fault] == []


def test_a_scenario_of_one_s_own_is_recorded(tmp_path):
    mine = tmp_path / "mine.scn"
    mine.write_text("vm default\nslot 1 0x40000000 0x1000 -\nw 0x40000000 5  # a comment\nfly 0x40000000\n")
    out = record(tmp_path / "mine", "--scenario", mine)
    _, *steps = map(json.loads, (out / "1-mine.json").read_text().splitlines())
    assert [step["op"] for step in steps] == [
        "vm default",
        "slot 1 0x40000000 0x1000 -",
        "w 0x40000000 5",
        "fly 0x40000000",
    ]
    assert steps[2]["run0"]["name"] == "HLT"
    assert "no such operation" in steps[3]["error"]


def test_a_kernel_that_is_not_there_is_named(tmp_path):
    command = [sys.executable, RECORDER / "record.py", "--kernel", "9.9.9-amd64", "--out", tmp_path / "none"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 3
    assert "Traceback" not in done.stderr
