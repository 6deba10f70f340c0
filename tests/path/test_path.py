# SPDX-License-Identifier: GPL-2.0-only
"""The fault path step by step, with outcomes reasoned by hand; the curated cases (test_cases) cover the rest of it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvm_pf import bits, mmio, spte, state
from kvm_pf.bits import EPT, PFERR, decode, describe, encode
from kvm_pf.common.errors import InputError
from kvm_pf.revisions import REVISIONS, get
from kvm_pf.run import watch
from kvm_pf.run.inputs import case_state, case_values
from kvm_pf.run.watch import explain

u64 = st.integers(0, 2**64 - 1)
fixed = settings(derandomize=True, deadline=None)

GPA = 0x100000000
MMIO_EPT_NOW = 0x1000000AE  # gfn 0x100000, value 6, generation 0x15
PRESENT = 1 << 11


def fault(error_code=0, gpa=GPA, revision="posted", **more):
    return explain(error_code, gpa, revision=revision, **more).outcome


def lines(explanation):
    """The explanation's lines without its title, each with single blanks."""
    return [" ".join(line.split()) for line in str(explanation).splitlines()[1:]]


class TestBits:
    def test_every_bit_stands_once_in_its_table_lowest_first(self):
        for table in (PFERR, EPT):
            places = [row.bit for row in table]
            assert places == sorted(set(places))
            names = [row.name for row in table if row.name]
            assert len(names) == len(set(names))

    def test_every_bit_says_who_sets_it_what_it_means_and_where_that_was_read(self):
        for row in (*PFERR, *EPT):
            assert row.means
            assert row.source.startswith(("Linux `", "mail <", "Intel SDM"))
            assert row.since in ("", *REVISIONS)

    @pytest.mark.parametrize(
        ("name", "bit"),
        [
            ("PRESENT", 0), ("WRITE", 1), ("USER", 2), ("RSVD", 3), ("FETCH", 4), ("PK", 5), ("SS", 6), ("SGX", 15),
            ("GUEST_RMP", 31), ("GUEST_FINAL", 32), ("GUEST_PAGE", 33), ("GUEST_ENC", 34), ("GUEST_SIZEM", 35),
            ("GUEST_VMPL", 36), ("IMPLICIT_ACCESS", 48), ("PRIVATE_ACCESS", 49),
        ],
    )  # fmt: skip
    def test_a_named_bit_of_the_error_code_is_where_the_kernel_has_it(self, name, bit):
        assert encode(name) == 1 << bit
        constant = f"PFERR_{name}" + ("" if bit in (48, 49) else "_MASK")
        assert getattr(bits, constant) == 1 << bit

    def test_masks_of_several_bits(self):
        assert bits.PFERR_SYNTHETIC_MASK == 0x3000000000000
        assert bits.PFERR_NESTED_GUEST_PAGE == 0x200000003
        assert bits.EPT_VIOLATION_RWX_MASK == 0x38
        assert bits.EPT_VIOLATION_PROT_MASK == 0x78

    def test_masks_and_labels_of_rows(self):
        known, unknown = decode(1 << 49 | 1 << 50)
        assert (known.mask, known.label) == (1 << 49, "PRIVATE_ACCESS")
        assert (unknown.mask, unknown.label, unknown.set_by) == (1 << 50, "bit 50", bits.NOBODY)
        nameless = next(row for row in PFERR if not row.name)
        assert nameless.label == f"bit {nameless.bit}"

    @fixed
    @given(u64, st.sampled_from([PFERR, EPT]))
    def test_decoding_keeps_every_bit(self, code, table):
        assert sum(row.mask for row in decode(code, table)) == code

    @fixed
    @given(u64, st.sampled_from([PFERR, EPT]))
    def test_encode_is_the_inverse_of_describe(self, code, table):
        assert encode(describe(code, table), table) == code

    @pytest.mark.parametrize("code", [-1, 1 << 64])
    def test_what_does_not_fit_into_64_bits_is_refused_and_not_cut(self, code):
        with pytest.raises(ValueError, match="no unsigned 64-bit number"):
            decode(code)

    @pytest.mark.parametrize(
        "text", ["", "|", "WRITE|", "write", "bit64", "bit-1", "bit", "bit٣", "WRITE|NOPE", "0|WRITE"]
    )
    def test_a_word_that_is_no_bit_is_refused(self, text):
        with pytest.raises(ValueError, match="no bit is called"):
            encode(text)

    def test_blanks_around_words_do_not_matter(self):
        assert encode(" WRITE | bit50 ") == 1 << 50 | 2
        assert encode(" 0 ") == 0


