# SPDX-License-Identifier: GPL-2.0-only
"""The widgets, through their controls: what is set, what is then said.  Nothing here needs a front end."""

import re
from datetime import datetime
from html.parser import HTMLParser

import ipywidgets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvm_pf.common.errors import InputError
from kvm_pf.conformance.corpus import load_corpus
from kvm_pf.conformance.fault_rows import columns
from kvm_pf.patch.diff import diff_text, source_lines, step_diff
from kvm_pf.patch.ledger import digest, ledger
from kvm_pf.revisions import REVISIONS, get
from kvm_pf.run.inputs import case_values
from kvm_pf.run.watch import explain
from kvm_pf.show.diff import diff_html
from kvm_pf.show.markup import element, notice
from kvm_pf.show.widgets.bits import BitGrid
from kvm_pf.show.widgets.checker import patch_checker
from kvm_pf.show.widgets.claims import ASKED, claim_asker
from kvm_pf.show.widgets.corpus import corpus_browser
from kvm_pf.show.widgets.error_code import KERNELS, error_code_explorer
from kvm_pf.show.widgets.fault import MMIO, OTHER, fault_explorer
from kvm_pf.show.widgets.hunks import hunk_viewer
from kvm_pf.show.widgets.panel import ids, read_code, show
from kvm_pf.show.widgets.place import Place
from kvm_pf.show.widgets.scenario import scenario_player
from kvm_pf.show.widgets.steps import step_player
from kvm_pf.show.widgets.trace import trace_reader
from kvm_pf.show.widgets.turn import your_turn

PRIVATE = {"vm_type": "sw-protected", "private": True}
SCENARIO = ("posted-on-6.12", "4-inject-swprot")


def player():
    return step_player(explain("WRITE|USER", **PRIVATE))


DIFF = "--- a/arch/x86/kvm/x.c\n+++ b/arch/x86/kvm/x.c\n@@ -1,1 +1,1 @@ int f(void)\n-int a;\n+int b;\n"


MAKERS = {
    "error_code_explorer": lambda: error_code_explorer(0x2000100000006),
    "fault_explorer": lambda: fault_explorer("posted", 0x100000006, **PRIVATE),
    "step_player": player,
    "hunk_viewer": hunk_viewer,
    "corpus_browser": corpus_browser,
    "scenario_player": lambda: scenario_player(*SCENARIO),
    "patch_checker": lambda: patch_checker(DIFF),
    "claim_asker": lambda: claim_asker("sanitiser-is-a-mask", "before", ask=True),
    "trace_reader": lambda: trace_reader("kvm_page_fault: address febd0000 error_code 181\n"),
    "your_turn": lambda: your_turn("sanitize"),
}


@pytest.fixture(scope="module", params=MAKERS)
def made(request):
    """Each widget, and how to make another one."""
    return MAKERS[request.param](), MAKERS[request.param]


class Reader(HTMLParser):
    """Read tables as rows of text; complain of tags that do not close."""

    def __init__(self, html):
        super().__init__()
        self.rows, self.open, self.cell, self.texts = [], [], None, []
        self.feed(str(html))
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        assert tag not in ("script", "iframe", "img", "a"), tag
        assert not any(name.startswith("on") for name, _ in attrs)
        if tag not in ("br", "wbr"):
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.texts.append(data)
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data

    @property
    def text(self):
        return "".join(self.texts).replace("\xa0", " ")


def said(widget):
    return Reader(widget.output.value).text


def row(widget, first):
    """The first row whose first cell, without mark and indentation, is `first`."""
    for cells in Reader(widget.output.value).rows:
        if cells and cells[0].strip("▲▶ \xa0") == first:
            return cells
    return None


def message(widget):
    return Reader(widget.message.value).text


# --- what holds for all of them ---


def test_every_control_has_a_label_and_a_tooltip(made):
    widget, _ = made
    ours_or_native = (
        ipywidgets.Text, ipywidgets.Dropdown, ipywidgets.Checkbox, ipywidgets.Button, ipywidgets.Select,
        ipywidgets.Textarea, ipywidgets.FileUpload, BitGrid, Place,
    )  # fmt: skip
    assert widget.controls
    for control in widget.controls.values():
        assert isinstance(control, ours_or_native)
        assert control.description
        assert control.tooltip


def test_it_calls_itself_by_a_short_stable_name(made):
    widget, make = made
    assert repr(widget) == repr(make())
    assert re.fullmatch(r"[a-z_]+\(.*\)", repr(widget))
    assert len(repr(widget)) < 110
    assert widget._repr_mimebundle_()["text/plain"] == repr(widget)


def test_the_static_twin_is_the_same_each_time_and_says_what_the_widget_says(made):
    widget, make = made
    twin = widget.static()
    assert twin._repr_html_() == widget.static()._repr_html_() == make().static()._repr_html_()
    text = Reader(twin._repr_html_()).text
    assert said(widget) in text
    for control in widget.controls.values():
        if not isinstance(control, ipywidgets.Button | ipywidgets.Textarea):
            assert control.description in text
    assert repr(twin) == f"{widget!r}, as it stands"


