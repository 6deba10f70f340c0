# SPDX-License-Identifier: GPL-2.0-only
"""Codes as people have them: which encoding, what it says, and how sure that is.

The values come from public reports, read with the manuals (Intel SDM vol. 3, table of exit qualifications for EPT
violations; AMD APM vol. 2, section 15.25.6; the kernel's format strings), never from the code.
"""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kvm_pf
from kvm_pf import InputError
from kvm_pf.bits import EPT, EVENT, MEMORY_FAULT, PFERR, PFERR_LETTERS
from kvm_pf.run.codes import cut_codes, map_code, read
from kvm_pf.run.meanings import ENCODINGS, meaning
from kvm_pf.run.places import Sure, address
from kvm_pf.run.watch import explain

fixed = settings(derandomize=True, deadline=None)
u64 = st.integers(0, 2**64 - 1)

WALK = "a walk of the guest's page tables"


def best(text, **more):
    reading = read(text, **more).best
    return reading.code, reading.encoding


def all_of(text):
    """Every code of a line, as (code, encoding)."""
    answer = read(text)
    return [(a.best.code, a.best.encoding) for a in (answer, *answer.more)]


def says(code, encoding):
    return meaning(code, encoding).sentence


def part(code, encoding, bit):
    return next(p for p in meaning(code, encoding).parts if p.bit.bit == bit)


# Numbers of public reports, as kvm_page_fault printed them, each with what its manual makes of it.
REPORTED = {
    "0x181": ("ept", "a read, on a page that is not mapped"),
    "0x182": ("ept", "a write, on a page that is not mapped"),
    "0x184": ("ept", "an instruction fetch, on a page that is not mapped"),
    "0x1aa": ("ept", "a write, on a page that is not mapped for writing"),
    "0x582": ("ept", "a write, on a page that is not mapped"),
    "0x781": ("ept", "a read, on a page that is not mapped"),
    "0xf82": ("ept", "a write, on a page that is not mapped"),
    "0x83": ("ept", f"{WALK} (read and write), on a page that is not mapped"),
    "0x683": ("ept", f"{WALK} (read and write), on a page that is not mapped"),
    "0xab": ("ept", f"{WALK} (read and write), on a page that is not mapped for writing"),
    "0x200000006": ("npf", f"{WALK} (counts as a write), on a page that is not mapped"),
    "0x500000004": ("npf", "a read (encrypted), on a page that is not mapped"),
    "0x100000014": ("npf", "an instruction fetch, on a page that is not mapped"),
    "0x100000007": ("npf", "a write, on a page that is not mapped for writing"),
    "0x10000000d": ("npf", "a read, on a page that is marked with a reserved bit, as KVM marks MMIO"),
    "0x2000500000004": ("pferr", "a read (private memory), on a page that is not mapped"),
    "0x10": ("pf", "a supervisor-mode instruction fetch, on a page that is not mapped"),
    "0x7": ("pf", "a user-mode write, on a page that is mapped, but not for that"),
    "0xb": (
        "pf",
        "a supervisor-mode write, on a page that is mapped by an entry with a reserved bit set, in the guest's own "
        "page tables",
    ),
    "0x80000301": ("vectoring", "#DB (hardware exception, vector 1) was being delivered when the exit came"),
    "0x80000b0e": ("vectoring", "#PF (hardware exception, vector 14) was being delivered when the exit came"),
    "0x80000202": ("vectoring", "an NMI was being delivered when the exit came"),
    "0x800000ec": ("vectoring", "an external interrupt (vector 236) was being delivered when the exit came"),
}  # fmt: skip


@pytest.mark.parametrize("text", REPORTED)
def test_a_number_is_read_as_what_it_is(text):
    encoding, sentence = REPORTED[text]
    assert best(text) == (int(text, 16), encoding)
    assert read(text).best.meaning.sentence == sentence


class TestWhichEncoding:
    def test_that_a_qualification_is_no_error_code_is_said(self):
        answer = read("0x181")
        assert answer.best.sure == Sure.VERY_LIKELY
        mistaken = next(r for r in answer.others if r.encoding == "pferr")
        assert mistaken.sure == Sure.HARDLY
        assert "bits 7, 8 have no meaning" in mistaken.why

    @pytest.mark.parametrize(
        ("text", "encoding", "why"),
        [
            ("0x100000006", "ept", "bit 32 has no meaning"),
            ("0x180", "ept", "neither a read nor a write nor a fetch"),
            ("0x101", "ept", "bit 8 is set without bit 7"),
            ("0x100000006", "pf", "32 bits"),
            ("0x8", "pf", "only with bit 0"),
            ("0x12", "pf", "a write and a fetch"),
            ("0x181", "pf", "bits 7, 8 have no meaning"),
            ("0x2000100000006", "npf", "KVM's, not the CPU's"),
            ("0x80000102", "vectoring", "type 1 is reserved"),
            ("0x80000340", "intr", "vector 64 is no hardware exception"),
            ("0x80008301", "intr", "bit 15 has no meaning"),
            ("0x301", "vectoring", "bit 31 is clear"),
        ],
    )  # fmt: skip
    def test_an_encoding_is_excluded_for_a_reason(self, text, encoding, why):
        reading = next(r for r in read(text).readings if r.encoding == encoding)
        assert (reading.sure, reading.sure.words) == (Sure.NO, "no")
        assert why in reading.why

    def test_both_kinds_of_event_are_shown(self):
        answer = read("0x80000301")
        assert "intr" in [r.encoding for r in answer.others]
        assert answer.best.sure < Sure.VERY_LIKELY

    def test_memory_fault_flags_are_thought_of(self):
        assert best("8") == (8, "memfault")
        assert {"pferr", "npf"} <= {r.encoding for r in read("8").others}
        assert says(8, "memfault").startswith("an access to private memory")
        assert says(0, "memfault").startswith("an access to shared memory")

    @pytest.mark.parametrize("encoding", ENCODINGS)
    def test_the_user_decides(self, encoding):
        reading = read("0x8", encoding).best
        assert (reading.encoding, reading.sure) == (encoding, Sure.CERTAIN)
        assert not read("0x8", encoding).others

    @given(u64)
    @fixed
    def test_every_number_is_something_and_no_bit_is_lost(self, code):
        answer = read(f"{code:#x}")
        assert {r.code for r in answer.readings} - {code} <= {code & 0xFFFFFFFF}
        said = answer.best.meaning
        if answer.best.encoding not in ("vectoring", "intr"):
            assert sum(p.bit.mask for p in said.parts) == answer.best.code

    @given(u64, st.sampled_from(sorted(ENCODINGS)))
    @fixed
    def test_every_code_says_something_in_every_encoding(self, code, encoding):
        code &= (1 << ENCODINGS[encoding].bits) - 1
        assert re.match(r"(#|an? |no |NMI)", says(code, encoding))