class TestState:
    @fixed
    @given(u64)
    def test_a_gfn_is_the_address_without_its_low_twelve_bits(self, gpa):
        assert state.gpa_to_gfn(gpa) == gpa // 4096

    @fixed
    @given(u64, u64)
    def test_select_chooses(self, yes, no):
        assert state.select(1, yes, no) == yes
        assert state.select(0, yes, no) == no


class TestWalk:
    """get_mmio_spte(): levels and what is checked on them."""

    def spte(self, **walk):
        vcpu = case_state(case_values("posted", **walk), get("posted"))
        return mmio.get_mmio_spte(vcpu.mmio_format, vcpu.walk)

    @pytest.mark.parametrize("leaf", [1, 2, 3, 4, 5])
    def test_the_lowest_spte_is_the_leafs(self, leaf):
        values = {f"spte{level}": 0x10 * level for level in range(1, 6)}
        spte, _ = self.spte(walk_root=5, walk_leaf=leaf, **values)
        assert spte == 0x10 * leaf

    def test_without_a_walk_there_is_no_spte_and_nothing_reserved(self):
        assert self.spte(spte1=2**64 - 1) == (0, False)

    @pytest.mark.parametrize("root", [4, 5])
    @pytest.mark.parametrize("level", [5, 4, 3, 2, 1])
    def test_an_address_bit_that_the_host_lacks_is_reserved_on_every_level_of_the_walk(self, root, level):
        bad = {f"spte{level}": PRESENT | 7 | 1 << 51}
        assert self.spte(walk_root=root, walk_leaf=1, **bad)[1] is (level <= root)

    @pytest.mark.parametrize("level", [4, 3, 2, 1])
    def test_the_leaf_is_checked_only_if_it_is_present(self, level):
        for present in (PRESENT, 0):
            leaf = {f"spte{level}": present | 7 | 1 << 51}
            assert self.spte(walk_leaf=level, **leaf)[1] is bool(present)

    @pytest.mark.parametrize(
        ("level", "spte", "reserved"),
        [
            (4, 1 << 7, True),  # a table entry of level 4 cannot be a page
            (3, 1 << 6, True),  # memory type bits of a table
            (3, 1 << 7 | 6 << 3, False),  # a 1G page has them: write back
            (3, 1 << 7 | 6 << 3 | 1 << 12, True),  # but no address bits below 30
            (3, 1 << 7 | 6 << 3 | 1 << 29, True),
            (3, 1 << 7 | 6 << 3 | 1 << 30, False),
            (2, 1 << 7 | 6 << 3 | 1 << 20, True),  # nor a 2M page below 21
            (2, 1 << 7 | 6 << 3 | 1 << 21, False),
            (1, 6 << 3 | 1 << 12, False),  # a 4K page has them all
            (1, 2 << 3, True),  # memory types 2, 3 and 7 do not exist
            (1, 3 << 3, True),
            (1, 7 << 3, True),
            (1, 6 << 3, False),
        ],
    )
    def test_reserved_bits_of_ept_depend_on_level_and_page_size(self, level, spte, reserved):
        assert self.spte(walk_leaf=level, **{f"spte{level}": PRESENT | 7 | spte})[1] is reserved

    @pytest.mark.parametrize(
        ("access", "bad"), [(0, 0), (1, 0), (2, 1), (3, 0), (4, 0), (5, 0), (6, 1), (7, 0)]
    )
    def test_ept_forbids_write_without_read(self, access, bad):
        assert self.spte(walk_leaf=1, spte1=PRESENT | 6 << 3 | access)[1] is bool(bad)

    def test_npt_has_only_address_bits_reserved(self):
        assert self.spte(walk_leaf=1, mmio_cfg=2, spte1=PRESENT | 1 << 7 | 2 << 3 | 2)[1] is False
        assert self.spte(walk_leaf=1, mmio_cfg=2, spte1=PRESENT | 1 << 48)[1] is True