def test_nothing_volatile_is_shown(made):
    html = made[0].static()._repr_html_()
    assert not re.search(r"\bat 0x[0-9a-f]+>|/t[m]p/|/h[o]me/|IPY_MODEL|\bid=", html)


def test_a_control_set_to_what_it_is_changes_nothing(made):
    widget, _ = made
    before = widget.static()._repr_html_()
    for control in widget.controls.values():
        if hasattr(control, "value"):
            control.value = control.value
    assert widget.static()._repr_html_() == before


def test_two_of_a_kind_do_not_share_their_state():
    one, other = MAKERS["fault_explorer"](), MAKERS["fault_explorer"]()
    one.controls["private"].value = False
    assert other.controls["private"].value
    assert other.explanation.outcome.handled.fault.is_private


# --- the error-code explorer ---


def answers(w, revision):
    """What an error-code explorer says of a revision: the cells beside its name, without marks."""
    for cells in Reader(w.output.value).rows:
        if revision in cells[0].split(", "):
            return [cell.strip("▲ \xa0") for cell in cells[1:]]
    return None


def test_a_code_is_shown_as_digits_names_and_bits():
    w = error_code_explorer("WRITE|USER|PRIVATE_ACCESS")
    assert w.code == w.controls["bits"].number == 0x2000000000006
    assert w.controls["code"].value == w.controls["bits"].value == "0x2000000000006"
    assert row(w, "49")[1:3] == ["PRIVATE_ACCESS", "KVM"]


def test_each_bit_can_be_clicked_on_and_off():
    w = error_code_explorer()
    bits = w.controls["bits"]
    for n in range(64):
        bits.value = f"{1 << n:#x}"
        assert (w.code, w.controls["code"].value) == (1 << n, f"{1 << n:#x}")
        bits.value = "0x0"
        assert w.code == 0
    assert bits.table["49"]["name"] == "PRIVATE_ACCESS"
    assert bits.table["49"]["setter"] == "KVM"


def test_bits_take_64_of_them_in_hexadecimal_and_nothing_else():
    bits = error_code_explorer(0x6).controls["bits"]
    for wrong in ("", "0x", "-0x1", "1" * 17, "nope", "0x10000000000000000"):
        with pytest.raises(InputError, match="up to 16 hexadecimal digits"):
            bits.value = wrong
    for wrong in (1 << 64, -1, 1.0, "6", None):
        with pytest.raises(InputError, match="an unsigned 64-bit number is wanted"):
            bits.number = wrong
    assert bits.number == 6
    bits.value = "FFFFFFFFFFFFFFFF"
    assert bits.number == (1 << 64) - 1


def test_bits_of_every_setter_differ_without_colour():
    bits = error_code_explorer().controls["bits"]
    setters = {row["setter"] for row in bits.table.values()}
    assert len(setters) == len({bits.inks[name]["line"] for name in setters}) == 4


def test_what_the_last_setting_changed_in_a_revisions_answer_is_marked():
    w = error_code_explorer("WRITE")
    assert "▲" not in said(w)
    w.controls["bits"].number |= 1 << 49
    marked = {cells[0]: [cell.startswith("▲") for cell in cells[1:]] for cells in Reader(w.output.value).rows}
    assert marked["posted"] == [False, True, True]
    assert marked["before"] == [False, False, False]


def test_a_bit_without_a_name_stays_visible():
    assert row(error_code_explorer(1 << 50), "50")[1] == "bit 50"


def test_a_callers_bit_49_is_dropped_where_the_revision_drops_it():
    w = error_code_explorer("WRITE|PRIVATE_ACCESS")
    assert answers(w, "posted") == [
        "unchanged",
        "WARN (synthetic), drops PRIVATE_ACCESS → fault, shared",
        "WARN (synthetic), drops PRIVATE_ACCESS, sets PRIVATE_ACCESS → fault, private",
    ]
    npf, default, _ = answers(w, "v6_10")
    assert npf == "WARN (npf_synthetic), drops PRIVATE_ACCESS"
    assert default == "unchanged → fault, private"
    assert answers(w, "before")[1] == "unchanged → fault, shared"


def test_every_revision_has_one_answer():
    w = error_code_explorer("WRITE|PRIVATE_ACCESS")
    told = [
        name for cells in Reader(w.output.value).rows for name in cells[0].split(", ") if name in REVISIONS
    ]
    assert sorted(told) == sorted(KERNELS)


def test_a_reserved_fault_goes_the_mmio_way_and_is_not_marked():
    assert answers(error_code_explorer("RSVD"), "posted")[2] == "unchanged → mmio"
    assert answers(error_code_explorer("RSVD"), "guest_enc_ungated")[2] == "sets GUEST_ENC → mmio"