class TestNotation:
    """The same number in the ways in which people, tools, languages and editors write it."""

    @pytest.mark.parametrize(
        "text",
        ["0x683", "0X683", "0x683UL", "0x683ull", "0x683L", "0x683h", "683h", "0683H", "$683", "$0x683", "&H683",
         "x683", "\\x683", "16#683", "16'h683", "0x6_83", "0b11010000011", "0b110_1000_0011", "0o3203", "0x 683",
         "(0x683)", "[0x683]", "<0x683>", '"0x683"', "'0x683'", "`0x683`", "0x683.", "0x683,", "0x683;", "=0x683",
         "+0x683", "#683", "683 hex", "683 (hex)", "1667 decimal", "dec 1667", "83 06 00 00", "83 06 00 00 00 00 00 00",
         "\\x83\\x06\\x00\\x00", "0x600 | 0x83", "(BIT(10) | BIT(9) | 0x83)", "1 << 10 | 1U<<9|0x83",
         "0\u0445683", "0\u00d7683", "\uff10\uff58\uff16\uff18\uff13", "0x683\u00a0", "\u200b0x683",
         "\u201c0x683\u201d"],
    )  # fmt: skip
    def test_one_number(self, text):
        assert best(text) == (0x683, "ept")

    @pytest.mark.parametrize(
        ("text", "code", "encoding"),
        [
            ("00000001`00000014", 0x100000014, "npf"),  # a debugger of Windows
            ("0x1'0000'0004", 0x100000004, "npf"),  # C++, C23
            ("8_589_934_598", 0x200000006, "npf"),  # Rust
            ("04 00 00 00 01 00 00 00", 0x100000004, "npf"),
            ("1ULL << 49", 1 << 49, "pferr"),
            ("BIT_ULL(49) | PFERR_USER_MASK", 1 << 49 | 4, "pferr"),
            ("(PFERR_GUEST_FINAL_MASK | PFERR_WRITE_MASK)", 0x100000002, "pferr"),
            ("bit 49", 1 << 49, "pferr"),
            ("bits 1, 2 and 33", 0x200000006, "pferr"),
            ("P W U", 7, "pf"),
            ("W/U", 6, "pf"),
            ("P+RSVD", 9, "pf"),
            # 32 bits in a signed int, printed as 64 or in decimal
            ("0xffffffff80000003", 0x80000003, "pf"),
            ("18446744071562067971", 0x80000003, "pf"),
            ("-2147483645", 0x80000003, "pf"),
            ("-2147482879", 0x80000301, "vectoring"),
            ("0xffffffff80000301", 0x80000301, "vectoring"),
        ],
    )
    def test_its_value(self, text, code, encoding):
        assert best(text) == (code, encoding)

    @pytest.mark.parametrize(
        "text", ["-14", "-1", "-22", "0o8", "0x683\u00b2", "0x6 83", "~0x683", "PF", "1_0000_00", "8,589,934,598"]
    )  # fmt: skip
    def test_what_is_no_code_is_refused_not_guessed(self, text):
        with pytest.raises(InputError):
            read(text)

    def test_an_error_is_named_as_one(self):
        with pytest.raises(InputError, match="error"):
            read("-14")

    @pytest.mark.parametrize(
        ("text", "codes"),
        [
            ("0x683 0x181", [0x683, 0x181]),
            ("0x683 vs 0x200000006", [0x683, 0x200000006]),
            ("0x181/0x182", [0x181, 0x182]),
            ("0x683 -> 0x200000006", [0x683, 0x200000006]),
            ("683\n181\n", [0x683, 0x181]),
            ("    521 0x683\n     12 0x181\n", [0x683, 0x181]),  # sort | uniq -c
            ("    521 683\n     12 181\n", [0x683, 0x181]),
        ],
    )
    def test_several_numbers_are_all_read(self, text, codes):
        answer = read(text)
        assert [a.best.code for a in (answer, *answer.more)] == codes

    def test_how_it_was_written_is_told(self):
        assert read("0b11010000011").best.spelled == "binary"
        assert read("0xffffffff80000003").best.spelled == "a sign-extended number"
        assert read("83 06 00 00").best.spelled == "bytes in memory order"


class TestSpelling:
    @pytest.mark.parametrize("text", ["0x683", "0X683", "683", "0x683UL", " 0x683\n", "00000683"])
    def test_hexadecimal_with_and_without_prefix(self, text):
        assert best(text) == (0x683, "ept")

    @pytest.mark.parametrize(
        ("text", "code", "encoding"),
        [("385", 0x181, "ept"), ("4294967300", 0x100000004, "npf"), ("8589934598", 0x200000006, "npf"),
         ("21474836484", 0x500000004, "npf"), ("562954248388614", 0x2000100000006, "pferr")],
    )  # fmt: skip
    def test_decimal_is_seen_where_hexadecimal_makes_no_sense(self, text, code, encoding):
        answer = read(text)
        assert (answer.best.code, answer.best.encoding, answer.best.spelled) == (code, encoding, "decimal")
        assert int(text, 16) in [r.code for r in answer.others]

    @pytest.mark.parametrize("text", ["181", "14", "83", "683", "10"])
    def test_where_both_are_possible_both_are_shown(self, text):
        answer = read(text)
        assert (answer.best.code, answer.best.spelled) == (int(text, 16), "hexadecimal")
        assert int(text) in [r.code for r in answer.others]

    def test_the_base_can_be_given(self):
        assert best("683", base=10) == (683, "ept")
        assert {r.code for r in read("385", base=16).readings} == {0x385}
        with pytest.raises(InputError, match="no decimal number"):
            read("dead", base=10)

    @pytest.mark.parametrize(
        ("text", "code"),
        [
            ("P|RSVD", 0x9),
            ("F", 0x10),
            ("P|W|U", 0x7),
            ("W", 2),
            ("U|F", 0x14),
            ("P|U|PK", 0x25),
            ("SGX|P", 0x8001),
        ],
    )
    def test_the_kernels_letters(self, text, code):
        assert best(text) == (code, "pf")

    def test_letters_that_no_fault_has_are_still_read(self):
        assert best("P|W|U|RSVD|F") == (0x1F, "pferr")
        assert best("P|U|0x100000000") == (0x100000005, "pferr")

    def test_a_letter_that_is_a_digit_too_is_shown_both_ways(self):
        assert 0xF in [r.code for r in read("F").others]
        assert read("f").best.code == 0xF

    @pytest.mark.parametrize(
        ("text", "code", "encoding"),
        [("WRITE|USER|bit50", 1 << 50 | 6, "pferr"), ("write | user", 6, "pferr"), ("READ|GVA_VALID", 0x81, "ept"),
         ("PFERR_WRITE_MASK | PFERR_GUEST_FINAL_MASK", 0x100000002, "pferr"), ("PRIVATE", 8, "memfault"),
         ("EPT_VIOLATION_ACC_WRITE|EPT_VIOLATION_GVA_IS_VALID|EPT_VIOLATION_GVA_TRANSLATED", 0x182, "ept")],
    )  # fmt: skip
    def test_names(self, text, code, encoding):
        assert best(text) == (code, encoding)

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "-5",
            "0x",
            "0x_1",
            "1_0",
            "٣",
            "WRIT",
            "WRITE|",
            "6.0",
            "bit64",
            "f" * 99,
            "0xg",
            "1" + "0" * 16,
        ],
    )
    def test_anything_else_is_refused(self, text):
        with pytest.raises(InputError):
            read(text)

    @pytest.mark.parametrize("text", [None, 6, b"6", ["6"]])
    def test_what_is_no_text_is_refused(self, text):
        with pytest.raises(InputError, match="it takes text"):
            read(text)

    def test_wrong_wishes_are_refused(self):
        with pytest.raises(InputError, match="encoding='x'"):
            read("6", "x")
        with pytest.raises(InputError, match="base=7"):
            read("6", base=7)
        with pytest.raises(InputError, match="encoding='x'"):
            meaning(6, "x")
        with pytest.raises(InputError, match="32 bits"):
            meaning(1 << 32, "pf")
        with pytest.raises(InputError, match="32 bits"):
            read("100000000", "pf")
        with pytest.raises(InputError, match="no bit is called 'READ'"):
            read("READ", "pf")

    @given(st.text(max_size=60))
    @settings(fixed, max_examples=300)
    def test_no_text_makes_it_stumble(self, text):
        refused = ""
        try:
            assert read(text).readings
        except InputError as error:
            refused = str(error)
        assert len(refused) < 500


class TestCutCodes:
    """Before 6.1 the tracepoint printed 32 bits of the code."""

    def test_the_whole_codes_that_it_may_have_been(self):
        assert cut_codes(0x14) == (0x100000014,)
        assert cut_codes(0x4) == (0x100000004,)
        assert cut_codes(0x6) == (0x100000006, 0x200000006)  # a walk counts as a write
        assert cut_codes(0x100000014) == ()

    def test_it_is_said(self):
        answer = read("14")
        assert answer.best.encoding == "npf"
        assert any("0x100000014" in note for note in answer.best.meaning.notes)

    def test_a_code_that_was_printed_whole_was_not_cut(self):
        reading = read("kvm_page_fault: vcpu 0 rip 0x0 address 0x0000000000000000 error_code 0x14").best
        assert (reading.encoding, reading.sure) == ("pf", Sure.VERY_LIKELY)


