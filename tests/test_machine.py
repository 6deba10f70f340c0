# SPDX-License-Identifier: GPL-2.0-only
"""The machine: whole scenarios from user space's operations alone, and what must hold of one guest."""

import contextlib
import functools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvm_pf.bits import encode
from kvm_pf.common.errors import InputError
from kvm_pf.conformance.join import faults
from kvm_pf.conformance.recordings import read_recording
from kvm_pf.guest.machine import Access, Exit, Machine
from kvm_pf.guest.memory import BASE_SLOT_SIZE, HARDWARE, Given
from kvm_pf.run.tables import VM_TYPES
from kvm_pf.state import MemoryFault

DATA = Path(__file__).parents[1] / "data" / "recordings"
BOOTS = {
    "posted-on-6.12": ("npt", "posted_on_6_12", {}),
    "6.12": ("npt", "v6_12", {}),
    "6.12-intel": ("ept", "v6_12", {"pml": True}),
    "7.3-intel": ("ept", "v7_3", {"pml": True, "mbec": True}),
    "6.1-debian": ("npt", "v6_1", {"address_spaces": 2, "sw_protected": False, "private_mem": False}),
}
"""Hardware, revision and set-up.  Shadow paging is left out: there KVM maps neighbours ahead of the guest."""

SCENARIOS = [
    (boot, path.name.partition(".")[0]) for boot in BOOTS for path in sorted((DATA / boot).glob("*.trace.gz"))
]
SWPROT = [(boot, "2-swprot") for boot in BOOTS if boot != "6.1-debian"]
ENDS = {
    "HLT": "done",
    "MMIO": "mmio",
    "INTERNAL_ERROR": "internal-error",
    "MEMORY_FAULT": "memory-fault",
    "UNKNOWN": "error",
}

READ, WRITE, FETCH = 0x100000004, 0x100000006, 0x100000014
SLOT, MMIO = 0x40000000, 0x60000000
RETRY, EMULATE, FIXED, SPURIOUS = 1, 2, 5, 6  # of 6.12


@functools.cache
def _read(boot):
    recording = read_recording(DATA / boot)
    return recording, faults(recording)


def _told(result):
    """How user space saw the first KVM_RUN of a step end."""
    run = result["run0"]
    parts = run.get("memory_fault", {})
    fault = MemoryFault(39, *(int(parts[key], 0) for key in ("gpa", "size", "flags"))) if parts else None
    return ENDS[run["name"]], run["errno"], fault


@pytest.mark.parametrize(("boot", "name"), SCENARIOS)
def test_operations_alone_give_the_recorded_faults(boot, name):
    """Of the recording, nothing but the operations is used.

    Compared are the results of system calls, and of each access to data the faults (address, error code,
    is_private, the handler's and the path's result) and how it ended.  Set aside are the faults on the guest's
    own page tables and code, and what operations e and s make KVM's emulator do.
    """
    recording, rows = _read(boot)
    scenario = next(scenario for scenario in recording.scenarios if scenario.name == name)
    rows = [row for row in rows if row.scenario == name]
    hardware, revision, options = BOOTS[boot]
    machine = Machine("default", hardware, revision, **options)
    compared = aside = 0
    for step in scenario.steps:
        done = machine.run(step.op)
        mine = [row for row in rows if row.step == step.number]
        verb, *words = step.op.split()
        if isinstance(done, int) and step.result["rc"] <= 0:
            assert done == (step.result["rc"] and -step.result["errno"]), step.op
        if not isinstance(done, Access):
            aside += len(mine)
            assert not mine or verb in ("e", "s", "prefault")
            continue
        data = [row for row in mine if row.address == int(words[0], 0)]
        aside += len(mine) - len(data)
        assert all(row.address < BASE_SLOT_SIZE for row in mine if row not in data)
        assert [_seen(fault, boot) for fault in done.faults] == [
            (row.address, row.pf_err, row.in_is_private, row.handler_ret, row.pf_ret) for row in data
        ], step.op
        compared += len(data)
        ended, errno, memory_fault = _told(step.result)
        assert (done.exit.reason, done.exit.errno) == (ended, errno), step.op
        assert memory_fault in (None, done.exit.memory_fault)
    assert compared + aside == len(rows)
    assert compared == 29 or (boot, name) not in SWPROT