def test_a_private_reserved_code_is_refused_from_6_10_on():
    w = error_code_explorer("RSVD|PRIVATE_ACCESS")
    assert answers(w, "v6_10")[1] == "WARN (private_rsvd) → refused"
    assert answers(w, "posted")[1] == "WARN (synthetic), drops PRIVATE_ACCESS → mmio"


def test_an_ept_qualification_is_shown_with_the_error_code_it_becomes():
    w = error_code_explorer(0x18B, "ept")  # read and write, readable, linear address valid and translated
    bits = w.controls["bits"]
    assert bits.table["8"]["name"] == "GVA_TRANSLATED"
    assert answers(w, "posted")[0] == "0x100000007 PRESENT|WRITE|USER|GUEST_FINAL"
    assert answers(w, "v7_3")[0] == "0x100000003 PRESENT|WRITE|GUEST_FINAL"
    w.controls["encoding"].value = "pferr"
    assert w.code == bits.number == 0x18B
    assert "8" not in bits.table
    assert bits.table["3"]["name"] == "RSVD"


@pytest.mark.parametrize(
    "text", ["", "0x", "-1", "1" * 17, "WRITE|NOPE", "<b>", "０x1", "1_0", "0x1 0x2", "\ud800"]
)
def test_what_is_no_code_is_said_and_changes_nothing(text):
    w = error_code_explorer(0x6)
    before = w.output.value
    w.controls["code"].value = text
    assert "it takes up to 16 hexadecimal digits, or names of bits" in message(w)
    assert (w.code, w.output.value) == (6, before)
    w.controls["bits"].number = 7
    assert (w.code, w.message.value, w.controls["code"].value) == (7, "", "0x7")


def test_what_is_no_code_or_encoding_is_refused_at_once():
    for code, encoding in (
        (1 << 64, "pferr"),
        (-1, "pferr"),
        (6.0, "pferr"),
        (None, "pferr"),
        ("NOPE", "pferr"),
        ("RSVD", "ept"),
        (0, "intel"),
    ):
        with pytest.raises(InputError):
            error_code_explorer(code, encoding)


@pytest.mark.parametrize(
    ("make", "box", "go"), [(patch_checker, "text", "check"), (trace_reader, "lines", "read")]
)
def test_half_a_character_that_was_pasted_is_read_as_a_question_mark(make, box, go):
    with pytest.raises(InputError, match=r"holds no diff|no event of KVM's"):
        make(**{box: "\ud800\n"})
    w = make()
    w.controls[box].value = "\ud800\n"
    w.controls[go].click()
    assert "holds no diff" in message(w) or "no event" in message(w)


EXPLORER = error_code_explorer()


@given(st.text(max_size=40) | st.from_regex(r"\A(0x)?[0-9a-f|A-Z_<&]{0,20}\Z"))
@settings(max_examples=60)
def test_any_text_is_a_code_or_a_complaint(text):
    before = EXPLORER.code
    EXPLORER.controls["code"].value = text
    Reader(EXPLORER.output.value)
    Reader(EXPLORER.static()._repr_html_())
    if EXPLORER.message.value:
        assert EXPLORER.code == before
        assert message(EXPLORER).startswith("✗ error code")
    else:
        assert 0 <= EXPLORER.code < 1 << 64
        assert EXPLORER.controls["code"].value in (text, f"{EXPLORER.code:#x}")


# --- the fault explorer ---


def outcome(w):
    rows = Reader(w.output.value).rows
    return {cells[n].strip("▲ \xa0"): cells[n + 1] for cells in rows if len(cells) == 4 for n in (0, 2)}


def marked(w):
    """What is marked as changed: names of steps, of results; fields with their values."""
    found = set()
    for cells in Reader(w.output.value).rows:
        for n, cell in enumerate(cells):
            if cell.startswith("▲"):
                is_value = len(cells) == 6 and n % 2
                found.add(cells[n - 1] if is_value else cell.strip("▲ \xa0"))
    return found


def test_it_shows_what_explain_says():
    w = fault_explorer("posted", 0x100000006, **PRIVATE)
    e = explain(0x100000006, **PRIVATE)
    assert str(w.explanation) == str(e)
    for record in e.steps:
        assert record.why in said(w)
    assert row(w, "error_code")[1] == "0x2000100000006"
    assert outcome(w)["returned"] == "1: resume the guest"


def test_nothing_is_marked_at_first():
    w = fault_explorer("posted", 0x6, **PRIVATE)
    assert marked(w) == set()
    assert "▲ will mark what a setting changes" in said(w)