class TestEptBits:
    """Intel SDM vol. 3, table of exit qualifications for EPT violations."""

    @pytest.mark.parametrize("bit", [9, 10, 11])
    def test_what_paging_says_counts_only_for_a_translated_address(self, bit):
        assert part(0x182 | 1 << bit, "ept", bit).counts
        for code in (0x83, 0x2):
            assert not part(code | 1 << bit, "ept", bit).counts
        assert "advanced VM-exit information" in part(0x182 | 1 << bit, "ept", bit).means

    def test_what_they_do_not_say_is_told_where_they_count(self):
        assert any("supervisor-mode" in text for text in meaning(0x582, "ept").clear)
        assert any("allow execution" in text for text in meaning(0x582, "ept").clear)
        assert not any("supervisor-mode" in text for text in meaning(0x182, "ept").clear)
        assert not any("supervisor-mode" in text for text in meaning(0x483, "ept").clear)

    def test_user_execution_needs_mode_based_execute_control(self):
        assert "mode-based execute control" in part(0x1C4, "ept", 6).means
        assert meaning(0x1C4, "ept").page == "not mapped"
        assert any("mode-based" in note for note in meaning(0x1C4, "ept").notes)

    def test_nmi_unblocking_is_undefined_while_an_event_is_delivered(self):
        assert "undefined if an event was being delivered" in part(0x1182, "ept", 12).means

    def test_a_walk_is_told_from_the_access_by_a_bit_that_is_clear(self):
        assert any(text.startswith("bit 8 clear") for text in meaning(0x683, "ept").clear)
        assert (meaning(0x683, "ept").target, meaning(0x183, "ept").target) == ("page tables", "final")

    def test_no_linear_address(self):
        said = meaning(0x2, "ept")
        assert said.sentence == "a write without a linear address, on a page that is not mapped"
        assert any(text.startswith("bit 7 clear") for text in said.clear)
        assert said.target == ""
        assert not part(0x102, "ept", 8).counts

    @pytest.mark.parametrize(
        ("code", "page"),
        [(0x181, "not mapped"), (0x18A, "not mapped for writing"), (0x1A9, "mapped for that"),
         (0x19C, "not mapped for execution"), (0x1AC, "mapped for that"), (0x1A3, "not mapped for reading or writing")],
    )  # fmt: skip
    def test_how_the_page_is_mapped(self, code, page):
        assert meaning(code, "ept").page == page

    def test_reserved_bits_mean_nothing(self):
        assert not part(1 << 40 | 0x181, "ept", 40).counts


class TestNestedBits:
    """AMD APM vol. 2, section 15.25.6."""

    def test_the_user_bit_says_nothing_about_the_guests_mode(self):
        assert "nothing about the guest's mode" in part(0x100000006, "npf", 2).means

    def test_a_walk_counts_as_a_write(self):
        assert "walk" in part(0x200000006, "npf", 1).means
        assert part(0x100000006, "npf", 1).means == "the access was a write"

    def test_kvms_bits_are_not_the_cpus(self):
        assert not part(1 << 49 | 0x100000006, "npf", 49).counts
        assert part(1 << 49 | 0x100000006, "pferr", 49).counts

    def test_an_rmp_fault(self):
        assert says(0x180000007, "npf") == "a write, refused: the RMP check failed"

    def test_misconfiguration(self):
        assert "EPT misconfiguration" in says(8, "pferr")


class TestPageFaultBits:
    """Intel SDM vol. 3, section 4.7."""

    def test_the_reserved_bit_is_the_guests_own(self):
        assert "the guest's own" in part(0xB, "pf", 3).means
        assert "SPTE" not in part(0xB, "pf", 3).means

    def test_the_user_bit_is_the_mode(self):
        assert says(0x5, "pf").startswith("a user-mode read")
        assert says(0x1, "pf").startswith("a supervisor-mode read")
        assert "bit 2 clear: supervisor mode" in meaning(0x1, "pf").clear

    def test_a_protection_key(self):
        assert says(0x25, "pf").endswith("mapped, but a protection key forbids it")

    def test_under_shadow_paging_it_is_kvms(self):
        """The CPU walks KVM's tables there, in which a reserved bit marks MMIO (P|RSVD, with or without U and W)."""
        said = read(
            "kvm_page_fault: vcpu 0 rip 0xffffffff81000000 address 0xffffc90000000000 error_code 0xd"
        ).best.meaning
        assert said.sentence.endswith("which under shadow paging is how KVM marks MMIO")
        own = read("#PF: error_code(0x000b) - reserved bit violation").best.meaning
        assert own.sentence.endswith("in the guest's own page tables")


class TestEvents:
    def test_what_was_delivered_and_what_caused_the_exit(self):
        assert says(0x80000301, "intr") == "#DB (hardware exception, vector 1) caused the exit"
        assert says(0, "vectoring") == "no event was being delivered"
        assert says(0x80000603, "intr") == "#BP (software exception, vector 3) caused the exit"

    def test_bit_12_is_undefined_during_delivery(self):
        assert not part(0x80001301, "vectoring", 12).counts
        assert part(0x80001301, "intr", 12).counts

    def test_amds_form_has_the_error_code_above(self):
        assert says(0x6_80000B0E, "vectoring").endswith("with error code 0x6")


def test_intel_and_amd_report_the_same_fault():
    """The same hang, as two hosts showed it ("Deadlock due to EPT_VIOLATION", 2023)."""
    intel, amd = (read(text).best.meaning for text in ("0x683", "0x200000006"))
    assert (intel.target, intel.page) == (amd.target, amd.page) == ("page tables", "not mapped")