class TestGeneration:
    @fixed
    @given(u64, st.sampled_from(["posted", "v7_3"]))
    def test_what_is_written_into_an_mmio_spte_is_read_back(self, gen, revision):
        kept = (1 << (18 if revision == "v7_3" else 19)) - 1
        link = get(revision).link
        spte = link("generation_mmio_spte_mask")(gen)
        assert link("get_mmio_spte_generation")(spte) == gen & kept
        assert spte & (1 << 63 | 1 << 11 | 7) == 0

    @fixed
    @given(st.integers(0, 2**40 - 1), u64, st.integers(0, 7), st.integers(0, 2))
    def test_a_gfn_and_its_access_survive_an_mmio_spte(self, gfn, gen, access, mmio_cfg):
        shape = get("posted").link("mmio_format")(mmio_cfg, True)
        gfn &= (1 << (36 if mmio_cfg == 2 else 34)) - 1
        spte = mmio.make_mmio_spte(shape, gen, gfn, access)
        assert mmio.is_mmio_spte(shape, spte)
        assert mmio.get_mmio_spte_gfn(shape, spte) == gfn
        assert spte & shape.access_mask == (access & 6 if mmio_cfg == 2 else 0)
        assert not mmio.is_shadow_present_pte(spte)

    def test_without_mmio_caching_no_spte_is_an_mmio_spte(self):
        shape = get("posted").link("mmio_format")(0, False)
        assert not mmio.is_mmio_spte(shape, MMIO_EPT_NOW)