def test_what_a_setting_changes_is_marked_and_nothing_else():
    w = fault_explorer("posted", 0x6, **PRIVATE)
    w.controls["private"].value = False
    assert marked(w) == {
        "kvm_mmu_page_fault", "route", "mark_private", "kvm_mem_is_private", "handler_error_code",
        "kvm_mmu_do_page_fault", "is_private", "new_fault", "after_fault", "error_code",
    }  # fmt: skip
    assert row(w, "error_code")[1] == "▲\xa00x6"
    w.controls["root_valid"].value = False
    assert "gone: mark_private, " in said(w)
    assert "▲ struct kvm_page_fault" in said(w)
    assert {"warnings", "page-fault handler", "statistics"} <= marked(w)
    assert outcome(w)["warnings"] == "bad_root"


def test_a_setting_without_effect_says_so():
    w = fault_explorer("posted", 0x6)
    w.controls["cfg_sw_protected"].value = True
    w.controls["private"].value = True  # a default VM is never asked
    assert "nothing changed by the last setting" in said(w)
    assert marked(w) == set()


def test_fields_of_a_new_struct_are_not_marked_one_by_one():
    w = fault_explorer("posted", 0x6, root_valid=False)
    assert "no handler was asked" in said(w)
    w.controls["root_valid"].value = True
    assert row(w, "addr")[1] == "0x100000000"


def test_emulation_on_private_memory_exits_to_user_space():
    w = fault_explorer("posted", 0x6, **PRIVATE)
    w.controls["pf_ret"].value = "EMULATE"
    told = outcome(w)
    assert told["returned"] == "-14: an error to user space"
    assert told["memory-fault exit"] == "exit 39: gpa 0x100000000, size 0x1000, flags 0x8"


@pytest.mark.parametrize("revision", ["before", "posted", "v6_10", "v6_12", "v7_3", "before+sanitize"])
def test_the_states_of_mmio_are_what_they_are_called(revision):
    w = fault_explorer(revision, "RSVD")
    answers = {}
    for preset in MMIO:
        w.controls["mmio"].value = preset
        answers[preset] = row(w, "handle_mmio_page_fault")[2]
    assert answers["none"] == "RETRY: no MMIO SPTE there"
    assert answers["MMIO SPTE, current"].endswith(", is current")
    assert answers["MMIO SPTE, stale"].startswith("INVALID: the MMIO SPTE is stale")
    assert answers["in the vCPU's cache"] == "EMULATE: the vCPU remembers this address as MMIO"
    assert answers["slots being updated"] == "INVALID: slots are being updated"
    w.controls["mmio"].value = "none"
    assert w.given == {"error_code": 8, "pf_ret": "FIXED"}


@pytest.mark.parametrize("preset", ["MMIO SPTE, current", "in the vCPU's cache"])
def test_the_state_of_mmio_follows_address_and_revision(preset):
    w = fault_explorer("posted", "RSVD")
    w.controls["mmio"].value = preset
    for name, value in (
        ("cr2_or_gpa", "fee00123"),
        ("revision", "v7_3"),
        ("mode", "shadow"),
        ("revision", "before"),
    ):
        w.controls[name].value = value
        assert w.explanation.outcome.emulation.called, (name, value)
        assert w.controls["mmio"].value == preset


def test_an_answer_that_a_revision_does_not_know_becomes_what_it_was_then():
    w = fault_explorer("v6_12", 0x6)
    w.controls["pf_ret"].value = "WRITE_PROTECTED"
    w.controls["revision"].value = "posted"
    assert w.controls["pf_ret"].value == "EMULATE"
    assert "WRITE_PROTECTED" not in w.controls["pf_ret"].options
    assert w.explanation.outcome.emulation.called


def test_every_control_can_take_every_value():
    w = fault_explorer("posted", 0x100000006, **PRIVATE)
    for name, control in w.controls.items():
        if isinstance(control, ipywidgets.Dropdown):
            for value in list(control.options):
                control.value = value
                assert not w.message.value
                assert value == OTHER or w.controls[name].value == value
        elif isinstance(control, ipywidgets.Checkbox):
            for value in (False, True, False):
                control.value = value
                assert w.given.get("attrs" if name == "private" else name, False) in (value, 8 * value)


def test_a_revision_of_ones_own_can_be_explored():
    blunt = get("posted").derive("blunt", sanitize=lambda error_code: (error_code, 0))
    w = fault_explorer(blunt, "PRIVATE_ACCESS")
    assert w.explanation.outcome.handled.fault.is_private
    w.controls["revision"].value = "posted"
    assert not w.explanation.outcome.handled.fault.is_private
    w.controls["revision"].value = "blunt"
    assert w.explanation.outcome.handled.fault.is_private


def test_what_has_no_control_stays_as_given_and_is_told():
    w = fault_explorer("posted", 0x6, insn_len=3, gen=0x99, pf_ret=-5, attrs=0x18)
    assert "gen=0x99, insn_len=3" in said(w)
    assert (w.controls["mmio"].value, w.controls["pf_ret"].value) == (OTHER, "EIO")
    w.controls["private"].value = False
    assert (w.given["attrs"], w.given["insn_len"], w.given["gen"]) == (0x10, 3, 0x99)