def _seen(fault, boot):
    known = boot != "6.1-debian"  # before is_private
    return (
        fault.event.addr,
        fault.error_code if fault.outcome else None,
        fault.handled.fault.is_private if fault.handled.called and known else None,
        fault.handler.ret if fault.handler else None,
        fault.outcome.ret if fault.outcome else None,
    )


def _machine(**options):
    machine = Machine("sw-protected", "npt", "v6_12", **options)
    assert machine.add_slot(1, SLOT, 0x200000, "gmem") == 0
    return machine


def _codes(access):
    return [fault.error_code for fault in access.faults]


def _results(access):
    return [fault.handler.ret for fault in access.faults]


class TestConversion:
    def test_a_page_is_found_where_user_space_last_declared_it(self):
        machine = _machine()
        assert not machine.access("w", SLOT).faults[0].handled.fault.is_private
        machine.set_attributes(SLOT, 0x1000, private=True)
        assert machine.access("r", SLOT).faults[0].handled.fault.is_private
        machine.set_attributes(SLOT, 0x1000, private=False)
        assert not machine.access("r", SLOT).faults[0].handled.fault.is_private

    def test_a_mapped_page_does_not_fault_again(self):
        machine = _machine()
        machine.access("w", SLOT)
        assert machine.access("w", SLOT) == Access(f"w {SLOT:#x}", (), Exit("done"), "shared")

    def test_setting_what_is_set_drops_nothing(self):
        machine = _machine()
        machine.access("w", SLOT)
        assert machine.set_attributes(SLOT, 0x1000, private=False) == 0
        assert machine.access("r", SLOT).faults == ()

    def test_private_without_guest_memfd_is_a_memory_fault(self):
        machine = _machine()
        machine.add_slot(2, 0x50000000, 0x1000, "touch")
        machine.set_attributes(0x50000000, 0x1000, private=True)
        assert machine.access("r", 0x50000000).exit == Exit(
            "memory-fault", 14, MemoryFault(39, 0x50000000, 0x1000, 8)
        )

    @pytest.mark.parametrize(("gpa", "size"), [(1, 0x1000), (0, 0), (0, 1), (1 << 63, 1 << 63)])
    def test_a_bad_range_is_refused(self, gpa, size):
        assert _machine().set_attributes(gpa, size, private=True) == -22

    def test_an_ordinary_vm_has_no_private_memory(self):
        machine = Machine("default", revision="v6_12")
        assert machine.set_attributes(SLOT, 0x1000, private=True) == -22


class TestGuestMemfd:
    def test_a_hole_is_filled_anew(self):
        machine = _machine()
        machine.set_attributes(SLOT, 0x2000, private=True)
        machine.access("w", SLOT)
        assert machine.run("punch 1 0x1000 0x1000") == 0
        assert machine.access("w", SLOT).faults == ()
        machine.run("punch 1 0 0x1000")
        assert _results(machine.access("w", SLOT)) == [FIXED]

    def test_a_closed_file_ends_in_a_memory_fault(self):
        machine = _machine()
        machine.set_attributes(SLOT, 0x1000, private=True)
        machine.run("closegmem 1")
        assert machine.access("r", SLOT).exit.reason == "memory-fault"