# Lines that people posted in public, with every code that they hold.
LINES = {
    "6.1 Intel": (
        "       CPU 5/KVM-4145    [002] .....    86.581928: kvm_page_fault: vcpu 5 rip 0x7f08a4602116 address"
        " 0x0000000113600002 error_code 0x181",
        [(0x181, "ept")],
    ),
    "new kvm_exit, an event": (
        "repro-1289 [019] d.... 140.314684: kvm_exit: vcpu 0 reason EXCEPTION_NMI rip 0x1 info1 0x0000000000004000"
        " info2 0x0000000000000000 intr_info 0x80000301 error_code 0x00000000",
        [(0x80000301, "intr")],
    ),
    "new kvm_exit, a violation while delivering": (
        "repro-1289 [019] d.... 140.314732: kvm_exit: vcpu 0 reason EPT_VIOLATION rip 0x1 info1 0x00000000000001aa"
        " info2 0x0000000080000301 intr_info 0x00000000 error_code 0x00000000",
        [(0x1AA, "ept"), (0x80000301, "vectoring")],
    ),
    "an intercepted #PF": (
        "kvm_exit: vcpu 0 reason EXCEPTION_NMI rip 0x1 info1 0x0000000000004000 info2 0x0000000000000000"
        " intr_info 0x80000b0e error_code 0x00000007",
        [(0x7, "pf"), (0x80000B0E, "intr")],
    ),
    "old AMD, wrapped": (
        "VCPU-0-61883   [078] ..... 72276.115679: kvm_page_fault: address\n84d000 error_code 4\n",
        [(0x4, "npf")],
    ),
    "old AMD, payloads": (
        "  kvm_exit:             reason EXIT_NPF rip 0xffffffffffbbe119 info\n    200000006 1ab000\n"
        "  kvm_nested_vmexit:    vcpu 0 reason npf rip 0xffffffffffbbe119 info1\n"
        "    0x0000000200000006 info2 0x00000000001ab000 intr_info 0x00000000\n    error_code 0x00000000\n"
        "  kvm_page_fault:       address 1ab000 error_code 6\n"
        "  kvm_nested_vmexit_inject: reason EXIT_NPF info1 200000006 info2 1ab000\n    int_info 0 int_info_err 0\n",
        [(0x200000006, "npf")],
    ),
    "old Intel": (
        " qemu-system-x86-23579 [005] 22018.775584: kvm_exit:  reason EPT_VIOLATION rip 0xfffff802987d6169 info 181 0\n"
        " qemu-system-x86-23579 [005] 22018.775584: kvm_nested_vmexit:    rip fffff802987d6169 reason EPT_VIOLATION"
        " info1 181 info2 0 int_info 0 int_info_err 0\n"
        " qemu-system-x86-23579 [005] 22018.775585: kvm_page_fault:       address febd0000 error_code 181\n"
        " qemu-system-x86-23579 [005] 22018.775596: kvm_inj_exception:    #UD (0x0)\n",
        [(0x181, "ept")],
    ),
    "quoted-printable, misconfiguration": (
        "      CPU 0/KVM  699876 [020] 18136.763707:                       kvm:kvm_e=\nxit:\n"
        "reason EPT_MISCONFIG rip 0xfffff8031964a727 info 0 0\n",
        [(0x8, "pferr")],
    ),
    "the walker's letters": (
        " qemu-system-x86-31218 [000] 159269.806544: kvm_mmu_pagetable_walk: addr 133025 pferr 10 F\n"
        " qemu-system-x86-31218 [000] 159269.806545: kvm_mmu_paging_element: pte a3 level 3\n"
        " qemu-system-x86-31218 [000] 159269.806546: kvm_mmu_walker_error: pferr 9 P|RSVD\n",
        [(0x10, "pf"), (0x9, "pf")],
    ),
    "Rust": (
        "[2024-12-12T06:43:33Z ERROR vmm::linux::vstate] Unexpected exit reason on vcpu run: MemoryFault { flags: 8,"
        " gpa: 4096, size: 4096 }",
        [(0x8, "memfault")],
    ),
    "flags alone": ("flags: 8", [(0x8, "memfault")]),
    "a VMCS dump": ("qualification=0x683 ", [(0x683, "ept")]),
    "QEMU": (
        "qemu-system-x86_64: warning: memory fault: GPA 0x4000000 size 0x1000 flags 0x8 kvm_convert_memory start"
        " 0x4000000 size 0x1000 shared_to_private",
        [(0x8, "memfault")],
    ),
    "the guest's oops": (
        "Oct 24 10:52:07 host1 microvm@vm1[15894]: [    0.414047] #PF: error_code(0x000b) - reserved bit violation",
        [(0xB, "pf")],
    ),
    "shadow paging": (
        "stable-4247    [007] .....   456.192867: kvm_page_fault: vcpu 0 rip 0x0 address 0x0000000000000000 error_code"
        " 0x10\nstable-4247    [007] .....   456.192868: kvm_inj_exception: #PF (0x11)\n",
        [(0x10, "pf"), (0x11, "pf")],
    ),
    "not KVM": (
        "[48232:36034161] reason: ept_violation\n[48232:36034161] guest-physical address = 0x7fc0000000\n"
        "[48232:36034161] exit qualification = 0x83\n",
        [(0x83, "ept")],
    ),
    "rip but no vcpu": (
        "kvm_page_fault: rip 0xffffffff8134c508 address 0xd0000000 error_code 0x181\nvcpu_match_mmio: gpa 0xd0000000"
        " Read GPA\n",
        [(0x181, "ept")],
    ),
    "wrapped after the event": (
        "              CPU-1365880 [038] 5559771.610942: kvm_exit:             \nreason EPT_VIOLATION rip"
        " 0xffffffffb0e9bed0 info 83 0\n              CPU-1365880 [038] 5559771.610942: kvm_page_fault:       \nvcpu"
        " 0 rip 0xffffffffb0e9bed0 address 0x000000016e5b2ff8 error_code 0x83\n",
        [(0x83, "ept")],
    ),
    "quoted in a mail": (
        "> > kvm_page_fault: vcpu 5 rip 0x7f08a4602116 address\n> > 0x0000000113600002 error_code 0x683\n",
        [(0x683, "ept")],
    ),
    "SNP, from 6.11": (
        "kvm_page_fault: vcpu 0 rip 0x0 address 0x0000000004000000 error_code 0x2000500000004",
        [(0x2000500000004, "pferr")],
    ),
    "a segfault": ("foo[12]: segfault at 0 ip 00007f sp 00007ffd error 14 in libc.so", [(0x14, "pf")]),
    "bpftrace": ("@pf[4294967300]: 52", [(0x100000004, "npf")]),
    "number and letters": ("9 P|RSVD", [(0x9, "pf")]),
    "bpftrace, code and address": ("@[386, 0xfee000b0]: 5", [(0x182, "ept")]),
    "bpftrace, pid and code": ("@[4145, 0x181]: 52", [(0x181, "ept")]),
    "bpftrace, a map": (
        "@n[CPU 0/KVM, 4294967300]: 9\n@n[CPU 1/KVM, 8589934598]: 3",
        [(0x100000004, "npf"), (0x200000006, "npf")],
    ),
    "Rust, a tuple": (
        "thread 'vcpu0' panicked: Unexpected exit: MemoryFault(8, 1048576, 4096)",
        [(0x8, "memfault")],
    ),
    # KVM_INTERNAL_ERROR_DELIVERY_EV: the event, exit 49 (EPT_MISCONFIG, whose qualification is undefined), address
    "QEMU, while a #PF was being delivered": (
        "KVM internal error. Suberror: 3\nextra data[0]: 0x0000000080000b0e\nextra data[1]: 0x0000000000000031\n"
        "extra data[2]: 0x0000000000000683\nextra data[3]: 0x000000007f809000\nextra data[4]: 0x0000000000000026\n",
        [(0x8, "pferr"), (0x80000B0E, "vectoring")],
    ),
    "QEMU, while an interrupt was being delivered, exit 32 (WRMSR)": (
        ">> KVM internal error. Suberror: 3\n>> extra data[0]: 0x000000008000002f\n>> extra data[1]: "
        "0x0000000000000020\n>> extra data[2]: 0x0000000000000f82\n>> extra data[3]: 0x000000000000004b\n",
        [(0x8000002F, "vectoring")],
    ),
    # KVM_INTERNAL_ERROR_EMULATION: flags 0, then exit 48 (EPT_VIOLATION) and its infos
    "QEMU, emulation failed after an EPT violation": (
        "KVM internal error. Suberror: 1\nextra data[0]: 0x0000000000000000\nextra data[1]: 0x0000000000000030\n"
        "extra data[2]: 0x0000000000000584\nextra data[3]: 0x0000000000000000\nextra data[4]: 0x0000000000000000\n"
        "extra data[5]: 0x0000000000000000\nemulation failure\nRAX=00000000bff13980 RBX=0000000000008101\n",
        [(0x584, "ept")],
    ),
    # flags 1: two words with the instruction come first (15 bytes, 48 0f ae 27 …)
    "QEMU, emulation failed, with the instruction": (
        "KVM internal error. Suberror: 1\nextra data[0]: 0x0000000000000001\nextra data[1]: 0x41c03127ae0f480f\n"
        "extra data[2]: 0x8b4865ca010fc489\nextra data[3]: 0x0000000000000031\nextra data[4]: 0x0000000000000000\n"
        "extra data[5]: 0x0000000000000000\nextra data[6]: 0x0000000000000000\nextra data[7]: 0x0000000000000000\n",
        [(0x8, "pferr")],
    ),
    # the same with AMD's numbers: exit 0x400 (NPF)
    "QEMU, emulation failed after an #NPF": (
        "KVM internal error. Suberror: 1\nextra data[0]: 0x0000000000000000\nextra data[1]: 0x0000000000000400\n"
        "extra data[2]: 0x000000010000000f\nextra data[3]: 0x00000000fed00000\nextra data[4]: 0x0000000000000000\n"
        "extra data[5]: 0x0000000000000000\n",
        [(0x10000000F, "npf")],
    ),
    "QEMU, two exceptions at once": (
        "KVM internal error. Suberror: 2\nextra data[0]: 80000008\nextra data[1]: 80000b08",
        [(0x80000008, "vectoring"), (0x80000B08, "intr")],
    ),
    "KVM's dump of a VMCB": (
        "[47175.219980] SVM: exit_code:          00000400\n[47175.220208] SVM: exit_info1:         0000000100000014\n"
        "[47175.220441] SVM: exit_info2:         00000000000fc000\n[47175.220684] SVM: exit_int_info:      00000000\n",
        [(0x100000014, "npf")],
    ),
    "KVM's dump of a VMCS": (
        "[ 2311.499069] kvm_intel: VMEntry: intr_info=800000ec errcode=00000000 ilen=00000002\n"
        "[ 2311.499070] kvm_intel: VMExit: intr_info=00000000 errcode=00000000 ilen=00000003\n"
        "[ 2311.499070] kvm_intel:         reason=00000030 qualification=0000000000000981\n"
        "[ 2311.499071] kvm_intel: IDTVectoring: info=800000ec errcode=00000000\n",
        [(0x981, "ept"), (0x800000EC, "vectoring")],
    ),
    "a dump of an EPT misconfiguration": ("reason=00000031 qualification=0000000000000d81", [(0x8, "pferr")]),
    "bhyve": (
        "vm exit[0]\n\treason\t\tVMX\n\trip\t\t0xffffffff80d5d3b6\n\texit_reason\t48 (EPT violation)\n"
        "\tqualification\t0x0000000000000181\n",
        [(0x181, "ept")],
    ),
    "a table of perf": (
        "   2.16%  reason EPT_VIOLATION rip 0xffffffff823ef54b info d82 0\n"
        "   2.87%  reason IO_INSTRUCTION rip 0xffffffff81b0759a info 3f80000 0\n",
        [(0xD82, "ept")],
    ),
    "trace-cmd report -R": (
        " <...>-4145 [002] 86.581928: kvm_page_fault:  vcpu_id=5 guest_rip=0x7f08a4602116 fault_address=0x113600002"
        " error_code=0x181",
        [(0x181, "ept")],
    ),
    # trace-cmd's own format shows the second info of any kernel; that of an EPT violation is no interruption's
    "an event that is being delivered, in the old format": (
        "CPU-5638 [034] 5446408.762620: kvm_exit: reason \nEPT_VIOLATION rip 0xfffff802057fee67 info 683 800000d1\n",
        [(0x683, "ept"), (0x800000D1, "vectoring")],
    ),
    "an intercepted #PF, in the old format": (
        "a.out-20024 [001] .... 2323301.154940: kvm_exit: reason EXCEPTION_NMI rip 0x1000 info 1000 80000b0e\n"
        "a.out-20024 [001] .... 2323301.154942: kvm_page_fault: address 1000 error_code 14\n",
        [(0x14, "pf"), (0x80000B0E, "intr")],
    ),
    "the fast path's letters": (
        "qemu-5786 [029] ..... 3602162.971194: fast_page_fault: vcpu 4 gva 20fe612 error_code F sptep 0000000011111111"
        " old 0x0 new 0 spurious 0 fixed 0",
        [(0x10, "pferr")],
    ),
    "the fast path's letters and bit 49": (
        "q-9 [003] ..... 100.000001: fast_page_fault: vcpu 0 gva 4000000 error_code P|W|U|0x2000100000000 sptep "
        "00000000abcdef12 old 0x600 new 0x602 spurious 0 fixed 1",
        [(0x2000100000007, "pferr")],
    ),
    "the fast path without a letter": (
        "fast_page_fault: vcpu 0 gva 1 error_code 0x2000100000000 sptep 1 old 0x1 new 1 spurious 1 fixed 0",
        [(0x2000100000000, "pferr")],
    ),
    "the fast path's letters, of a line that was cut": (
        "error_code P|W|U|0x2000100000000",
        [(0x2000100000007, "pferr")],
    ),
    "the fast path without a flag": (
        "fast_page_fault: vcpu 0 gva 0 error_code  sptep 1 old 0x1 new 1 spurious 1 fixed 0",
        [(0, "pferr")],
    ),
    "a VMPL's fault": (
        "qemu-system-x86-310143 [064] 28714.545983: kvm_exit: reason EXIT_NPF rip 0x0 info 1680000007 1729a1000",
        [(0x1680000007, "npf")],
    ),
    "an RMP fault": (
        "kvm_rmp_fault: vcpu 0 gpa 0000000001000000 pfn 0x12340 error_code 0x580000007 rmp_level 1 psmash_ret 0",
        [(0x580000007, "npf")],
    ),
    "the host's own RMP fault": (
        "#PF: supervisor write access in kernel mode\n#PF: error_code(0x80000003) - RMP violation\n"
        "Oops: Oops: 0003 [#1] SMP NOPTI\n",
        [(0x80000003, "pf")],
    ),
    "a trigger of ftrace": (
        "{ error_code: 0x683, address: 0x54200f80 } hitcount:       1204", [(0x683, "ept")]
    ),
    "LTTng": (
        "[13:36:05.386123456] (+0.000001234) host kvm_x86_page_fault: { cpu_id = 3 }, { fault_address = 4276093104,"
        " error_code = 386 }",
        [(0x182, "ept")],
    ),
    "LTTng, an exit": (
        "[13:36:05.386] (+?.?) host kvm_x86_exit: { cpu_id = 3 }, { exit_reason = 48, guest_rip = 18446744071578845184,"
        " isa = 1, info1 = 386, info2 = 0 }",
        [(0x182, "ept")],
    ),
    "nested, as old kernels print": (
        " kvm_nested_vmexit: rip: 0x00000000004004d0 reason: EXIT_NPF ext_inf1: 0x0000000100000006 ext_inf2:"
        " 0x0000000000641000 ext_int: 0x00000000 ext_int_err: 0x00000000",
        [(0x100000006, "npf")],
    ),
    "an exit by its number": ("kvm_exit: reason 48 rip 0xffffffff81000000 info 181 0", [(0x181, "ept")]),
    "an exit without a name": (
        "kvm_exit: vcpu 0 reason UNKNOWN (49) rip 0xffffffff81000000 info1 0x0 info2 0x0", [(0x8, "pferr")]
    ),
    "a debugger": ("(gdb) p/x vcpu->arch.exit_qualification\n$1 = 0x181", [(0x181, "ept")]),
    "drgn": (
        "{ .addr = (const gpa_t)4276093104, .error_code = (const u64)4294967302, .is_private = false }",
        [(0x100000006, "npf")],
    ),
    "Python": ("{'exit_reason': 48, 'exit_qualification': 386, 'gpa': 4276093104}", [(0x182, "ept")]),
    "as manuals write numbers": ("Exit qualification 00000181h", [(0x181, "ept")]),
    "VirtualBox": ("HM: EPT violation uExitQual=0x182 GCPhys=0xfee000b0", [(0x182, "ept")]),
    "a name in one word": ("NPF, ErrorCode=0x100000006, GuestPhysicalAddress=0xfee00000", [(0x100000006, "npf")]),
    "Linux's own, traced": (
        "systemd-1 [001] d.... 100.0: page_fault_user: address=0x7f0000 ip=0x7f1 error_code=0x6", [(0x6, "pf")]
    ),
    "Rust, an internal error": (
        "InternalError { suberror: 1, ndata: 6, data: [0, 1024, 4294967316, 720896, 0, 0] }", [(0x100000014, "npf")]
    ),
    "Xen": ("(XEN) d1v0 EPT violation 0x1aa (-w-/r-x) gpa 0x000000fee000b0 mfn 0xffffffffffffffff", [(0x1AA, "ept")]),
    "a PFEC": ("FAIL: PFEC: 0x9", [(0x9, "pf")]),
    "by field, as trace-cmd report -R prints": (
        "CPU 5/KVM-4145 [002] 86.581928: kvm_page_fault: vcpu_id=5 guest_rip=0x7f08 fault_address=4620025858"
        " error_code=385", [(0x181, "ept")],
    ),
    "perfetto": (
        "kvm_page_fault { vcpu_id: 5 guest_rip: 139674 fault_address: 4620025858 error_code: 385 }", [(0x181, "ept")]
    ),
    "arguments of the function": (
        "  2)               |  kvm_mmu_page_fault(vcpu=0xffff8881, cr2_or_gpa=0xfee000b0, error_code=0x100000006) {",
        [(0x100000006, "pferr")],
    ),
    "a probe's arguments": (
        "p_kvm_mmu_page_fault_0: (kvm_mmu_page_fault+0x0/0x5f0 [kvm]) arg2=0xfee000b0 arg3=0x100000006",
        [(0x100000006, "pferr")],
    ),
    "crash": (
        "crash> struct kvm_page_fault ffffc90000b3fd00\nstruct kvm_page_fault {\n  addr = 4294967296,\n"
        "  error_code = 562954248388612,\n  is_private = true,", [(0x2000100000004, "pferr")],
    ),
    "a member": ("(gdb) p/x fault->error_code = 0x100000006", [(0x100000006, "pferr")]),
    "by hand": ("vcpu=5 rip=7f08a4602116 gpa=113600002 ec=181", [(0x181, "ept")]),
    "by hand, err": ("pf: gpa 0x113600002 err 0x181 vcpu 5", [(0x181, "ept")]),
    "by hand, code": ("page fault at gpa 113600002 code 181", [(0x181, "ept")]),
    "by hand, decimal": ("gpa=4620025858 error=8589934598", [(0x200000006, "npf")]),
    "memory fault in JSON": ('{"flags":8,"gpa":4096,"size":4096}', [(8, "memfault")]),
    "memory fault, a script": ("exit_reason 39 memory_fault.flags 0x8 gpa 0x1000 size 0x1000", [(8, "memfault")]),
    "memory fault in words": ("KVM_EXIT_MEMORY_FAULT: addr 0x80000000 size 0x1000 private", [(8, "memfault")]),
    "memory fault by name": ("memory fault at gpa=0x1000 flags=KVM_MEMORY_EXIT_FLAG_PRIVATE", [(8, "memfault")]),
    "memory fault, a selftest": (
        "  x86_64/private_mem_kvm_exits_test.c:67: run->memory_fault.flags == KVM_MEMORY_EXIT_FLAG_PRIVATE\n"
        "  0 != 0x8 (run->memory_fault.flags != KVM_MEMORY_EXIT_FLAG_PRIVATE)", [(0, "memfault")],
    ),
    "memory fault, gdb": (
        "(gdb) p run->memory_fault\n$1 = {flags = 8, gpa = 4294967296, size = 4096}", [(8, "memfault")]
    ),
    "VirtualBox's log": ("u64ExitQual=0x181 uExitReason=48", [(0x181, "ept")]),
    "an exit by its fields": (
        "kvm_exit: exit_reason=48 guest_rip=0x1000 isa=1 info1=386 info2=0 intr_info=0 error_code=0 vcpu_id=5",
        [(0x182, "ept")],
    ),
    "an exit by its fields, AMD": (
        "kvm_exit: exit_reason=1024 guest_rip=0x1000 isa=2 info1=4294967302 info2=4276093104", [(0x100000006, "npf")]
    ),
    "perf trace, an exit": (
        "kvm:kvm_exit(exit_reason: 48, guest_rip: 4096, isa: 1, info1: 386, info2: 0)", [(0x182, "ept")]
    ),
    "the host's and the guest's": (
        "kvm_nested_page_fault: address 0x1ab000 host_error_code 0x200000006 guest_error_code 0x4",
        [(0x200000006, "npf"), (0x4, "pf")],
    ),
    "UEFI": (
        "!!!! X64 Exception Type - 0E(#PF - Page-Fault)  CPU Apic ID - 00000000 !!!!\n"
        "ExceptionData - 0000000000000002  I:0 R:0 U:0 W:1 P:0", [(0x2, "pf")],
    ),
    "Rust's x86_64": ("PAGE FAULT Accessed Address: 0xfee00000 Error Code: PageFaultErrorCode(0x2)", [(0x2, "pf")]),
    "Rust's names": ("Error Code: PROTECTION_VIOLATION | CAUSED_BY_WRITE | USER_MODE", [(0x7, "pf")]),
    "Linux's names": ("error_code: X86_PF_WRITE | X86_PF_USER", [(0x6, "pf")]),
    "names of KVM's": ("Unhandled page fault: error code PRESENT|WRITE|USER", [(0x7, "pferr")]),
    "an oops of a host with SNP": (
        "BUG: unable to handle page fault for address: ff11000f7b600000\n#PF: supervisor write access in kernel mode\n"
        "#PF: error_code(0x80000003) - RMP violation\nOops: 0003 [#1] PREEMPT SMP NOPTI", [(0x80000003, "pf")],
    ),
    # a TDX guest: rip is shown as 0 and the linear address is hidden; a private access is traced as a write (2)
    "TDX": (
        "q-1 [003] ..... 100.0: kvm_page_fault: vcpu 0 rip 0x0 address 0x0000000012345000 error_code 0x2",
        [(0x2, "tdx")],
    ),
    "TDX, with the exit": (
        "q-1 [003] d.... 100.0: kvm_exit: vcpu 0 reason EPT_VIOLATION rip 0x0 info1 0x0000000000000003 info2"
        " 0x0000000000000006 intr_info 0x00000000 error_code 0x00000000 requests 0x0000000000000000\n",
        [(0x3, "tdx")],
    ),
    "TDX, a fetch, which KVM would trace as a write": (
        "q-1 [003] d.... 100.0: kvm_exit: vcpu 0 reason EPT_VIOLATION rip 0x0 info1 0x0000000000000004 info2"
        " 0x0000000000000006 intr_info 0x00000000 error_code 0x00000000 requests 0x0000000000000000\n",
        [(0x4, "tdx")],
    ),
    # TDG.MEM.PAGE.ACCEPT of a page that is not there: qualification 0, extended qualification type 1
    "TDX, a page to accept": (
        "q-1 [003] d.... 100.0: kvm_exit: vcpu 0 reason EPT_VIOLATION rip 0x0 info1 0x0000000000000000 info2"
        " 0x0000000000000001 intr_info 0x00000000 error_code 0x00000000 requests 0x0000000000000000\n",
        [(0x0, "tdx")],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LINES)
def test_a_pasted_line_is_read(name):
    text, codes = LINES[name]
    assert all_of(text) == codes


def test_the_place_makes_it_certain():
    for name in ("old Intel", "old AMD, payloads", "Rust", "the guest's oops", "not KVM"):
        assert read(LINES[name][0]).best.sure == Sure.CERTAIN, name
    assert read(LINES["6.1 Intel"][0]).best.sure == Sure.VERY_LIKELY


def test_a_tdx_guests_fault_may_be_shadow_pagings_and_is_told_with_its_reason():
    answer = read(LINES["TDX"][0])
    assert answer.best.sure == Sure.LIKELY
    assert "TDX" in answer.best.why
    assert "rip 0" in answer.best.why
    other = next(r for r in answer.others if r.encoding == "pf")
    assert (other.sure, other.code) == (Sure.POSSIBLE, 2)
    assert "private memory" in answer.best.meaning.sentence
    # with a rip, or with a fetch (a TDX guest fetches from private memory only), it is shadow paging's
    for line in ("rip 0x1000 address 0x5000 error_code 0x2", "rip 0x0 address 0x5000 error_code 0x14"):
        assert read(f"kvm_page_fault: vcpu 0 {line}").best.encoding == "pf"
    # kernels that cut the code show no rip of a protected guest
    assert read("kvm_page_fault: address 5000 error_code 2").best.encoding != "tdx"


@pytest.mark.parametrize("bit", range(7, 13))
def test_no_tdx_guests_qualification_has_bits_that_the_tdx_module_clears(bit):
    """Source: intel/tdx-module `src/td_dispatcher/tdx_td_dispatcher.c`, tdx_ept_violation_exit_to_vmm()."""
    line = f"kvm_page_fault: vcpu 0 rip 0x0 address 0x800012345000 error_code {1 << bit | 2:#x}"
    assert "tdx" not in {r.encoding for r in (read(line).best, *read(line).others)}
    said = meaning(1 << bit | 2, "tdx")
    assert [(part.bit.bit, part.counts) for part in said.parts] == [(1, True), (bit, False)]
    assert said.sentence.startswith("a write by a TDX guest")


def test_a_tdx_guests_call_is_no_access():
    said = read(LINES["TDX, a page to accept"][0]).best
    assert said.sure == Sure.VERY_LIKELY
    assert said.meaning.sentence.startswith("a call of a TDX guest on a private page, to accept it")
    assert read("kvm_page_fault: vcpu 0 rip 0x0 address 0x5000 error_code 0x0").best.encoding == "pf"


def test_what_an_internal_error_says_of_the_fault_is_noted():
    emulation = read(LINES["QEMU, emulation failed after an EPT violation"][0]).best.meaning
    assert any("could not" in note for note in emulation.notes)
    delivery = read(LINES["QEMU, while a #PF was being delivered"][0]).best.meaning
    assert any("while it delivers an event" in note for note in delivery.notes)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("error: kvm run failed Bad address", "EFAULT"),
        ("KVM: unknown exit reason 39", "KVM_EXIT_MEMORY_FAULT"),
        ("KVM internal error. Suberror: 1\nemulation failure\nRAX=ffff8000fee000f0", "could not emulate"),
        ("KVM internal error. Suberror: 1\nextra data[0]: 2\nextra data[1]: 4\nextra data[2]: 0", "emulate"),
        ("------ spte 0x1344a0827 level 4.", "page-table entries"),
        ("tdx: Unexpected #VE: 48", "TDX"),
        ("kvm_intel: Guest access before accepting 0x7ff65000 on vCPU 0", "accepted"),
        ("qemu: Convert non guest_memfd backed memory region (0xfeb00000 ,+ 0x1000) to private", "guest_memfd"),
        ("kvm_convert_memory start 0x40000000 size 0x200000 private_to_shared", "a conversion"),
        ("EPT_VIOLATION    1192184    75.18%     4.40%      0.77us", "how often"),
        ("         1,192,184      kvm:kvm_page_fault", "counts"),
        ("WARNING: CPU: 3 PID: 4711 at arch/x86/kvm/mmu/mmu.c:6001 kvm_mmu_page_fault+0x3a1/0x4d0", "no root"),
        ("kvm_exit: vcpu 0 reason HLT rip 0x1 info1 0x0 info2 0x0", "no fault's"),
        ("Unhandled exit: EPT_MISCONFIG at gpa 0xfee00000", "has no code"),
        ("SW_EXITINFO1 0x100000006", "GHCB"),
        ("kvm_vmgexit_enter: vcpu 0, exit_reason 0x80000010, exit_info1 0x100, exit_info2 0x0", "VMGEXIT"),
        ("kvm_amd: SEV-ES guest requested termination: 0x0:0x1", "ends itself"),
        ("kvm: kvm [4145]: zapping shadow pages for mmio generation wraparound", "generation"),
        ("SEV-SNP: CPU 0: RMPUPDATE failed for PFN 40fdf36, pg_level: 1, ret: 3", "the RMP"),
        ("kvm_async_pf_not_present: token 0x1234 gva 0x7f0000", "asynchronous"),
        ("kvm: ../accel/kvm/kvm-all.c:2300: kvm_run failed: Bad address", "EFAULT"),
        ("reason=80000021 qualification=0000000000000000", "no page fault"),
        ("*** STOP: 0x00000050 (0xFFFFF8A00B2D7000, 0x0000000000000001, 0xFFFFF80002CD5C3A, 0x0)", "Windows"),
        ("PAGE_FAULT_IN_NONPAGED_AREA (50)\nInvalid system memory was referenced.\nArg1: ffffd0000f000000", "Windows"),
        ("BugCheck 3B, {c0000005, fffff80002cd5c3a, fffff88005a0b0f0, 0}", "Windows"),
        ("The bugcheck was: 0x00000050 (0xffff9d80a1c3e000, 0x0000000000000002, 0xfffff8055e, 0x2).", "Windows"),
        ("BSOD: CRITICAL_PROCESS_DIED", "Windows"),
        ("fault code = supervisor write data, page not present", "FreeBSD"),
        ("KVM: entry failed, hardware error 0x80000021", "refused to enter"),
        ("SEAMCALL (0x000000000000000f) failed: 0xc0000b0800000001 RCX 0x0 RDX 0x400", "TDX module"),
        ("kvm_intel: TDH_MEM_PAGE_AUG failed: 0xc0000b0000000001", "TDX module"),
        ("AMD-Vi: Event logged [RMP_PAGE_FAULT vmg_tag=0x0000, gpa=0x740b8784, flags=0x0020]", "IOMMU"),
        ("DMAR: [DMA Read NO_PASID] Request device [03:00.0] fault addr 0xffb00000 [fault reason 0x06]", "IOMMU"),
        ("SEV-SNP: PFN: 0x56600, [0x80000000000007fd - 0x0000000000000000]", "RMP"),
        ("SEV-SNP: RMPEntry paddr 0x1001ea000 [assigned=1 immutable=1 pagesize=0 gpa=0x2000000001]", "RMP"),
        ("SEV: Unexpected RMP fault for non-private GPA 0x4000000", "cannot explain"),
        ("watchdog: BUG: soft lockup - CPU#3 stuck for 22s! [CPU 0/KVM:4145]", "does not go on"),
        ("Memory failure: 0x12345: Sending SIGBUS to CPU 0/KVM:4145 due to hardware memory corruption", "poisoned"),
        ("handle_mmio_page_fault: addr:fee000b0 gfn fee00 access a0", "this event has none"),
        ("SEV: Unsupported exit-code 0x404 in #VC exception (IP: 0x577566600c3b)", "not validated"),
        ("hvm_hap_nested_page_fault: NPF violation gpa 0xf0000 npfec 0x5", "Xen"),
        ("Unhandled exit reason: KVM_EXIT_MEMORY_FAULT", "(39)"),
        ("  Wanted KVM_EXIT_HYPERCALL (3), got KVM_EXIT_MEMORY_FAULT (39)", "(39)"),
        ("# KVM exit reason: 39", "(39)"),
        ("memory fault exit at 0x80000000", "private or shared"),
        ("vcpu_handle_exit: exit 48 prev=48", "number of the exit"),
        ("Error: KVM exit reason: 5", "came back to user space"),
        ("hv_vcpu_run: HV_EXIT_REASON_EXCEPTION syndrome 0x93c08006", "Arm"),
        ("WHPX: Unexpected VP exit code 4", "Microsoft"),
        ("Hyper-V: 'vm1' has encountered a fatal error. ErrorCode0: 0x1A, ErrorCode1: 0x0", "another hypervisor"),
        ("kvm [3413]: vcpu0, guest rIP: 0xffffffff81044a74 unhandled wrmsr: 0xc2 data 0xffff", "MSR"),
        ("00000000: 0400 0000 0100 0000 0000 0000 0000 0000  ................", "dump of memory"),
        ("0x6 83", "blanks between digits"),
        ("WARNING in kvm_mmu_page_fault", "a place"),
        ("KASAN: slab-use-after-free Read in kvm_tdp_mmu_map", "a place"),
        ("traps: qemu-system-x86[4145] general protection fault ip:55 sp:7f error:0", "#GP"),
        ("error: kvm run failed Input/output error", "EIO"),
        ("       0xfee000b0:W       12    10.00%    10.00%      0.57us", "how often"),
        (" kvm_exit(NPF)                     52000   49.0    999", "how often"),
        ("run->memory_fault.flags == KVM_MEMORY_EXIT_FLAG_PRIVATE\n==== Test Assertion Failure ====", "expected"),
        ("kvm_amd: exit_code:          ffffffff\nkvm_amd: exit_info1:         0000000000000000", "no page fault"),
    ],
)  # fmt: skip
def test_a_line_without_a_code_is_refused_with_its_own_reason(line, reason):
    with pytest.raises(InputError, match="no code in this line") as caught:
        read(line)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("line", "gpa"),
    [("kvm_page_fault: vcpu 5 rip 0x7f08a4602116 address 0x0000000113600002 error_code 0x181", 0x113600002),
     ("kvm_page_fault: address febd0000 error_code 181", 0xFEBD0000),
     ("kvm_exit: reason EXIT_NPF rip 0x0 info 1680000007 1729a1000", 0x1729A1000),
     ("kvm_exit: vcpu 0 reason npf rip 0xfffff info1 0x000000010000000d info2 0x00000000fee000b0", 0xFEE000B0),
     ("SVM: exit_info1: 0000000100000014\nSVM: exit_info2:         00000000000fc000", 0xFC000),
     ("exit qualification = 0x83\nguest-physical address = 0x7fc0000000", 0x7FC0000000),
     ("kvm:kvm_page_fault(vcpu_id: 5, guest_rip: 1, fault_address: 4620025858, error_code: 385)", 0x113600002),
     ("KVM internal error. Suberror: 3\nextra data[0]: 80000b0e\nextra data[1]: 31\nextra data[2]: 683\n"
      "extra data[3]: 7f809000\nextra data[4]: 26", 0x7F809000),
     # user space and debuggers print decimal numbers without saying so; the kernel does not
     ("MemoryFault { flags: 0, gpa: 4276092928, size: 4096 }", 0xFEE00000),
     ("(gdb) p run->memory_fault\n$1 = {flags = 8, gpa = 4294967296, size = 4096}", 0x100000000),
     ('{"flags":8,"gpa":4096,"size":4096}', 0x1000),
     ("kvm_handle_memory_fault gpa 80000000 flags 8", 0x80000000),
     ("kvm_page_fault { fault_address: 4620025858 error_code: 385 }", 0x113600002),
     ("kvm_page_fault.error_code,addr ffffc90000b3fd00\n  error_code = 0x4,\n  addr = 0x100000000,", 0x100000000),
     ("kvm_mmu_page_fault(vcpu=0xffff8881, cr2_or_gpa=0xfee000b0, error_code=0x100000006)", 0xFEE000B0),
     ("kvm_exit: exit_reason=1024 guest_rip=0x1000 isa=2 info1=4294967302 info2=4276093104", 0xFEE000B0),
     ("exitcode\t0x400\n\texitinfo1\t0x100000006\n\texitinfo2\t0xfee000b0", 0xFEE000B0),
     ("0x181", None), ("kvm_exit: reason EPT_VIOLATION rip 0x1 info 181 0", None)],
)  # fmt: skip
def test_the_address_of_a_line_is_found(line, gpa):
    assert address(line) == gpa