@pytest.mark.parametrize(
    "wrong",
    [
        {"revision": "v9"},
        {"error_code": "NOPE"},
        {"vm_type": "xen"},
        {"mode": "real"},
        {"colour": 1},
        {"pf_ret": "OK"},
    ],
)
def test_a_state_that_is_none_is_refused_at_once(wrong):
    with pytest.raises(InputError):
        fault_explorer(**wrong)


FAULT = fault_explorer("posted", 0x6, **PRIVATE)


@given(
    st.sampled_from(["error_code", "cr2_or_gpa"]),
    st.text(max_size=30) | st.from_regex(r"\A[0-9a-fx]{0,18}\Z"),
)
@settings(max_examples=40)
def test_any_text_in_the_fault_explorer_is_taken_or_complained_of(name, text):
    before, output = dict(FAULT.given), FAULT.output.value
    FAULT.controls[name].value = text
    Reader(FAULT.static()._repr_html_())
    if FAULT.message.value:
        assert (FAULT.given, FAULT.output.value) == (before, output)
    else:
        assert 0 <= FAULT.given.get(name, 0) < 1 << 64


@given(st.integers(0, (1 << 64) - 1), st.sampled_from(MMIO))
@settings(max_examples=30)
def test_any_address_can_have_any_state_of_mmio(address, preset):
    FAULT.controls["cr2_or_gpa"].value = f"{address:x}"
    FAULT.controls["mmio"].value = preset
    assert not FAULT.message.value
    assert FAULT.given["cr2_or_gpa"] == address


# --- the step player ---


RETURNED = {
    "sanitize": "6, no warning",
    "mark_private": "0x2000000000006, looked up gfn 0x100000",
    "kvm_mem_is_private": "1, looked up gfn 0x100000",
    "is_private": "1, no look-up",
}
"""What is not shown as it is: a code, or an answer, with a warning or a look-up."""


def test_each_step_is_shown_with_its_values():
    assert set(RETURNED) <= {record.step for record in player().explanation.steps}
    w = player()
    for number, record in enumerate(w.explanation.steps, 1):
        w.controls["step"].value = number
        assert w.record is record
        here = [cells for cells in Reader(w.output.value).rows if cells[0] == "▶"]
        assert [cells[1].strip() for cells in here] == [record.step]
        assert row(w, "why")[1] == record.why
        assert row(w, "returned")[1] == RETURNED.get(record.step, show(record.result))
        for name in record.given:
            assert row(w, f"given {name}")


def test_the_step_that_changes_the_code_is_marked_and_names_its_lines():
    w = player()
    w.controls["step"].value = next(
        n for n, r in enumerate(w.explanation.steps, 1) if r.step == "mark_private"
    )
    assert row(w, "error code before")[1] == "0x6 WRITE|USER"
    assert row(w, "error code after")[1] == "▲\xa00x2000000000006 WRITE|USER|PRIVATE_ACCESS"
    assert row(w, "h2+18")


def test_buttons_step_and_stop_at_the_ends_and_the_player_goes_along():
    w = player()
    last = len(w.explanation.steps)
    w.controls["back"].click()
    assert w.controls["step"].value == 1
    for _ in range(last + 3):
        w.controls["forth"].click()
    assert w.controls["step"].value == w.controls["step"].max == last
    w.controls["step"].value = 2
    assert w.record is w.explanation.steps[1]
    assert repr(w) == "step_player(posted, 0x6, step 2)"


@pytest.mark.parametrize("number", [0, -1, 13, 1 << 70])
def test_a_place_that_is_not_there_is_refused(number):
    w = player()
    assert w.controls["step"].max == 12
    with pytest.raises(InputError, match=f"step={number}: it takes a whole number from 1 to 12"):
        w.controls["step"].value = number
    assert w.record is w.explanation.steps[0]


@pytest.mark.parametrize(
    ("make", "wrong", "wanted"),
    [
        (step_player, "posted", "Explanation"),
        (hunk_viewer, 3, "text or Path or Patch or None"),
        (fault_explorer, 6, "text or Revision"),
        (error_code_explorer, [6], "an unsigned 64-bit number or text"),
        (trace_reader, 6, "text"),
        (claim_asker, 6, "text"),
        (patch_checker, b"", "text"),
        (your_turn, None, "text"),
    ],
)
def test_an_argument_of_another_type_is_refused_by_name(make, wrong, wanted):
    with pytest.raises(
        InputError, match=rf"{make.__name__}: \w+={re.escape(repr(wrong))}: {wanted} is wanted"
    ):
        make(wrong)


def test_a_scenario_of_another_type_is_refused_by_name():
    with pytest.raises(InputError, match="scenario_player: scenario=3: text is wanted"):
        scenario_player("posted-on-6.12", 3)