class TestHost:
    def test_replacing_the_zero_page_takes_a_second_fault(self):
        machine = _machine()
        assert _results(machine.access("r", SLOT)) == [FIXED]
        access = machine.access("w", SLOT)
        assert _codes(access) == [WRITE | 1, WRITE]
        assert _results(access) == [RETRY, FIXED]

    def test_a_locked_access_begins_anew_with_its_read(self):
        access = _machine().access("i", SLOT)
        assert _codes(access) == [READ, WRITE | 1, READ]

    def test_a_locked_access_is_one_write_for_ept(self):
        machine = Machine("default", "ept", "v6_12")
        machine.add_slot(1, SLOT, 0x1000)
        assert _codes(machine.access("i", SLOT)) == [0x100000002]

    def test_user_space_s_own_write_replaces_the_zero_page(self):
        machine = _machine()
        machine.access("r", SLOT)
        machine.run(f"poke {SLOT:#x} 1")
        assert _codes(machine.access("w", SLOT)) == [WRITE]

    def test_a_page_taken_away_is_an_error_without_an_exit(self):
        machine = _machine()
        machine.run(f"unmap {SLOT:#x} 0x1000")
        assert machine.access("r", SLOT).exit == Exit("error", 14)

    def test_a_read_only_mapping_can_be_read(self):
        machine = _machine()
        machine.run(f"mprotro {SLOT:#x} 0x1000")
        assert machine.access("r", SLOT).exit == Exit("done")
        assert machine.access("w", SLOT).exit == Exit("error", 14)

    def test_thrown_away_pages_are_absent(self):
        machine = _machine()
        machine.access("w", SLOT)
        machine.run(f"zap {SLOT:#x} 0x1000")
        assert _results(machine.access("r", SLOT)) == [FIXED]
        assert _results(machine.access("w", SLOT)) == [RETRY, FIXED]


class TestMmio:
    def test_the_second_access_finds_the_entry(self):
        machine = _machine()
        first, second = machine.access("r", MMIO), machine.access("r", MMIO)
        assert (_codes(first), _codes(second)) == ([READ], [READ | 8])
        assert first.exit == second.exit == Exit("mmio")
        assert second.faults[0].handler is None

    def test_a_new_slot_makes_the_entry_stale(self):
        machine = _machine()
        machine.access("r", MMIO)
        machine.add_slot(2, 0x70000000, 0x1000)
        (fault,) = machine.access("r", MMIO).faults
        assert fault.outcome.mmio.checked
        assert fault.handler.ret == EMULATE

    @pytest.mark.parametrize(("revision", "flags"), [("before", 8), ("posted", 0), ("posted_on_6_12", 0)])
    def test_a_stale_entry_on_a_private_page_is_a_shared_fault_since_the_patch(self, revision, flags):
        machine = Machine("sw-protected", revision=revision)
        machine.access("r", MMIO)
        machine.access("r", MMIO + 0x1000)
        machine.set_attributes(MMIO, 0x1000, private=True)
        machine.add_slot(2, 0x70000000, 0x1000)
        access = machine.access("r", MMIO)
        if (
            revision == "before"
        ):  # private and private agree; the noslot handler says MMIO, the refusal -EFAULT
            assert access.faults[0].handled.fault.is_private
        assert access.exit == Exit("memory-fault", 14, MemoryFault(39, MMIO, 0x1000, flags))

    def test_a_manual_s_cpu_sets_present_with_reserved(self):
        machine = _machine(reserved_is_present=True)
        machine.access("r", MMIO)
        assert _codes(machine.access("r", MMIO)) == [READ | 9]

    def test_ept_shows_it_as_a_misconfiguration(self):
        machine = Machine("default", "ept", "v6_12")
        machine.access("r", MMIO)
        assert _codes(machine.access("w", MMIO)) == [8]

    def test_without_mmio_caching_every_access_is_new(self):
        machine = _machine(mmio_caching=False)
        assert [_codes(machine.access("r", MMIO)) for _ in range(2)] == [[READ], [READ]]
        assert machine.stats["pf_mmio_spte_created"] == 0

    def test_an_event_needs_no_user_space(self):
        machine = Machine("default", "ept", "v6_12")
        machine.run(f"ioeventfd {MMIO:#x} 0")
        assert machine.access("w", MMIO).exit == Exit("done")
        (fault,) = machine.access("w", MMIO).faults
        assert fault.source.fast_mmio
        assert fault.outcome is None

    def test_a_fetch_cannot_be_emulated(self):
        assert _machine().access("x", MMIO).exit == Exit("internal-error")

    def test_a_write_to_a_read_only_slot_is_emulated_each_time(self):
        machine = _machine()
        machine.add_slot(2, 0x50000000, 0x1000, "ro", "touch")
        assert machine.access("r", 0x50000000).exit == Exit("done")
        assert [_codes(machine.access("w", 0x50000000)) for _ in range(2)] == [[WRITE | 1]] * 2

    def test_a_slot_in_its_place_ends_it(self):
        machine = _machine()
        machine.access("r", MMIO)
        machine.add_slot(2, MMIO, 0x1000, "touch")
        assert machine.access("r", MMIO).exit == Exit("done")
        machine.delete_slot(2)
        assert machine.access("r", MMIO).exit == Exit("mmio")


