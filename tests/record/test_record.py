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
    assert [name for name in names if (recorded / name).read_bytes() != (again / name).read_bytes()] == []


@pytest.mark.parametrize(
    ("option", "mode"), [("kvm_amd.npt=0", "shadow"), ("kvm.nx_huge_pages=force", "npt")]
)
def test_kvm_set_up_otherwise_agrees_too(option, mode, tmp_path):
    out = record(tmp_path / "otherwise", "--boot-args", option)
    assert read_recording(out).mode == mode
    assert replay(out).differences == []


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