# --- the hunk viewer, and the patch in Python ---


@pytest.mark.parametrize(
    ("hunk", "lines", "steps"),
    [(1, 11, ["bits"]), (2, 26, ["sanitize", "mark_private"]), (3, 2, ["is_private"])],
)
def test_a_hunk_is_shown_with_its_ledger_rows_and_its_python(hunk, lines, steps):
    w = hunk_viewer()
    w.controls["hunk"].value = hunk
    shown = [cells for cells in Reader(w.output.value).rows if re.fullmatch(r"h\d[-+]\d\d", cells[0])]
    rows = ledger().query("hunk == @hunk")
    assert len(shown) == lines
    assert [(cells[0], cells[2], cells[3]) for cells in shown] == list(
        zip(rows["id"], rows["does"], rows["fate"], strict=True)
    )
    for step in steps:
        for line in diff_text(step_diff(step)).splitlines():
            assert line[2:].strip() in said(w)


def test_the_real_lines_stand_beside_their_rows_and_are_not_kept(shared):
    w = hunk_viewer(next((shared / "spec").glob("000_*.txt")))
    digests = ledger().set_index("id")["digest"]
    for hunk in (1, 2, 3):
        w.controls["hunk"].value = hunk
        real = {c[0]: c[5] for c in Reader(w.output.value).rows if re.fullmatch(r"h\d[-+]\d\d", c[0])}
        assert real
        kept = Reader(w.static()._repr_html_()).text
        for name, line in real.items():
            assert line[0] == name[2]
            assert digest(line[1:].replace("\xa0", " ")) == digests[name]
            assert len(line.strip()) < 20 or line.strip() not in kept
        assert "this patch: " in said(w)
        assert "shown in the live widget only" in kept


def test_a_patch_that_is_another_one_is_called_so():
    other = "--- a/x.c\n+++ b/x.c\n@@ -1,1 +1,1 @@\n-int a;\n+int b;\n"
    w = hunk_viewer(other)
    assert "another patch: 0 of the hunk's 11 lines are in it" in said(w)
    assert "not in this copy" in said(w)


def test_what_is_no_patch_is_refused():
    with pytest.raises(InputError, match="no diff"):
        hunk_viewer("no patch\nat all\n")


def test_the_patch_in_python_is_three_steps_and_a_bit():
    changed = {name for name in ("bits", "sanitize", "mark_private", "is_private", "root_is_valid", "route")
               if any(row.tag != "equal" for row in step_diff(name))}  # fmt: skip
    assert changed == {"bits", "sanitize", "mark_private", "is_private"}


@pytest.mark.parametrize(
    "name", ["bits", "sanitize", "mark_private", "is_private", "kvm_mmu_page_fault", "INITIAL_PFN"]
)
@pytest.mark.parametrize("b", ["posted", "v6_12", "v7_3", "guest_enc_gated"])
def test_both_sides_can_be_read_back_from_a_comparison(name, b):
    rows = step_diff(name, "before", b)
    for lines, revision in (([row.left for row in rows], "before"), ([row.right for row in rows], b)):
        assert [*filter(None, lines)] == [*filter(None, source_lines(name, revision))]
    text = Reader(diff_html(rows, "before", b)).text
    assert all(line.strip() in text for line in source_lines(name, b))


def test_docstrings_are_left_out_and_constants_are_shown():
    assert not any('"""' in line for line in source_lines("sanitize", "posted"))
    assert source_lines("RET_PF_FIXED", "v6_12") == ["RET_PF_FIXED = 0x5"]
    assert (
        diff_text(step_diff("RET_PF_FIXED", "posted", "v6_12"))
        == "- RET_PF_FIXED = 0x4\n+ RET_PF_FIXED = 0x5"
    )


def test_bit_49_is_known_from_posted_on():
    unknown = {
        name for name in REVISIONS if not any("PRIVATE_ACCESS" in x for x in source_lines("bits", name))
    }
    assert unknown == {name for name in REVISIONS if "before" in REVISIONS[name].lineage}


def test_a_comparison_of_what_is_not_there_is_refused():
    for names in (("nothing",), ("sanitize", "before", "v9")):
        with pytest.raises(InputError):
            step_diff(*names)


# --- the corpus browser ---


@pytest.fixture(scope="module")
def cases():
    return load_corpus().cases


@pytest.fixture(scope="module")
def shelf():
    return corpus_browser()


@pytest.fixture
def browser(shelf):
    """The browser with nothing filtered."""
    for name in ("flag", "kind", "topic", "revision"):
        shelf.controls[name].value = "any"
    shelf.controls["outcome"].value = ""
    return shelf