def test_the_code_in_a_maps_key_is_found():
    assert (map_code("385").code, map_code("0xffffffff8134c508, 385").code) == (0x181, 0x181)
    assert map_code("CPU 0/KVM") is None
    assert map_code("address: 0x00000000fee000b0, error_code: 386, vcpu_id:          3").code == 0x182


def test_the_walkers_request_is_no_fault():
    answer = read(LINES["the walker's letters"][0])
    assert any("no fault yet" in note for note in answer.best.meaning.notes)
    assert not answer.more[0].best.meaning.notes


@pytest.mark.parametrize(
    "line",
    ["@pf[CPU 0/KVM]: 52", "kvm_entry: vcpu 0, rip 0x1", "kvm_mmio: mmio read len 4 gpa 0xd0000000 val 0x74726976",
     "------ spte = 0x8913827 level = 2, rsvd bits = 0xffff000000000000", "kvm_page_fault: vcpu 0", "a b c"],
)  # fmt: skip
def test_a_line_without_a_code_is_refused(line):
    with pytest.raises(InputError, match="no code in this line"):
        read(line)


class TestExplain:
    """From the exit on: AMD's code as it is, Intel's translated."""

    @pytest.mark.parametrize(
        ("code", "handed"),
        [(0x181, 0x100000004), (0x182, 0x100000002), (0x582, 0x100000002), (0xF82, 0x100000002),
         (0x184, 0x100000010), (0x1AA, 0x100000003), (0x781, 0x100000004), (0x683, 0x200000006)],
    )  # fmt: skip
    def test_a_qualification_goes_through_its_handler(self, code, handed):
        told = explain(code, revision="v6_12", source="ept")
        assert told.outcome.handled.fault.error_code == handed
        first, second = told.records
        assert (first.step, first.before, first.after) == ("handle_ept_violation", code, handed)
        assert (second.step, second.before) == ("kvm_mmu_page_fault", handed)

    def test_an_snp_guests_encrypted_access_is_private(self):
        def private(**more):
            told = explain(0x500000004, vm_type="snp", revision="v6_12", **more)
            return told.outcome.handled.fault.is_private, told.outcome.handled.fault.error_code

        assert private(source="npf") == (True, 0x2000500000004)
        assert private() == (False, 0x500000004)

    def test_a_trust_domains_private_access_counts_as_a_write(self):
        told = explain(0x1, 0x100000000, revision="v7_3", source="tdx")
        assert told.outcome.handled.fault.error_code == 1 << 49 | 2
        shared = explain(0x2, 1 << 47 | 0x1000, revision="v7_3", source="tdx").outcome.handled.fault
        assert (shared.error_code, shared.is_private) == (2, 0)

    def test_a_misconfiguration_is_a_bare_reserved_bit(self):
        assert explain(0, source="misconfig").records[1].before == 8

    def test_a_guests_page_fault_is_shadow_pagings(self):
        told = explain(0x6, 0x7000, source="pf")
        assert not told.outcome.handled.fault.is_tdp
        assert told.records[0].step == "kvm_handle_page_fault"
        assert explain(0x100000006, source="pf", revision="v6_12").records[0].after == 6

    def test_an_exit_that_is_settled_without_the_mmu(self):
        told = explain(0, source="misconfig", aux_flag=1)
        assert [r.step for r in told.records] == ["handle_ept_misconfig"]
        assert not told.outcome.handled.called
        assert "fast-MMIO" in told.records[0].why

    def test_the_handlers_inputs_can_be_set(self):
        told = explain(0xC4 | 0x100, revision="v7_3", source="ept", mbec=1)
        assert told.records[0].after & 1
        assert not explain(0xC4 | 0x100, revision="v7_3", source="ept").records[0].after & 1
        with pytest.raises(InputError, match="mbec=2"):
            explain(1, source="ept", mbec=2)

    def test_without_a_source_nothing_comes_first(self):
        assert [r.step for r in explain(0x683).records] == ["kvm_mmu_page_fault"]

    def test_what_is_given_is_told_from_what_is_found(self):
        told = explain(6, vm_type="sw-protected", private=True)
        assert "given: the page-fault handler answers FIXED" in told.report()
        assert "user space declared the page private" in told.report()
        assert "given" not in str(told)

    def test_wrong_sources_are_refused(self):
        with pytest.raises(InputError, match="source='x'"):
            explain(6, source="x")
        with pytest.raises(InputError, match="no trust domains"):
            explain(6, source="tdx", revision="v6_12")