class TestOutcomes:
    """One fault each, with everything that matters about it."""

    def test_a_write_to_private_memory_of_a_software_protected_vm_is_private(self):
        o = fault(0x100000006, vm_type="sw-protected", private=True)
        assert (o.ret, o.warns, o.lookups) == (1, 0, (1, 0x100000))
        assert o.handled.fault.error_code == 0x2000100000006
        assert o.handled.fault.is_private is True
        assert o.handled.fault.write is True
        assert o.stats == (1, 1, 0, 0)

    def test_of_five_kinds_of_vm_only_that_one_is_asked(self):
        for vm_type in ("default", "sev", "sev-es", "snp", "tdx"):
            o = fault(6, vm_type=vm_type, private=True)
            assert (o.lookups.count, o.handled.fault.is_private) == (0, False)

    def test_an_invalid_root_ends_the_fault_after_the_sanitizer_and_before_the_look_up(self):
        o = fault(0x3000000000006, root_valid=0, vm_type="sw-protected", private=True)
        assert (o.ret, o.warns) == (1, state.WARN_SYNTHETIC | state.WARN_BAD_ROOT)
        assert (o.lookups.count, o.handled.called, o.mmio.called, o.stats) == (0, False, False, (0, 0, 0, 0))

    def test_a_kernel_without_memory_attributes_does_not_look(self):
        o = fault(6, vm_type="sw-protected", private=True, cfg_private_mem=0)
        assert (o.lookups.count, o.handled.fault.is_private) == (0, False)

    def test_a_refused_emulation_is_an_exit_with_nothing_emulated_or_counted(self):
        o = fault(6, vm_type="sw-protected", private=True, pf_ret="EMULATE", pf_wpf=1)
        assert o.ret == -14
        assert o.handled.exit == (39, GPA, 4096, 8)
        assert o.handled.emulation_type == 0
        assert not o.emulation.called
        assert o.stats == (1, 0, 0, 0)

    def test_a_reserved_fault_on_a_private_page_with_a_stale_spte_is_shared(self):
        o = fault(
            "RSVD|USER",
            vm_type="sw-protected",
            private=True,
            walk_leaf=1,
            spte1=0x100000006,
            pf_ret="EMULATE",
        )
        assert o.mmio.ret == state.RET_PF_INVALID
        assert (o.mmio.kvm_gen, o.mmio.spte_gen) == (0x15, 0)
        assert o.handled.fault.is_private is False
        assert o.emulation == (True, 1 << 6 | 1 << 3, GPA, 0)

    def test_emulation_from_the_mmio_path_gets_no_leave_to_retry(self):
        o = fault("RSVD", walk_leaf=1, spte1=MMIO_EPT_NOW, insn_len=3, emu_ret=0)
        assert (o.ret, o.emulation) == (0, (True, 1 << 6, GPA, 3))
        assert o.mmio.cache == (0, 0x100000, 0x15, 0)
        assert (o.mmio.addr, o.mmio.gfn, o.mmio.traced) == (0, 0x100000, True)

    def test_under_shadow_paging_the_virtual_address_is_remembered_too(self):
        o = fault("RSVD", 0x7FFF12345678, mode="shadow", walk_leaf=1, spte1=MMIO_EPT_NOW)
        assert o.mmio.cache == (0x7FFF12345000, 0x100000, 0x15, 0)
        assert o.mmio.addr == 0x7FFF12345678

    def test_nothing_is_remembered_of_an_l2_guests_address_but_the_gfn(self):
        o = fault("RSVD", 0x12345678, mode="l2_ntdp", walk_leaf=1, spte1=MMIO_EPT_NOW)
        assert o.mmio.cache == (0, 0x100000, 0x15, 0)

    def test_a_write_to_a_guest_page_table_is_unprotected_and_not_emulated(self):
        o = fault(0x200000003, pf_ret="EMULATE")
        assert (o.ret, o.unprotect, o.emulation.called) == (1, (True, 0x100000), False)
        assert o.stats == (1, 0, 1, 0)

    @pytest.mark.parametrize(
        ("more", "retry"),
        [
            ({}, True),
            ({"guest_mode": 1}, False),
            ({"mmio_gfn": 0x100000, "mmio_gen": 0x15}, False),
            ({"mmio_gfn": 0x100000, "mmio_gen": 0x16}, True),
            ({"mmio_gfn": 0x100001, "mmio_gen": 0x15}, True),
        ],
    )
    def test_emulation_may_be_retried_unless_for_l2_or_known_mmio(self, more, retry):
        o = fault(2, pf_ret="EMULATE", **more)
        assert bool(o.emulation.emulation_type & 1 << 3) is retry

    def test_invalid_from_the_handler_is_the_end_of_the_vm(self):
        o = fault(2, pf_ret="INVALID")
        assert (o.ret, o.vm_bugged, o.warns) == (-5, True, state.WARN_KVM_BUG)
        assert o.stats == (1, 0, 0, 0)

    @pytest.mark.parametrize(
        ("answer", "stats"),
        [
            ("CONTINUE", (1, 0, 0, 0)),
            ("RETRY", (1, 0, 0, 0)),
            ("FIXED", (1, 1, 0, 0)),
            ("SPURIOUS", (1, 0, 0, 1)),
        ],
    )
    def test_what_the_handler_settled_resumes_the_guest_and_is_counted(self, answer, stats):
        o = fault(2, pf_ret=answer)
        assert (o.ret, o.stats) == (1, stats)
        assert fault(2, pf_ret=answer, revision="v6_12").ret == 1

    def test_a_prefetch_counts_nothing_but_what_it_fixed(self):
        vcpu = case_state(case_values("posted", pf_ret="FIXED"), get("posted"))
        run = get("posted").link("kvm_mmu_do_page_fault")
        assert run(vcpu, GPA, 0, True).stats == (0, 1, 0, 0)
        for answer in ("EMULATE", "SPURIOUS", "RETRY"):
            vcpu = case_state(case_values("posted", pf_ret=answer), get("posted"))
            handled = run(vcpu, GPA, 0, True)
            assert handled.stats == (0, 0, 0, 0)
            assert handled.fault.prefetch is True

    def test_without_its_prerequisite_the_patch_makes_no_fault_private(self):
        o = fault(0x100000006, vm_type="sw-protected", private=True, revision="posted_u32")
        assert o.handled.fault.error_code == 6
        assert o.handled.fault.is_private is False
        assert o.lookups.count == 1

    def test_before_private_memory_codes_were_cut_and_nobody_looked_at_bit_48(self):
        o = fault(0x1000100000006, vm_type="sw-protected", private=True, revision="v6_1")
        assert (o.ret, o.warns, o.lookups.count) == (1, 0, 0)
        f = o.handled.fault
        assert (f.error_code, f.is_private, f.gfn, f.slot) == (6, False, 0, False)