def test_each_filter_leaves_the_cases_that_have_it(browser, cases):
    assert set(browser.found) == set(cases["id"])
    for name, value in (("kind", "faultin"), ("topic", "mark_private"), ("revision", "v7_3")):
        browser.controls[name].value = value
        assert set(browser.found) == set(cases[cases[name] == value]["id"])
        browser.controls[name].value = "any"
    browser.controls["flag"].value = "attr-private"
    has = cases["flags"].map(lambda flags: "attr-private" in flags)
    assert set(browser.found) == set(cases[has]["id"])
    browser.controls["kind"].value = "cases"
    assert set(browser.found) == set(cases[has & (cases["kind"] == "cases")]["id"])


def test_words_are_looked_for_in_id_why_and_outcome(browser, cases):
    browser.controls["outcome"].value = "exit_reason=0x27  RET=-14"
    assert browser.found
    for name in browser.found:
        expect = list(cases[cases["id"] == name]["expect"])
        assert any(e.get("exit_reason") == 39 for e in expect)
        assert any(e.get("ret") == -14 for e in expect)
    browser.controls["outcome"].value = "private-sw-protected"
    assert "private-sw-protected" in browser.found


def test_nothing_found_is_said(browser, cases):
    browser.controls["outcome"].value = "<script>alert(1)</script>"
    assert (browser.found, browser.case) == ([], [])
    assert f"0 of {cases['id'].nunique()} cases" in said(browser)
    assert browser.controls["open"].disabled
    Reader(browser.static()._repr_html_())


def test_a_case_is_shown_with_its_reason_its_expectations_and_the_models_values(browser, cases):
    browser.controls["case"].value = "private-sw-protected"
    rows = cases[cases["id"] == "private-sw-protected"]
    text = said(browser)
    assert rows.iloc[0]["why"] in text
    assert rows.iloc[0]["source"] in text
    assert f"{sum(map(len, rows['expect']))} values expected; the model differs in none" in text
    heads = next(cells for cells in Reader(browser.output.value).rows if cells[0] == "output")
    assert sorted("".join(heads[1:])) == sorted("".join(rows["revision"]))


def test_a_value_that_differs_is_told_with_the_models(browser):
    browser.controls["case"].value = "private-attr-zero"
    row_, before = browser.case[0], dict(browser.case[0]["expect"])
    try:
        row_["expect"]["ret"] = 77
        browser.draw()
        assert "0x4d ✗ model: 1" in said(browser)
        assert "the model differs in 1" in said(browser)
    finally:
        row_["expect"].update(before)


def test_a_case_opens_in_the_fault_explorer(browser, cases):
    rows = cases[(cases["kind"] == "cases") & (cases["revision"] == "posted")].iloc[::8]
    browser.controls["revision"].value = "posted"
    for _, case in rows.iterrows():
        browser.controls["case"].value = case["id"]
        browser.controls["open"].click()
        explorer = browser.explorer
        assert explorer.revision is get("posted")
        assert case_values("posted", **explorer.given) == case_values("posted", **case["input"])
    assert browser.below.children == (browser.explorer,)
    assert said(browser.explorer) in Reader(browser.static()._repr_html_()).text


def test_a_case_of_another_kind_cannot_be_opened(browser):
    browser.controls["kind"].value = "sources"
    assert browser.controls["open"].disabled
    browser.controls["kind"].value = "cases"
    assert not browser.controls["open"].disabled


# --- the scenario player ---


@pytest.fixture(scope="module")
def scenario():
    return scenario_player(*SCENARIO)


def test_every_operation_and_every_fault_has_its_place(scenario):
    steps = [place.step.number for place in scenario.places]
    assert steps == sorted(steps)
    assert set(steps) == {step.number for step in scenario.scenario.steps}
    faults = [place.seen.row.fault for place in scenario.places if place.seen]
    assert len(faults) == len(set(faults)) > 5


def test_kernel_and_model_agree_and_only_what_was_compared_is_called_the_same(scenario):
    order = list(columns())
    for number, place in enumerate(scenario.places, 1):
        scenario.controls["place"].value = number
        text = said(scenario)
        assert place.step.op in text
        assert "✗" not in text
        if place.seen:
            assert re.search(r"[1-9]\d* values agree, 0 differ", text)
            assert f"▼ gfn {place.seen.row.state_gfn:#x}" in text
            names = [
                cells[n] for n in (0, 2) for cells in Reader(scenario.output.value).rows if len(cells) == 4
            ]
            names = [name for name in names if name in order]
            assert names == sorted(names, key=order.index)


def test_a_revision_that_is_not_the_recorded_one_differs_visibly():
    w = scenario_player(*SCENARIO, revision="before")
    found = []
    for number in range(1, len(w.places) + 1):
        w.controls["place"].value = number
        found += [cells for cells in Reader(w.output.value).rows if len(cells) == 3 and "✗" in cells[2]]
    assert any(cells[0] == "in_error_code" for cells in found)


def test_the_strip_shows_what_user_space_declared(scenario):
    private = [n for n, place in enumerate(scenario.places, 1) if place.step.op.endswith("private")]
    scenario.controls["place"].value = private[0]
    assert "▨ private" in said(scenario)
    scenario.controls["place"].value = 1
    assert "▨ private" not in said(scenario)