class TestPublicFunctions:
    @pytest.mark.parametrize("code", ["x", None, 1.5, True, [], b"6", -1, 1 << 64, 10**400])
    def test_a_code_that_is_no_u64_is_an_input_error(self, code):
        for function in (kvm_pf.decode, kvm_pf.describe):
            with pytest.raises(InputError) as caught:
                function(code)
            assert len(str(caught.value)) < 200

    @pytest.mark.parametrize("names", [6, None, b"WRITE", ["WRITE"], "bit" + "9" * 5000])
    def test_names_that_are_no_text_are_an_input_error(self, names):
        with pytest.raises(InputError):
            kvm_pf.encode(names)

    @pytest.mark.parametrize("table", ["ept", None, 5, [1]])
    def test_a_table_that_is_none_is_an_input_error(self, table):
        for function in (kvm_pf.decode, kvm_pf.describe):
            with pytest.raises(InputError, match="table of bits"):
                function(6, table)

    def test_numbers_of_numpy_are_numbers(self):
        import numpy as np

        assert kvm_pf.describe(np.uint64(1 << 63 | 2)) == "WRITE|bit63"


def test_the_new_tables_stand_where_the_kernel_and_the_manuals_have_them():
    # KVM_MEMORY_EXIT_FLAG_PRIVATE is 1 << 3; VM-exit interruption information: SDM vol. 3
    assert [(row.bit, row.name) for row in MEMORY_FAULT] == [(3, "PRIVATE")]
    assert [row.bit for row in EVENT] == [11, 12, 31]
    assert set(PFERR_LETTERS.values()) <= {row.name for row in PFERR}
    assert {row.bit for row in EPT} == set(range(17))


