# SPDX-License-Identifier: GPL-2.0-only
"""Kernels that were built for an experiment: their traces say where a private fault is told from a shared one."""

import gzip
import re
from pathlib import Path

import pytest

from kvm_pf.common.errors import InputError
from kvm_pf.conformance.placement import kernel_of, look_again
from kvm_pf.conformance.recordings import read_recording
from kvm_pf.conformance.replay import replay
from kvm_pf.fault import NO_FAULT
from kvm_pf.revisions import get
from kvm_pf.state import Vm

DATA = Path(__file__).parents[1] / "data" / "recordings"


def altered(name, scenario, to, trace=lambda text: text, told=lambda text: text):
    """Copy one scenario of a recording, its trace and user space's side changed."""
    to.mkdir()
    for end, change in (("trace", trace), ("json", told)):
        text = gzip.decompress((DATA / name / f"{scenario}.{end}.gz").read_bytes()).decode()
        (to / f"{scenario}.{end}").write_text(change(text))
    (to / "console.log").write_bytes((DATA / name / "console.log").read_bytes())
    return to


def as_before(text):
    """A trace as the kernel before the patch writes it: no look-up before the struct is filled, no bit 49."""
    lines = [line for line in text.splitlines(keepends=True) if not re.search(r" look_pf(_val)?: ", line)]
    text = "".join(line for line in lines if not line.startswith("# entries-in-buffer"))
    text = re.sub(r"( (?:p64|tdp|p64_ret|tdp_ret|noslot): .* err=0x)2000([1-9])", r"\1\2", text)
    return re.sub(r"(fast_page_fault: .*\|0x)2000([1-9])", r"\1\2", text)


def test_a_private_fault_without_its_bit_is_of_a_kernel_from_before_the_patch(tmp_path):
    made = altered("6.12-nested", "4-nested-prefetch", tmp_path / "made", as_before)
    report = replay(made)
    assert (report.revision, report.differences) == ("v6_12+before", [])
    assert "as before the patch" in report.remark
    assert report.compared["in_is_private"] > 30


def test_a_look_up_after_the_walk_is_of_a_kernel_that_asks_again(tmp_path):
    def again(text):
        made, walked = [], False
        for line in text.splitlines(keepends=True):
            walked = " p64: " in line or (walked and " tdp: " not in line)
            found = re.match(r"(.*: )look_faultin: .* gfn=(\w+)\n", line)
            if found and walked:
                made.append(f"{found[1]}look_p64: (paging64_page_fault+0x22a/0x920) gfn={found[2]}\n")
            made += [] if line.startswith("# entries-in-buffer") else [line]
        return "".join(made)

    made = altered("6.12-nested", "2-nested-default", tmp_path / "made", again)
    report = replay(made)
    assert (report.revision, report.differences) == ("v6_12+again", [])


def test_asking_again_is_about_the_page_that_was_found():
    vm = Vm(True, True, 1, 8, False, False, 0, 0)
    revision = get("v6_12").derive("again", walked_is_private=look_again)
    asked = revision.link("walked_is_private")
    assert asked(vm, NO_FAULT.fault._replace(gfn=0x40)) == (True, (1, 0x40))
    assert asked(vm._replace(attrs=0), NO_FAULT.fault._replace(gfn=0x40, is_private=True)) == (
        False,
        (1, 0x40),
    )


@pytest.mark.parametrize(
    ("name", "revision"),
    [("6.12-nested", "v6_12"), ("posted-on-6.12-nested", "v6_12+posted"), ("posted-on-6.12", "posted_on_6_12"),
     ("6.12-intel", "v6_12"), ("6.1-debian", "v6_1")],
)  # fmt: skip
def test_the_carried_kernels(name, revision):
    assert kernel_of(read_recording(DATA / name))[0].name == revision


def test_a_control_block_that_lacks_a_field_is_refused_with_its_place(tmp_path):
    def cut(text):
        return text.replace('"exit_code": "0x78", ', "", 1)

    made = altered("6.12-nested", "4-nested-prefetch", tmp_path / "made", told=cut)
    with pytest.raises(InputError, match=r"4-nested-prefetch, step 15 \(l2r 0x4a000000\), vmcb12: exit_code"):
        replay(made)


def test_l2_without_a_hypervisor_is_refused_with_its_place(tmp_path):
    def without(text):
        return text.replace("step 3: nest\n", "step 3: sh true\n")

    def told(text):
        return text.replace('"op": "nest"', '"op": "sh true"')

    made = altered("6.12-nested", "4-nested-prefetch", tmp_path / "made", without, told)
    with pytest.raises(InputError, match="nest comes first"):
        replay(made)