class TestDirtyLog:
    def _logged(self, **options):
        machine = Machine("default", "npt", "v6_12", **options)
        machine.add_slot(1, SLOT, 0x1000, "touch")
        machine.access("w", SLOT)
        machine.add_slot(1, SLOT, 0x1000, "log")
        return machine

    def test_the_first_write_is_fixed_without_a_lock(self):
        machine = self._logged()
        (fault,) = machine.access("w", SLOT).faults
        assert (fault.error_code, fault.handler.fast, fault.stats["pf_fast"]) == (WRITE | 1, FIXED, 1)
        assert machine.access("w", SLOT).faults == ()
        machine.run("cleardirty 1")
        assert len(machine.access("w", SLOT).faults) == 1

    def test_a_cpu_that_logs_by_itself_does_not_fault(self):
        assert self._logged(pml=True).access("w", SLOT).faults == ()


class TestHugePages:
    def _machine(self, **options):
        machine = Machine("default", "npt", "v6_12", **options)
        machine.add_slot(1, 0x80000000, 0x200000, "thp")
        return machine

    def test_one_fault_maps_two_megabytes(self):
        machine = self._machine()
        (fault,) = machine.access("r", 0x80000000).faults
        assert fault.handler.fault.goal_level == 2
        assert machine.access("w", 0x801FF000).faults == ()

    def test_the_no_execute_workaround_splits_at_the_first_fetch(self):
        machine = self._machine(nx_huge_pages=True)
        machine.access("r", 0x80000000)
        (fault,) = machine.access("x", 0x80001000).faults
        assert (fault.error_code, fault.handler.fault.req_level, fault.handler.fault.goal_level) == (
            FETCH | 1,
            2,
            1,
        )
        (fault,) = machine.access("r", 0x80002000).faults
        assert (fault.handler.fault.req_level, fault.handler.fault.goal_level) == (2, 1)

    def test_a_mapping_taken_away_in_part_is_small(self):
        machine = self._machine()
        machine.run("zap 0x80001000 0x1000")
        (fault,) = machine.access("r", 0x80000000).faults
        assert fault.handler.fault.goal_level == 1

    def test_mixed_pages_are_small(self):
        machine = Machine("sw-protected", revision="v6_12")
        machine.add_slot(1, 0x80000000, 0x200000, "thp")
        machine.set_attributes(0x80001000, 0x1000, private=True)
        (fault,) = machine.access("r", 0x80000000).faults
        assert fault.handler.fault.goal_level == 1