@pytest.mark.parametrize(
    "text",
    [
        "-14",
        "EFAULT",
        "errno 14",
        "KVM_RUN returned -14",
        "error (14)",
        "KVM_RUN: Bad address",
        "VcpuRun(Error(14))",
        'RunVcpu(Os { code: 14, kind: Uncategorized, message: "Bad address" })',
    ],
)
def test_efault_has_the_next_step_of_qemus_line_however_it_is_written(text):
    with pytest.raises(InputError) as qemu:
        read("error: kvm run failed Bad address")
    with pytest.raises(InputError) as found:
        read(text)
    assert str(qemu.value).partition("; ")[2] in str(found.value)
    assert "record kvm_page_fault and kvm_userspace_exit" in str(found.value)


def test_other_errors_say_what_they_are_and_unknown_ones_nothing():
    """Linux `arch/x86/kvm/mmu/mmu.c`, kvm_handle_error_pfn() (v6.12): EHWPOISON is a poisoned page."""
    with pytest.raises(InputError, match="EHWPOISON: the host's page is poisoned"):
        read("-133")
    with pytest.raises(InputError, match="a negative number is no code"):
        read("-38")


@pytest.mark.parametrize(
    ("text", "exit_"),
    [("39", "KVM_EXIT_MEMORY_FAULT"), ("0x27", "KVM_EXIT_MEMORY_FAULT"), ("48", "EPT_VIOLATION"), ("1024", "#NPF"),
     ("27", ""), ("0x39", ""), ("14", "")],
)  # fmt: skip
def test_a_number_that_is_an_exits_reason_says_so(text, exit_):
    """KVM_EXIT_MEMORY_FAULT 39: Linux `include/uapi/linux/kvm.h`; 48, 0x400: `vmx.h`, `svm.h` of uapi/asm (v6.12)."""
    said = read(text).exit
    assert said.startswith(exit_) if exit_ else said == ""
    assert not read(text, "pferr").exit