class TestExplain:
    def test_a_private_write_reads_so(self):
        explanation = explain(
            0x100000006, revision="posted", vm_type="sw-protected", private=True, cr2_or_gpa="0x100000000"
        )
        assert explanation.title == (
            "posted: sw-protected VM, address 0x100000000, error code 0x100000006 (WRITE|USER|GUEST_FINAL)"
        )
        assert lines(explanation) == [
            "kvm_mmu_page_fault 0x100000006 → 0x2000100000006 returns 1: resume the guest",
            "route 0x100000006 → 0x2000100000006 on to the page-fault handler",
            "sanitize 0x100000006 nothing to drop",
            "root_is_valid there is a page table",
            "mark_private 0x100000006 → 0x2000100000006 gfn 0x100000 is private: PRIVATE_ACCESS set",
            "kvm_mem_is_private gfn 0x100000: private",
            "handler_error_code 0x2000100000006 all 64 bits",
            "kvm_mmu_do_page_fault 0x2000100000006 FIXED",
            "is_private 0x2000100000006 private, by error code WRITE|USER|GUEST_FINAL|PRIVATE_ACCESS",
            "new_fault 0x2000100000006 gfn 0x100000, write, is_private=1, rsvd=0, in a slot",
            "page_fault the page-fault handler answers FIXED",
            "after_fault 0x2000100000006 returns 1",
        ]
        assert repr(explanation) == str(explanation)

    def test_synthetic_bits_on_an_invalid_root_read_so(self):
        assert lines(explain("WRITE|IMPLICIT_ACCESS|PRIVATE_ACCESS", root_valid=0)) == [
            "kvm_mmu_page_fault 0x3000000000002 → 0x2 returns 1: resume the guest; warned: synthetic|bad_root",
            "route 0x3000000000002 → 0x2 back to the guest",
            "sanitize 0x3000000000002 → 0x2 WARN: IMPLICIT_ACCESS|PRIVATE_ACCESS came from outside; dropped",
            "root_is_valid WARN: no valid root; back to the guest",
        ]

    @pytest.mark.parametrize(
        ("step", "text", "code", "more"),
        [
            ("handle_mmio_page_fault", "EMULATE: the MMIO SPTE of gfn 0x100000, generation 0x15, is current", "RSVD",
             {"walk_leaf": 1, "spte1": MMIO_EPT_NOW}),
            ("handle_mmio_page_fault", "INVALID: the MMIO SPTE is stale (generation 0x0, now 0x15)", "RSVD",
             {"walk_leaf": 1, "spte1": 6}),
            ("handle_mmio_page_fault", "EMULATE: the vCPU remembers this address as MMIO", "RSVD",
             {"mmio_gfn": 0x100000, "mmio_gen": 0x15}),
            ("mmio_info_in_cache", "in the MMIO cache", "RSVD", {"mmio_gfn": 0x100000, "mmio_gen": 0x15}),
            ("handle_mmio_page_fault", "RETRY: no MMIO SPTE there", "RSVD", {}),
            ("handle_mmio_page_fault", "INVALID: slots are being updated", "RSVD",
             {"walk_leaf": 1, "spte1": 6, "gen": 1 << 63 | 0x15}),
            ("handle_mmio_page_fault", "WARN: a page-table entry has reserved bits; -EINVAL", "RSVD",
             {"walk_leaf": 1, "spte4": 1 << 51, "spte1": 6}),
            ("get_mmio_spte", "lowest SPTE 0x6; reserved bits on the way", "RSVD",
             {"walk_leaf": 1, "spte4": 1 << 51, "spte1": 6}),
            ("emulate", "emulate at 0x100000000 with type 0x40", "RSVD", {"walk_leaf": 1, "spte1": MMIO_EPT_NOW}),
            ("mark_private", "gfn 0x100000 is shared", "WRITE", {"vm_type": 1}),
            ("mark_private", "no look-up; a reserved fault", "RSVD", {"vm_type": 1}),
            ("mark_private", "no look-up; CONFIG_KVM_SW_PROTECTED_VM is off; the VM is snp, not sw-protected", "WRITE",
             {"vm_type": "snp", "cfg_sw_protected": 0}),
            ("kvm_mmu_do_page_fault", "EMULATE on private memory is refused: exit 39, flags 0x8, -EFAULT", "WRITE",
             {"vm_type": 1, "private": 1, "pf_ret": "EMULATE"}),
            ("kvm_mmu_do_page_fault", "-EFAULT", "WRITE", {"pf_ret": -14}),
            ("page_fault", "the page-fault handler answers EMULATE; a write to a shadowed page table", "WRITE",
             {"pf_ret": 2, "pf_wpf": 1}),
            ("after_fault", "unprotect 0x100000; returns 1", "PRESENT|WRITE|GUEST_PAGE", {"pf_ret": "EMULATE"}),
            ("after_fault", "emulate with type 0x48; returns 1", "WRITE", {"pf_ret": "EMULATE"}),
            ("new_fault", "gfn 0x100000, fetch, is_private=0, rsvd=0, no slot", "FETCH", {"memslot": 0}),
            ("new_fault", "gfn 0x0, read, is_private=0, rsvd=0, slot not known yet", "USER", {"mode": "shadow"}),
            ("kvm_mmu_page_fault", "returns -5: error to user space; warned: kvm_bug", "WRITE", {"pf_ret": "INVALID"}),
            ("kvm_mmu_page_fault", "returns 0: exit to user space", "WRITE", {"pf_ret": "EMULATE", "emu_ret": 0}),
            ("reserved_fault", "WARN: private and reserved; refused, an error to user space", "RSVD|PRIVATE_ACCESS",
             {"revision": "v6_10"}),
            ("kvm_mmu_write_protect_fault", "RETRY", "PRESENT|WRITE|GUEST_PAGE",
             {"revision": "v6_12", "pf_ret": "WRITE_PROTECTED", "unprot_ret": 1}),
            ("handler_error_code", "cut: GUEST_FINAL lost", "GUEST_FINAL|WRITE", {"revision": "posted_u32"}),
            ("is_private", "private, by attribute of gfn 0x100000", "RSVD",
             {"revision": "before", "private": 1, "walk_leaf": 1, "spte1": 6}),
            ("mark_private", "no look-up", "WRITE", {"revision": "before", "vm_type": 1, "private": 1}),
        ],
    )  # fmt: skip
    def test_each_step_says_what_it_did(self, step, text, code, more):
        record = next(r for r in explain(code, **more).steps if r.step == step)
        assert record.why == text

    @pytest.mark.parametrize("revision", REVISIONS)
    def test_the_steps_found_what_the_run_returns_and_every_line_fits_on_one(self, revision):
        for code in (0, 6, 8, 0x200000003, 0x3000000000000, 2**64 - 1):
            for answer in ("FIXED", "EMULATE", "INVALID"):
                explanation = explain(code, revision=revision, pf_ret=answer, vm_type=1, private=1)
                assert explanation.steps[0].step == "kvm_mmu_page_fault"
                assert explanation.steps[0].result == explanation.outcome
                assert len(str(explanation).splitlines()) == 1 + len(explanation.steps)

    def test_patch_lines_belong_to_the_posted_form_of_a_step_only(self):
        def patch_lines(revision):
            return {r.step: r.lines for r in explain(6, revision=revision).steps if r.lines}

        assert set(patch_lines("posted")) == {"sanitize", "mark_private", "is_private"}
        assert set(patch_lines("v6_10")) == {"mark_private", "is_private"}
        assert patch_lines("before") == {}

    def test_every_record_names_its_source(self):
        for record in explain("RSVD", walk_leaf=1, spte1=6).steps:
            assert record.source.startswith(("Linux `", "mail <")), record.step

    def test_a_record_finds_a_step_inside_however_deep(self):
        whole = explain(6, vm_type=1).records[0]
        assert whole.find("kvm_mem_is_private").given["gfn"] == 0x100000
        assert whole.find("emulate") is None

    def test_a_step_made_elsewhere_is_watched_whatever_its_arguments_are_called(self):
        blunt = get("posted").derive("blunt", sanitize=lambda c: (c, 0))
        explanation = explain("PRIVATE_ACCESS|WRITE", revision=blunt)
        record = explanation.steps[2]
        assert (record.step, record.why, record.lines, record.source) == (
            "sanitize",
            "passed as it is",
            (),
            "",
        )
        assert explanation.outcome.handled.fault.is_private is True

    def test_a_step_that_adds_a_bit_says_what_it_made(self):
        odd = get("posted").derive("odd", sanitize=lambda error_code: (error_code | 1, 0))
        assert explain(2, revision=odd).steps[2].why == "now PRESENT|WRITE"

    def test_a_step_that_fails_closes_its_record(self):
        def broken(error_code):
            raise ZeroDivisionError

        watcher = watch.Watcher(get("posted"))
        run = get("posted").derive("broken", sanitize=broken).link("sanitize", watcher)
        for _ in range(2):
            with pytest.raises(ZeroDivisionError):
                run(0)
        assert [r.depth for r in watcher.records] == [0, 0]

    def test_sources_are_read_off_docstrings(self):
        def no_docstring():
            pass

        assert watch.source_of(no_docstring) == ""
        assert watch.source_of(spte.mt_xwr) == "Linux `arch/x86/kvm/mmu/spte.h`, __is_bad_mt_xwr() (v6.8)."