@pytest.mark.parametrize("names", [("nowhere", "1-default"), ("6.12", "9-none")])
def test_a_recording_or_scenario_that_is_not_there_is_refused(names):
    with pytest.raises(InputError):
        scenario_player(*names)


# --- small things ---


def test_text_is_escaped_and_markup_is_not():
    assert element("td", "<b>", element("b", "&")) == "<td>&lt;b&gt;<b>&amp;</b></td>"
    assert notice("") == ""
    assert "&lt;i&gt;" in notice("<i>")


def test_codes_are_read_as_hexadecimal():
    assert read_code("10") == read_code("0X10") == read_code(" 0x10 ") == 0x10
    assert read_code("f" * 16) == (1 << 64) - 1
    assert read_code("0" * 40 + "1") == 1


def test_values_are_shown_small_ones_in_decimal():
    assert [show(v) for v in (None, True, 9, 10, -14, "x", (1, 16))] == [
        "–",
        "1",
        "9",
        "0xa",
        "-14",
        "x",
        "(1, 0x10)",
    ]
    assert show(explain().outcome.unprotect) == "all 0"


def test_ids_that_follow_each_other_are_shortened():
    assert ids([]) == ""
    assert ids(["h1+01", "h2+02", "h2+03", "h2-04"]) == "h1+01, h2+02…03, h2-04"


# --- the patch checker ---


@pytest.fixture
def mail(shared):
    """The mail that quotes the patch."""
    return next((shared / "spec").glob("000_*.txt")).read_text()


def test_a_pasted_mail_is_checked(mail):
    w = patch_checker()
    assert "Paste a mail" in said(w)
    w.controls["text"].value = mail
    assert repr(w) == "patch_checker(this patch)"
    assert row(w, "sanitize")[1] == row(w, "mark_private")[1] == row(w, "is_private")[1] == "there"
    assert row(w, "lines")[1].startswith("+31 −8, of which 39 ")


def test_a_damaged_copy_is_checked_to_the_line(mail):
    w = patch_checker(mail.replace("BIT_ULL(49)", "BIT_ULL(50)"))
    assert repr(w) == "patch_checker(a damaged copy)"
    (place,) = [
        cells for cells in Reader(w.output.value).rows if cells[0].endswith("kvm_host.h") and len(cells) == 5
    ]
    assert place[1] == "1"
    assert "h1+10" in place[3]
    assert "BIT_ULL(50)" in place[4]


def test_a_file_is_checked_and_the_text_no_longer():
    w = patch_checker("--- a/y\n+++ b/y\n@@ -1,1 +1,1 @@\n-1\n+2\n")
    content = memoryview(DIFF.encode())
    file = {"name": "x", "type": "", "size": 9, "content": content, "last_modified": datetime(2026, 1, 1)}
    w.controls["file"].value = [file]
    assert "arch/x86/kvm/x.c" in said(w)
    assert "mail or diff: none · file: 1 diff" in Reader(w.static().html).text


def test_what_holds_no_diff_is_said_and_changes_nothing():
    w = patch_checker(DIFF)
    before = w.output.value
    w.controls["text"].value = "no diff\nat all\n"
    assert "holds no diff" in message(w)
    assert w.output.value == before
    with pytest.raises(InputError, match="holds no diff"):
        patch_checker("no diff\nat all\n")


# --- the claim asker ---


def test_a_claim_is_asked_when_its_button_is_pressed():
    w = claim_asker("reserved-never-private")
    assert "A reserved fault that reaches the handler is never private." in said(w)
    assert "Not asked yet." in said(w)
    w.controls["ask"].click()
    assert "posted: holds (proved)" in said(w)
    w.controls["revision"].value = "before"
    assert "Not asked yet." in said(w)
    w.controls["ask"].click()
    assert w.answer.witness.state["error_code"] == 1 << 3
    assert "RSVD" in said(w)
    one, other = next(cells for cells in Reader(w.output.value).rows if "is_private: " in cells[0])
    assert (one[0], other[0]) == ("−", "+")
    assert one.endswith("is_private: private, by attribute of gfn 0x100000")
    assert other.endswith("is_private: shared, by error code RSVD")


def test_without_the_solver_it_says_so_and_goes_on(monkeypatch):
    w = claim_asker()
    monkeypatch.setattr("kvm_pf.show.widgets.claims.has_solver", lambda: False)
    w.controls["ask"].click()
    assert "no solver here" in message(w)
    assert "Not asked yet." in said(w)


@pytest.mark.parametrize("wrong", ["nope", "engines-agree"])
def test_what_the_solver_cannot_be_asked_is_refused(wrong):
    assert wrong not in ASKED
    with pytest.raises(InputError, match=wrong):
        claim_asker(wrong)
