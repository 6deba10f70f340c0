# SPDX-License-Identifier: GPL-2.0-only
"""The trace reader, through its controls: lines and files in, sentences and pictures out, complaints in one line."""

import re
from base64 import b64decode
from datetime import UTC, datetime

import pytest

from kvm_pf.common.errors import InputError
from kvm_pf.common.paths import data_dir
from kvm_pf.show.widgets import trace
from kvm_pf.show.widgets.trace import PICTURES, trace_reader

ONE = "kvm_page_fault: address febd0000 error_code 181"
SPIN = "".join(
    f" CPU 0/KVM-4145 [002] ..... 86.58{n:04d}: kvm_page_fault: vcpu 0 rip 0x1000 address 0x5000 error_code 0x683\n"
    for n in range(0, 60, 10)
)
RECORDED = data_dir() / "recordings" / "6.12" / "2-swprot.trace.gz"


def text(html):
    html = re.sub(r"<style>.*?</style>", "", str(html), flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", html)).replace("&#x27;", "'")


def said(widget):
    return text(widget.output.value)


def upload(widget, name, content):
    widget.controls["file"].value = (
        {
            "name": name,
            "type": "",
            "size": len(content),
            "content": memoryview(content),
            "last_modified": datetime(2024, 2, 28, tzinfo=UTC),
        },
    )


def test_a_pasted_line_becomes_a_sentence():
    widget = trace_reader()
    assert "Paste lines" in said(widget)
    widget.controls["lines"].value = ONE
    assert "1 fault in the box, of an Intel CPU" in said(widget)
    assert "a read, on a page that is not mapped" in said(widget)
    assert "0xfebd0000" in said(widget)


def test_quoted_and_wrapped_lines_of_a_mail_are_read():
    widget = trace_reader(
        "> > kvm_page_fault: vcpu 3 rip 0xffffffff81511f37\n> > address 0x0000000113674000 error_code 0x182\n"
    )
    assert "a write, on a page that is not mapped" in said(widget)


def test_faults_that_are_alike_are_one_row_and_told_with_their_rate():
    widget = trace_reader(SPIN)
    assert "6 faults in the box" in said(widget)
    assert re.search(r"Again and again: 6 times, [\d,]+ a second, vCPU 0, rip 0x1000: a walk", said(widget))
    assert "not shown 0x683 0x5000 0x1000 0" in said(widget)


SPTES = """\
[   22.859768] get_mmio_spte: reserved bits set on MMU-present spte, addr 0xfffff000, hierarchy:
[   22.860631] ------ spte = 0x8913827 level = 2, rsvd bits = 0xffff000000000000
[   22.860633] ------ spte = 0xfffffc4465825 level = 1, rsvd bits = 0xffff000000000000
"""
MAPS = "@pf[CPU 0/KVM]: 52\n@pf[CPU 1/KVM]: 262\n"
CONVERSION = "kvm_convert_memory start 0x4000000 size 0x1000 shared_to_private\n"


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (SPTES, "level 1: SPTE 0xfffffc4465825, reserved bits that are set: bits 48-51"),
        (MAPS, "262 @pf[CPU 1/KVM]"),
        (CONVERSION, "line 1: 0x4000000 + 0x1000 to private"),
        (
            "KVM: unknown exit reason 24 EAX=00000000 EBX=00000000\n",
            "user space met KVM_EXIT 24, SYSTEM_EVENT",
        ),
    ],
)
def test_events_that_are_no_faults_are_told_alone_and_beside_faults(lines, told):
    """The first two from posted logs: a 32-bit AMD host of 2022, and counts by bpftrace."""
    assert "No fault among" in said(trace_reader(lines))
    assert told in said(trace_reader(lines))
    beside = said(trace_reader(lines + ONE))
    assert told.partition(":")[2] in beside
    assert "1 fault in the box" in beside


def test_many_events_of_a_kind_are_counted():
    lines = "".join(f"@pf[CPU {n}/KVM]: {n + 1}\n" for n in range(12))
    assert "4 more are not shown" in said(trace_reader(lines))


def test_a_code_alone_is_decoded():
    widget = trace_reader("0x500000004")
    assert "0x500000004 : a read (encrypted), on a page that is not mapped" in said(widget)
    assert "#NPF error code" in said(widget)


def test_a_code_that_a_kernel_before_6_1_cut_is_said_to_be():
    assert "(cut to 32 bits)" in said(trace_reader("kvm_page_fault: address 84d000 error_code 14"))
    assert "(cut" not in said(trace_reader(ONE))