class TestInputs:
    @pytest.mark.parametrize(
        ("inputs", "complaint"),
        [
            ({"error_code": -1}, "error_code=-1: it takes an unsigned 64-bit number"),
            ({"error_code": 1 << 64}, "error_code=18446744073709551616: it takes"),
            ({"error_code": 1 << 20000}, "error_code=a number of 20001 bits: it takes"),
            ({"error_code": "9" * 5000}, "error_code='9"),
            ({"error_code": ""}, "no bit is called ''"),
            ({"error_code": "WRIT"}, "no bit is called 'WRIT'"),
            ({"error_code": True}, "error_code=True"),
            ({"error_code": 1.0}, "error_code=1.0"),
            ({"error_code": None}, "error_code=None"),
            ({"cr2_or_gpa": "WRITE"}, "cr2_or_gpa='WRITE'"),
            ({"vm_type": "sw"}, "or one of default, sw-protected, sev, sev-es, snp, tdx"),
            ({"vm_type": 6}, "vm_type=6: it takes a whole number from 0 to 5"),
            ({"pf_ret": "NOPE"}, "pf_ret='NOPE'"),
            ({"pf_ret": "WRITE_PROTECTED"}, "pf_ret='WRITE_PROTECTED'"),  # posted has no such answer
            ({"mode": "nope"}, "mode='nope': it takes one of tdp"),
            ({"mode": []}, "mode=[]"),
            ({"private": "yes"}, "private='yes': it takes 0 or 1"),
            ({"private": 1, "attrs": 0}, "not beside attrs"),
            ({"nope": 1}, "a fault has no 'nope'"),
        ],
    )
    def test_what_an_input_cannot_take_is_refused_by_name_and_in_short(self, inputs, complaint):
        with pytest.raises(InputError) as caught:
            case_values(**inputs)
        assert complaint in str(caught.value)
        assert len(str(caught.value)) < 600

    def test_an_input_left_out_has_its_default(self):
        values = case_values()
        assert values["cr2_or_gpa"] == GPA
        assert values["gen"] == 0x15
        assert values["pf_ret"] == state.RET_PF_FIXED
        assert case_values("v6_12")["pf_ret"] == 5

    def test_names_stand_for_numbers(self):
        assert case_values(vm_type="tdx")["vm_type"] == 5
        assert case_values(pf_ret="SPURIOUS")["pf_ret"] == 5
        assert case_values("v6_12", pf_ret="WRITE_PROTECTED")["pf_ret"] == 3
        assert case_values(private="0")["attrs"] == 0
        assert case_values(private=True)["attrs"] == 8
        shadow = case_values(mode="shadow", guest_mode=1)
        assert [shadow[c] for c in ("direct", "is_tdp", "guest_mode", "nested")] == [0, 0, 1, 0]