class TestWhatTheHostGives:
    """Plain memory: how large the host's pages are is an input; slot and attributes still limit what KVM does."""

    def _taken(self, machine, kind="r", addr=0x80005000, level=2):
        return machine.take(machine.exit_for(kind, addr), Given(level=level))

    def test_a_large_page_is_mapped_as_one(self):
        machine = Machine(revision="v6_12")
        machine.add_slot(1, 0x80000000, 0x200000)
        fault = self._taken(machine, "w").handler.fault
        assert (fault.req_level, fault.goal_level) == (2, 2)
        assert machine.access("w", 0x801FF000).faults == ()

    def test_a_slot_that_does_not_hold_all_of_it_is_mapped_in_small_pages(self):
        machine = Machine(revision="v6_12")
        machine.add_slot(1, 0x80000000, 0x1FF000)
        assert self._taken(machine).handler.fault.req_level == 1

    def test_so_is_memory_of_which_a_part_is_private(self):
        machine = Machine("sw-protected", revision="v6_12")
        machine.add_slot(1, 0x80000000, 0x200000)
        machine.set_attributes(0x80001000, 0x1000, private=True)
        assert self._taken(machine).handler.fault.req_level == 1

    def test_small_pages_are_small_though_user_space_asked_for_large_ones(self):
        machine = Machine(revision="v6_12")
        machine.add_slot(1, 0x80000000, 0x200000, "thp")
        assert self._taken(machine, level=1).handler.fault.req_level == 1

    def test_the_write_to_a_large_page_makes_its_neighbours_writable(self):
        """The host gave 2M of memory of its own to the write; part of it is taken back, the rest is still there."""
        machine = Machine(revision="v6_12")
        machine.add_slot(1, 0x80000000, 0x200000)
        self._taken(machine, "w")
        machine.run("zap 0x80000000 0x1000")
        there, gone = (self._taken(machine, "r", addr, 1) for addr in (0x80001000, 0x80000000))
        assert there.handler.finished.found.map_writable
        assert not gone.handler.finished.found.map_writable


class TestPreFault:
    def test_the_guest_does_not_fault_on_what_was_mapped_ahead(self):
        machine = _machine()
        machine.set_attributes(SLOT, 0x1000, private=True)
        ret, left, done = machine.prefault(SLOT, 0x2000)
        assert (ret, left) == (0, 0)
        assert [fault.handled.fault.is_private for fault in done] == [True, False]
        assert machine.access("r", SLOT).faults == machine.access("r", SLOT + 0x1000).faults == ()

    def test_mmio_has_no_page(self):
        assert _machine().run(f"prefault {MMIO:#x} 0x1000") == -2

    def test_what_was_done_before_the_error_counts(self):
        assert _machine().prefault(SLOT + 0x1FF000, 0x2000)[:2] == (0, 0x1000)

    @pytest.mark.parametrize(("revision", "result"), [("v6_12", FIXED), ("v7_3", SPURIOUS)])
    def test_a_page_in_use_is_mapped_anew_until_7_3(self, revision, result):
        machine = Machine("default", revision=revision)
        machine.add_slot(1, SLOT, 0x1000, "touch")
        machine.access("w", SLOT)
        assert machine.pre_fault(SLOT, 0x1000).handler.ret == result

    def test_shadow_paging_refuses(self):
        assert Machine("default", "shadow", "v6_12").run(f"prefault {SLOT:#x} 0x1000") == -95

    def test_a_page_mapped_ahead_twice_is_undecided(self):
        machine = _machine()
        machine.pre_fault(SLOT, 0x1000)
        assert not machine.pre_fault(SLOT, 0x1000).handler.decided

    @pytest.mark.parametrize("revision", ["v6_12", "v7_3"])
    def test_without_accessed_bits_the_first_access_gives_the_rights_back(self, revision):
        machine = Machine("default", "ept", revision, accessed_dirty=False)
        machine.add_slot(1, SLOT, 0x1000, "touch")
        machine.prefault(SLOT, 0x1000)
        (fault,) = machine.access("r", SLOT).faults
        assert fault.handler.fast_traced
        assert fault.handler.fast == FIXED
        assert machine.access("r", SLOT).faults == ()


