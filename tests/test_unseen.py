# SPDX-License-Identifier: GPL-2.0-only
"""What a recording does not show is found: each code that was changed on purpose, once the traces of it are hidden."""

import gzip
import re
import shutil
from pathlib import Path

import pytest

from kvm_pf.conformance.join import walk
from kvm_pf.conformance.placement import revision_for
from kvm_pf.conformance.recordings import read_recording
from kvm_pf.conformance.replay import replay
from kvm_pf.conformance.unseen import MOST_FAULTS, causes

DATA = Path(__file__).parents[1] / "data" / "recordings"


def change(path, edit):
    path.write_bytes(gzip.compress(edit(gzip.decompress(path.read_bytes()).decode()).encode(), mtime=0))


def hidden(name, folder):
    """A copy of a recording in which nothing says that codes were changed, and what had been armed by step."""
    copy = folder / name
    shutil.copytree(DATA / name, copy)
    armed = {}
    for path in copy.glob("*.trace.gz"):
        text = gzip.decompress(path.read_bytes()).decode()
        for step, at, bits, clear in re.findall(r"step (\d+): sh inj (\w+) (\w+) (\w+) ", text):
            armed[path.name.partition(".")[0], int(step)] = (at, int(bits, 0), int(clear, 0))
        change(path, lambda t: re.sub(r"sh inj .*", "sh true", re.sub(r".*pfinject:.*\n", "", t)))
    for path in copy.glob("*.json.gz"):
        change(path, lambda t: re.sub(r'"op": "sh inj [^"]*"', '"op": "sh true"', t))
    return copy, armed


@pytest.mark.parametrize("name", ["posted-on-6.12", "7.3-intel"])
def test_codes_that_were_changed_are_told_as_they_were_changed(name, tmp_path):
    copy, armed = hidden(name, tmp_path)
    recording = read_recording(copy)
    found = causes(recording, revision_for(recording.kernel)[0], list(walk(recording)))
    assert len(found) > MOST_FAULTS
    for cause in found:
        scenario, step = re.match(r"(.+), step (\d+) ", cause.where).groups()
        before = max(n for of, n in armed if of == scenario and n < int(step))
        _, bits, clear = armed[scenario, before]
        told = [int(code, 16) for code in re.findall(r"0x[0-9a-f]+", cause.unseen.text)]
        assert told[0] == (told[1] | bits) & ~clear


def test_a_single_changed_code_explains_all_of_its_fault(tmp_path):
    copy = tmp_path / "6.12"
    shutil.copytree(DATA / "6.12", copy)
    step = "step 4: sh inj pf 0x2000000000000 0 0x40000000 1"
    trace = copy / "4-inject-swprot.trace.gz"
    assert step in gzip.decompress(trace.read_bytes()).decode()
    change(trace, lambda t: t.replace(step, "step 4: sh true", 1).replace(_first_injection(t), "", 1))
    change(copy / "4-inject-swprot.json.gz", lambda t: t.replace(step[8:], "sh true", 1))
    report = replay(copy)
    assert report.differing > 0
    (told,) = report.causes
    assert told.startswith("4-inject-swprot, step 5 ")
    assert "kvm_mmu_page_fault() was entered with code 0x2000100000004, not 0x100000004" in told
    assert told in str(report)
    assert report.differences == [
        d for d in report.differences if d.fault.startswith("4-inject-swprot, step 5 ")
    ]


def _first_injection(text):
    return next(line for line in text.splitlines(keepends=True) if "pfinject:" in line)


def test_a_page_declared_behind_the_recordings_back_is_told(tmp_path):
    copy = tmp_path / "6.12"
    shutil.copytree(DATA / "6.12", copy)
    for path in copy.glob("2-swprot.*.gz"):
        change(path, lambda t: t.replace("attr 0x40000000 0x200000 shared", "sh true", 1))
    told = replay(copy).causes
    assert any("declared the other way" in cause for cause in told)


def test_nothing_is_explained_where_nothing_differs_or_another_revision_was_asked_for():
    assert replay(DATA / "6.12").causes == []
    assert replay(DATA / "6.12", "before").causes == []


@pytest.mark.parametrize(
    ("hide", "told"),
    [
        ("attr 0x48010000 0x1000 private", "step 16 (l2r 0x48010ff8)"),
        ("attr 0x4e000000 0x1000 private", "step 8 (l2w 0x4e000ff8 0)"),
    ],
)
def test_of_a_nested_guest_it_is_told_whose_page_was_declared(tmp_path, hide, told):
    copy = tmp_path / "6.12-nested-emulated"
    shutil.copytree(DATA / "6.12-nested-emulated", copy)
    for path in copy.glob("12-nested-emulated.*.gz"):
        change(path, lambda t: t.replace(hide, "sh true", 1))
    causes_ = replay(copy).causes
    assert len(causes_) == 1
    assert told in causes_[0]
    assert "L2's address was declared the other way" in causes_[0]