def test_a_file_is_read_and_takes_the_place_of_the_lines():
    widget = trace_reader(ONE)
    upload(widget, "a trace.gz", RECORDED.read_bytes())
    assert "34 faults in a trace.gz, of an AMD CPU" in said(widget)
    assert repr(widget) == "trace_reader(a trace.gz, 34 faults)"
    assert "a trace.gz" in text(widget.static().html)
    assert said(trace_reader(file=RECORDED)) == said(widget).replace("a trace.gz", RECORDED.name)


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        ("good morning", "the box: no event of KVM's page faults in 1 line; one is"),
        ("kvm_page_fault: nothing", "the box, line 1: kvm_page_fault without its values; such a line is"),
        ("\n".join("so it goes" for _ in range(30)), "no event of KVM's page faults in 30 lines"),
    ],
)
def test_what_cannot_be_read_is_one_complaint_and_changes_nothing(lines, complaint):
    widget = trace_reader(SPIN)
    before = widget.output.value
    widget.controls["lines"].value = lines
    assert complaint in text(widget.message.value)
    assert widget.output.value == before
    assert repr(widget) == "trace_reader(the box, 6 faults)"
    widget.controls["lines"].value = ONE
    assert widget.message.value == ""


def test_a_damaged_file_is_one_complaint_with_its_name():
    widget = trace_reader(SPIN)
    upload(widget, "half.gz", RECORDED.read_bytes()[:5000])
    assert "half.gz: " in text(widget.message.value)
    assert "6 faults in the box" in said(widget)


def test_lines_that_look_like_ours_and_cannot_be_read_are_shown():
    widget = trace_reader("kvm_page_fault: address nowhere\n" + SPIN)
    assert "1 line not read" in said(widget)
    assert "not read, line 1: kvm_page_fault without its values" in said(widget)


def test_events_without_a_fault_are_no_fault():
    assert "No fault among 1 event in the box." in said(trace_reader("kvm_entry: vcpu 0, rip 0x1"))


def test_the_button_reads_the_box_again():
    widget = trace_reader(SPIN)
    upload(widget, "x", RECORDED.read_bytes())
    widget.controls["read"].click()
    assert "6 faults in the box" in said(widget)


@pytest.mark.parametrize("picture", [name for name in PICTURES if name != "none"])
def test_each_picture_stands_in_the_page_with_its_name(picture):
    widget = trace_reader(SPIN)
    widget.controls["picture"].value = picture
    (found,) = re.findall(r'<img src="data:image/png;base64,([^"]+)" alt="([^"]+)"', widget.output.value)
    assert b64decode(found[0]).startswith(b"\x89PNG")
    assert found[1] == picture
    assert found[0] in widget.static().html
    widget.controls["picture"].value = "none"
    assert "<img" not in widget.output.value


def test_a_trace_without_addresses_has_no_page_to_draw():
    exits = "".join(
        f" qemu-77 [000] 15.80{n}: kvm_exit: reason EPT_MISCONFIG rip 0x1 info 0 0\n" for n in range(3)
    )
    widget = trace_reader(exits, picture="the page with the most faults")
    assert "no page's life to draw" in said(widget)


def test_pictures_are_offered_only_where_they_can_be_drawn(monkeypatch):
    monkeypatch.setattr(trace, "find_spec", lambda name: None)
    assert trace_reader(ONE).controls["picture"].options == ("none",)
    with pytest.raises(InputError, match="take pandas and matplotlib, which are not here"):
        trace_reader(ONE, picture="faults over time")


def test_what_is_given_wrongly_is_refused(tmp_path):
    with pytest.raises(InputError, match="picture='x': it takes one of none"):
        trace_reader(picture="x")
    with pytest.raises(InputError, match="no such file"):
        trace_reader(file=tmp_path / "none")


def test_nothing_that_was_pasted_becomes_markup_or_control():
    widget = trace_reader(
        '<img src=x onerror=alert(1)> kvm_page_fault: oops\x1b[31m <b>\n' + ONE
    )  # fmt: skip
    assert "<b>" not in widget.output.value.replace("<b>1 fault", "").replace("<b>a read", "")
    assert "onerror=alert(1)>" not in widget.output.value
    assert "\x1b" not in widget.output.value


def test_of_many_kinds_the_first_are_listed_and_the_others_counted():
    many = "".join(f"kvm_page_fault: address {n:x}000 error_code 181\n" for n in range(1, 101))
    widget = trace_reader(many)
    assert "60 more kinds are not shown" in said(widget)
    assert widget.output.value.count("<tr>") == 41


def test_the_kernel_that_the_lines_show_is_named_and_none_otherwise():
    """Bit 49 beside bit 34 in the tracepoint: Linux `arch/x86/kvm/svm/svm.c`, npf_interception() (v6.11)."""
    line = "q-9 [003] ..... 1.0: kvm_page_fault: vcpu 0 rip 0x9 address 0x4000000 error_code {}\n"
    assert "Read as v6_12: kvm_page_fault shows bit 49" in said(trace_reader(line.format("0x2000500000006")))
    assert "Read as" not in said(trace_reader(line.format("0x100000006")))