class TestPageReady:
    def test_a_page_that_came_late_is_mapped(self):
        machine = Machine("default", revision="posted")
        machine.add_slot(1, SLOT, 0x1000, "touch")
        taken = machine.page_ready(SLOT, WRITE)
        assert taken.handled.fault.prefetch
        assert taken.handled.fault.error_code == 0
        assert machine.access("r", SLOT).faults == ()


class TestShadowPaging:
    def _machine(self):
        machine = Machine("default", "shadow", "v6_12", tdp_mmu=False)
        machine.add_slot(1, SLOT, 0x200000, "touch")
        return machine

    def test_the_handler_walks_the_guest_s_tables(self):
        (fault,) = self._machine().access("w", SLOT).faults
        assert (fault.error_code, fault.handled.fault.gfn, fault.handler.fault.gfn) == (2, 0, SLOT >> 12)
        assert fault.handler.walked

    def test_what_the_guest_forbids_is_the_guest_s_own_fault(self):
        machine = self._machine()
        machine.run(f"pde {SLOT:#x} 0x81")
        (fault,) = machine.access("w", SLOT).faults
        assert fault.handler.refused
        assert (fault.handler.ret, fault.stats["pf_guest"]) == (RETRY, 1)

    @pytest.mark.parametrize("flags", [0x83, 0x87, 1 << 63 | 0x87])
    def test_flags_of_the_guest_s_entry_leave_the_page_where_it_is(self, flags):
        """0x40205123 is in page 0x40205: the entry for 0x40200000 maps 2M to themselves, whatever it allows."""
        machine = Machine("default", "shadow", "v6_12", tdp_mmu=False)
        machine.add_slot(1, 0x40000000, 0x400000, "touch")
        machine.run(f"pde 0x40200000 {flags:#x}")
        (fault,) = machine.access("r", 0x40205123).faults
        assert fault.handler.fault.gfn == 0x40205
        assert machine.translate(0x40205123) == (0x40205123, 0x40200000 | flags)
        assert machine.translate(0x401FFFFF)[0] == 0x401FFFFF

    def test_no_execute_counts_only_if_enabled(self):
        machine = self._machine()
        machine.run(f"pde {SLOT:#x} {0x81 | 1 << 63:#x}")
        assert machine.access("x", SLOT).faults[0].handler.refused
        machine.run("efer 0x500")
        assert not machine.access("x", SLOT).faults[0].handler.refused

    def test_another_kind_of_guest_paging_forgets_the_address_of_mmio(self):
        machine = self._machine()
        machine.access("r", MMIO)
        assert machine.cache.gva == MMIO
        machine.run("smap 1 0")
        assert machine.cache.gva == 0

    def test_it_offers_no_software_protected_vm(self):
        assert Machine("default", "shadow").run("vm swprot") == -22


class TestWarnings:
    def test_a_warning_comes_every_time_and_is_printed_once(self):
        machine = Machine("default")
        machine.add_slot(1, SLOT, 0x10000, "touch")
        machine.run(f"sh inj npf {1 << 49:#x} 0 {SLOT:#x} 1")
        machine.run(f"sh inj npf {1 << 48:#x} 0 {SLOT + 0x1000:#x} 1")
        first, second = (machine.access("r", SLOT + n).faults[0] for n in (0, 0x1000))
        assert (first.warns, first.printed) == (("synthetic",), ("synthetic",))
        assert (second.warns, second.printed) == (("synthetic",), ())
        assert second.handled.fault.error_code == READ
        machine.reset("default")
        assert machine.warned == {"synthetic"}

    def test_the_argument_can_be_changed_as_often_as_armed(self):
        machine = Machine("default", revision="v6_12")
        machine.add_slot(1, SLOT, 0x1000, "touch")
        machine.run(f"sh inj pf 0x8 0 {SLOT:#x} 2")
        assert _codes(machine.access("r", SLOT)) == [READ | 8, READ | 8, READ]

    def test_a_guest_that_never_gets_through_is_stuck(self):
        machine = Machine("default", revision="v6_12")
        machine.run(f"sh inj pf 0x8 0 {SLOT:#x} 100")
        assert machine.access("r", SLOT).exit == Exit("stuck")


def test_the_steps_of_a_fault_can_be_read():
    machine = _machine()
    machine.set_attributes(SLOT, 0x1000, private=True)
    (fault,) = machine.access("w", SLOT).faults
    steps = [line.split()[0] for line in str(fault).splitlines()]
    assert steps.index("mark_private") < steps.index("new_fault") < steps.index("page_fault")
    assert "gfn 0x40000 is private: PRIVATE_ACCESS set" in str(fault)


def test_statistics_add_up():
    machine = _machine()
    for op in (f"r {SLOT:#x}", f"w {SLOT:#x} 1", f"r {MMIO:#x}"):
        machine.run(op)
    assert machine.stats == {"pf_taken": 4, "pf_fixed": 2, "pf_emulate": 1, "pf_mmio_spte_created": 1}


def test_the_qualification_tells_of_the_guest_s_page():
    machine = Machine("default", "ept", "v6_12")
    machine.add_slot(1, SLOT, 0x200000, "touch")
    assert machine.exit_for("r", SLOT).info == 0x781
    machine.run(f"pde {SLOT:#x} {0x81 | 1 << 63:#x}")
    assert machine.exit_for("r", SLOT).info == 0x981


@pytest.mark.parametrize(
    ("made", "named"),
    [
        (lambda: Machine("windows"), "'windows'"),
        (lambda: Machine(hardware="sparc"), "'sparc'"),
        (lambda: Machine(turbo=True), "'turbo'"),
        (lambda: Machine(revision="v9"), "'v9'"),
        (lambda: Machine().access("q", 0), "'q'"),
        (lambda: Machine().access("r", -1), "-1"),
        (lambda: Machine().add_slot(1, 0, 0x1000, "fast"), "'fast'"),
        (lambda: Machine().run("fly 1"), "'fly'"),
        (lambda: Machine().run(""), "''"),
        (lambda: Machine().run("attr 0x1000"), "attr 0x1000"),
        (lambda: Machine().run("attr 0 0x1000 blue"), "blue"),
        (lambda: Machine().run("r zero"), "r zero"),
        (lambda: Machine().run("vm windows"), "vm windows"),
        (lambda: Machine().run("closegmem 5"), "5"),
    ],
)
def test_what_is_wrong_is_named(made, named):
    with pytest.raises(InputError) as error:
        made()
    assert named in str(error.value)


_number = st.one_of(st.integers(0, 1 << 64), st.sampled_from([0, 0x1000, SLOT, MMIO])).map(hex)
_word = st.one_of(_number, st.sampled_from(["private", "shared", "gmem,touch", "-", "npf", "inj", "1", "x"]))
_verb = st.sampled_from(
    "vm slot attr r w x i e s smap efer pde poke mprotro unmap zap punch closegmem cleardirty ioeventfd "
    "evread sh".split()
)


@given(
    hardware=st.sampled_from(HARDWARE),
    vm_type=st.sampled_from(VM_TYPES),
    ops=st.lists(st.tuples(_verb, st.lists(_word, max_size=4)), max_size=6),
)
def test_any_operations_give_an_answer_or_one_clear_error(hardware, vm_type, ops):
    machine = Machine(vm_type, hardware, "v6_12")
    for verb, words in ops:
        with contextlib.suppress(InputError):
            done = machine.run(" ".join([verb, *words]))
            assert done is None or isinstance(done, int | Access)


def test_codes_in_these_tests_are_what_their_names_say():
    assert encode("USER|GUEST_FINAL") == READ
    assert encode("USER|GUEST_FINAL|WRITE") == WRITE
    assert encode("USER|GUEST_FINAL|FETCH") == FETCH


class TestDeletingASlot:
    """Linux `arch/x86/kvm/mmu/mmu.c`, kvm_arch_flush_shadow_memslot(): all entries go, or those of the slot."""

    MARK = 0x60000000

    def machine(self, vm, revision, **options):
        machine = Machine(vm, "npt", revision, **options)
        for number, gpa in ((1, SLOT), (2, 2 * SLOT)):
            assert machine.add_slot(number, gpa, 0x200000, "touch") == 0
        for gpa in (SLOT, 2 * SLOT, self.MARK):
            machine.access("w", gpa)
        assert machine.delete_slot(1) == 0
        return machine

    @pytest.mark.parametrize(
        ("vm", "revision", "options", "all_go"),
        [
            ("default", "posted", {}, True), ("sw-protected", "posted", {}, True),
            ("sw-protected", "v6_10", {}, True), ("default", "v6_12", {}, True),
            ("default", "v6_12", {"slot_zap_all": False}, False), ("sw-protected", "v6_12", {}, False),
            ("snp", "v6_12", {}, False), ("sw-protected", "v7_3", {}, False), ("default", "v7_3", {}, True),
        ],
    )  # fmt: skip
    def test_takes_the_slots_own_entries_or_all(self, vm, revision, options, all_go):
        machine = self.machine(vm, revision, **options)
        assert machine.entry(SLOT >> 12)[0] == machine.nonpresent
        assert (machine.entry(2 * SLOT >> 12)[0] == machine.nonpresent) == all_go
        assert machine.is_mmio(machine.entry(self.MARK >> 12)[0]) != all_go

    @pytest.mark.parametrize(("revision", "codes"), [("v6_10", [0x4]), ("v6_12", [0xC, 0x4])])
    def test_leaves_a_stale_mark_and_so_a_reserved_fault(self, revision, codes):
        machine = self.machine("sw-protected", revision)
        faults = machine.access("r", self.MARK).faults
        assert faults[0].error_code & 0xF == codes[0]
        assert faults[0].outcome.mmio.called == (codes[0] & 8 != 0)
        assert faults[0].handled.called  # stale or not there: the page-fault handler is asked
        assert faults[0].handled.fault.rsvd == (codes[0] & 8 != 0)

    def test_of_size_0_is_what_a_scenario_says(self):
        machine = self.machine("default", "v6_12")
        assert machine.run(f"slot 2 {2 * SLOT:#x} 0 -") == 0
        assert [slot.id for slot in machine.slots] == [0]
        assert machine.run(f"slot 2 {2 * SLOT:#x} 0 -") == -22


class TestTheFastPath:
    """A write that dirty logging made fault is mended without a lock; from 6.11 on after one more look-up."""

    def faults(self, revision):
        machine = Machine("sw-protected", "npt", revision)
        assert machine.add_slot(1, SLOT, 0x200000, "touch") == 0
        machine.access("w", SLOT)
        machine.write_protect(SLOT >> 12, (SLOT >> 12) + 1)
        return machine.access("w", SLOT).faults

    @pytest.mark.parametrize(
        ("revision", "count"), [("before", 0), ("posted", 0), ("v6_10", 0), ("v6_12", 1), ("v7_3", 1)]
    )
    def test_looks_the_attribute_up_from_6_11_on(self, revision, count):
        (fault,) = self.faults(revision)
        assert fault.handler.fast_lookups.count == count
        assert fault.stats["pf_fast"] == 1

    def test_of_an_ordinary_vm_never(self):
        machine = Machine("default", "npt", "v7_3")
        machine.add_slot(1, SLOT, 0x200000, "touch")
        machine.access("w", SLOT)
        machine.write_protect(SLOT >> 12, (SLOT >> 12) + 1)
        assert machine.access("w", SLOT).faults[0].handler.fast_lookups.count == 0
