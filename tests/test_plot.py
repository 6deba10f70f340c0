# SPDX-License-Identifier: GPL-2.0-only
"""The pictures say what the tables, records and functions say, read without colour, and nothing overlaps."""

import io
import subprocess
import sys
from functools import cache
from itertools import combinations, pairwise

import matplotlib
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text

from kvm_pf.bits import EPT, PFERR
from kvm_pf.common.errors import InputError
from kvm_pf.common.paths import data_dir
from kvm_pf.guest.attribute_store import AttributeStore
from kvm_pf.guest.memslots import Memslots
from kvm_pf.revisions import get
from kvm_pf.run.watch import explain
from kvm_pf.show import draw, plot, traces
from kvm_pf.trace import conversions, load

# Facts: bits and codes, by their numbers
WRITE, USER, RSVD, FINAL, IMPLICIT, PRIVATE = 1 << 1, 1 << 2, 1 << 3, 1 << 32, 1 << 48, 1 << 49
NPT_SPTE, NPT_GEN, NPT_GFN = 0x8000060000017, 2, 0x60000  # check_mmio_spte in a recording of 6.12


def private_write(**state):
    return explain(WRITE | USER | FINAL, vm_type="sw-protected", private=True, **state)


def guest():
    """Two slots, the second with private pages."""
    slots = Memslots(1, guest_memfd=True)
    assert slots.set(0, 0, 0x200000, 0x7F0000000000) == 0
    assert slots.set(1, 0x100000000, 0x40000000, 0x7F1000000000, 4) == 0
    store = AttributeStore()
    for start, end in ((0x100000, 0x100200), (0x100300, 0x100301), (0x200000, 0x200010)):
        store.set(start, end, 8)
    return store, slots


def strip(**more):
    store, slots = guest()
    return plot.memory_strip(store, slots=slots, **more)


# What mark_mmio_spte and check_mmio_spte told of gfn 0x60000 in a recording of 6.12.
LIFE = [
    {"time": "3.707099", "gfn": 0x60000, "access": 7, "gen": 2},
    {"time": "3.786991", "spte": NPT_SPTE, "kvm_gen": 7, "spte_gen": 2, "valid": 0},
    {"time": "3.787083", "gfn": 0x60000, "access": 7, "gen": 7},
    {"time": "3.791790", "spte": 0x800006000003F, "kvm_gen": 7, "spte_gen": 7, "valid": 1},
]
WRAP = [
    ("slot added", 0x7FFFE, None, None),
    ("read", 0x7FFFE, 0x7FFFE, None),
    ("slot moves", 1 << 63 | 0x7FFFE, 0x7FFFE, False),
    ("read", 0x80000, None, None),
    ("read", 0x80000, 0x80000, True),
]


@cache
def recorded():
    """The trace of a software-protected VM."""
    return load(data_dir() / "recordings" / "6.12" / "2-swprot.trace.gz")


CODES = pd.DataFrame({"error_code": ["0x6", "0x100000006", "0x8000000000000006", None]})

PICTURES = {
    "bit_layout": lambda ax=None: plot.bit_layout(
        PRIVATE | FINAL | USER | WRITE, before=IMPLICIT | FINAL | USER | WRITE,
        steps={48: "sanitize", 49: "sanitize, mark_private"}, title="A write to private memory", ax=ax,
    ),
    "bit_layout_ept": lambda ax=None: plot.bit_layout(0x683, table=EPT, ax=ax),
    "bit_layout_ones": lambda ax=None: plot.bit_layout((1 << 64) - 1, ax=ax),
    "ept_wiring": lambda ax=None: plot.ept_wiring(0x683, ax=ax),
    "ept_wiring_7.3": lambda ax=None: plot.ept_wiring(0x7C3, "v7_3", mbec=True, direct_bits=1 << 35, ax=ax),
    "decision_path": lambda ax=None: plot.decision_path(private_write(pf_ret="EMULATE"), ax=ax),
    "decision_path_no_root": lambda ax=None: plot.decision_path(
        explain(IMPLICIT | PRIVATE | WRITE, root_valid=0), ax=ax
    ),
    "decision_path_u32": lambda ax=None: plot.decision_path(private_write(revision="posted_u32"), ax=ax),
    "memory_strip": lambda ax=None: strip(fault=private_write().outcome.handled.fault, ax=ax),
    "memory_strip_regions": lambda ax=None: plot.memory_strip(
        [(0x100000, 0x100200, "private"), (0, 0x100, "shared"), (0xFEE00, 0xFEE01, "mmio")], fault=0xFEE00, ax=ax
    ),
    "mmio_generation": lambda ax=None: plot.mmio_generation(LIFE, ax=ax),
    "mmio_generation_wrap": lambda ax=None: plot.mmio_generation(WRAP, ax=ax),
    "mmio_spte_layout": lambda ax=None: plot.mmio_spte_layout(NPT_SPTE, 2, ax=ax),
    "mmio_spte_layout_l1tf": lambda ax=None: plot.mmio_spte_layout(0x3E0060000016, 1, "v7_3", ax=ax),
    "bit_counts": lambda ax=None: plot.bit_counts(CODES, ax=ax),
    "bits_together": lambda ax=None: traces.bits_together(recorded().faults, ax=ax),
    "access_by_outcome": lambda ax=None: traces.access_by_outcome(recorded().faults, ax=ax),
    "faults_over_time": lambda ax=None: traces.faults_over_time(recorded().faults, ax=ax),
    "page_life": lambda ax=None: traces.page_life(recorded().faults, 0x60001, conversions(recorded()), ax=ax),
    "storm": lambda ax=None: traces.storm(recorded().faults, ax=ax),
}  # fmt: skip
every_picture = pytest.mark.parametrize("name", PICTURES)


@cache
def picture(name: str) -> Figure:
    """One of them, drawn once; to be looked at only."""
    return PICTURES[name]()


def shown(drawn) -> list[Text]:
    """The texts that can be seen: Axes that are switched off keep their tick labels, unseen."""
    found = []
    for ax in [drawn] if isinstance(drawn, Axes) else drawn.axes:
        found += ax.findobj(Text) if ax.axison else ax.texts
    return [t for t in found if t.get_text().strip() and t.get_visible()]


def texts(drawn) -> list[str]:
    return [t.get_text() for t in shown(drawn)]


def by_gid(drawn, prefix: str) -> list[str]:
    """The rest of each artist's gid that begins with `prefix`."""
    gids = (artist.get_gid() for artist in drawn.findobj() if artist.get_gid())
    return [gid.removeprefix(prefix) for gid in gids if gid.startswith(prefix)]


def text_of(drawn, gid: str) -> list[str]:
    return [t.get_text() for t in drawn.findobj(Text) if t.get_gid() == gid]


def ones(drawn) -> set[int]:
    return {int(gid.split(":")[0]) for gid in by_gid(drawn, "bit:") if gid.endswith(":1")}


# All pictures


@every_picture
def test_without_axes_it_makes_a_figure(name):
    assert isinstance(picture(name), Figure)


@every_picture
def test_with_axes_it_draws_there_and_nowhere_else(name):
    figure = Figure(figsize=(12, 6))
    left, right = figure.subplots(1, 2)
    assert PICTURES[name](ax=left) is left
    assert isinstance(left, Axes)
    assert texts(left)
    assert figure.axes == [left, right]
    assert not right.patches
    assert not right.texts


@every_picture
def test_it_shrinks_to_its_axes(name):
    small, own = Figure(figsize=(7, 4)).subplots(), picture(name)
    PICTURES[name](ax=small)
    assert {t.get_text() for t in small.texts} == {t.get_text() for t in own.axes[0].texts}
    assert max(t.get_fontsize() for t in shown(small)) < max(t.get_fontsize() for t in shown(own))


def test_it_is_the_same_to_the_byte():
    """One drawn twice here; nbval compares those of the notebooks with what other processes drew."""
    name = next(iter(PICTURES))
    assert plot.png(picture(name), 40) == plot.png(PICTURES[name](), 40)


def assert_legible(figure: Figure) -> None:
    """No text overlaps another, or the edge."""
    FigureCanvasAgg(figure).draw()
    boxes = [(t.get_text(), t.get_window_extent()) for t in shown(figure)]
    whole = figure.bbox.padded(1)
    for text, box in boxes:
        assert whole.contains(box.x0, box.y0), f"{text!r} is cut off"
        assert whole.contains(box.x1, box.y1), f"{text!r} is cut off"
    for (one, a), (other, b) in combinations(boxes, 2):
        apart = a.x1 <= b.x0 + 1 or b.x1 <= a.x0 + 1 or a.y1 <= b.y0 + 3 or b.y1 <= a.y0 + 3
        assert apart, f"{one!r} and {other!r} overlap"


@every_picture
def test_no_text_overlaps_another_or_the_edge(name):
    assert_legible(picture(name))


@every_picture
def test_text_can_be_read_at_half_size(name):
    assert min(t.get_fontsize() for t in shown(picture(name))) / 2 >= 6


def test_a_text_that_overlaps_is_noticed():
    figure = plot.bit_layout(6)
    figure.axes[0].text(0.3, 0.4, "over it", fontsize=16)
    with pytest.raises(AssertionError, match="overlap"):
        assert_legible(figure)


@settings(max_examples=8)
@given(st.integers(0, (1 << 64) - 1), st.integers(0, (1 << 64) - 1))
def test_any_two_codes_can_be_drawn(code, before):
    figure = plot.bit_layout(code, before=before)
    assert ones(figure) == {n for n in range(64) if code >> n & 1}
    assert {int(n) for n in by_gid(figure, "changed:")} == {n for n in range(64) if (code ^ before) >> n & 1}


@pytest.mark.parametrize(
    "inks",
    [plot.ORIGINS, plot.KINDS, plot._FIELDS, traces.ACCESSES, traces.DECLARED],
    ids=lambda inks: "|".join(map(str, inks)),
)
def test_what_differs_in_colour_differs_without_it(inks):
    for a, b in combinations(inks.values(), 2):
        grey = [
            sum(w * c for w, c in zip((0.299, 0.587, 0.114), to_rgb(i.colour), strict=True)) for i in (a, b)
        ]
        assert a.hatch != b.hatch or abs(grey[0] - grey[1]) > 0.2


def test_settings_of_matplotlib_stay_as_they_are():
    before = dict(matplotlib.rcParams)
    for picture in PICTURES.values():
        picture()
    assert dict(matplotlib.rcParams) == before


def test_pyplot_is_not_loaded():
    program = (
        "import sys; from kvm_pf import explain; from kvm_pf.show import plot\n"
        "plot.png(plot.decision_path(explain('WRITE')));"
        "plot.png(plot.mmio_generation([(0, 2, 2, True)])); sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_a_notebook_shows_a_picture_by_itself():
    figure = picture("bit_layout")
    shown_by_itself = figure._repr_png_()
    assert shown_by_itself == plot.png(figure.axes[0])
    assert shown_by_itself.startswith(b"\x89PNG")
    assert b"Software" not in shown_by_itself


# The layout of a code


@pytest.mark.parametrize(
    "draw",
    [
        lambda: plot.bit_counts(3),
        lambda: plot.memory_strip([(-5, 3, "private")]),
        lambda: plot.memory_strip([(3, 3, "private")]),
        lambda: plot.memory_strip([1]),
        lambda: plot.mmio_generation([1]),
        lambda: plot.decision_path(1),
        lambda: plot.bit_layout(6, table=[1]),
    ],
)
def test_what_cannot_be_drawn_is_refused(draw):
    with pytest.raises(InputError):
        draw()


def test_text_is_drawn_as_it_is():
    for text in ("a $x^ b $", "$\\frac$", "cost: 5$"):
        picture = plot.bit_layout(6, title=text)
        picture.savefig(io.BytesIO(), format="png")


class TestBitLayout:
    def test_the_bits_that_are_set(self):
        assert ones(plot.bit_layout(PRIVATE | FINAL | USER | WRITE)) == {1, 2, 32, 49}

    def test_every_named_bit_is_named(self):
        figure = plot.bit_layout(0)
        named = {row.bit: row.name for row in PFERR if row.name}
        for bit, name in named.items():
            assert "".join(text_of(figure, f"name:{bit}")).replace("\n", "") == name

    def test_all_64_bits_are_there(self):
        assert sorted(int(gid.split(":")[0]) for gid in by_gid(plot.bit_layout(0), "bit:")) == list(range(64))

    def test_an_unknown_bit_stays_visible(self):
        figure = plot.bit_layout(1 << 50)
        assert ones(figure) == {50}
        assert text_of(figure, "name:50") == ["no name"]

    def test_the_bytes_are_the_codes_digits(self):
        assert "".join(text_of(plot.bit_layout(0x2000100000006), "hex")) == "0002000100000006"

    def test_changed_bits_are_marked_with_their_steps(self):
        figure = plot.bit_layout(PRIVATE | 6, before=IMPLICIT | 6, steps={48: "sanitize", 49: "mark_private"})
        assert set(by_gid(figure, "changed:")) == {"48", "49"}
        assert text_of(figure, "step") == ["▲ mark_private", "▼ sanitize"]
        assert text_of(figure, "value") == ["0x1000000000006 → 0x2000000000006"]

    def test_neighbours_changed_by_one_step_share_its_name(self):
        figure = plot.bit_layout(6, before=IMPLICIT | PRIVATE | 6, steps={48: "sanitize", 49: "sanitize"})
        assert text_of(figure, "step") == ["▼ sanitize"]

    def test_a_bit_cleared_and_set_again(self):
        figure = plot.bit_layout(PRIVATE, before=PRIVATE, steps={49: "sanitize, mark_private"})
        assert text_of(figure, "step") == ["▼▲ sanitize, mark_private"]

    def test_without_a_before_nothing_is_marked(self):
        assert not by_gid(plot.bit_layout(6, steps={1: "sanitize"}), "changed:")

    def test_the_legend_names_the_tables_origins(self):
        assert text_of(plot.bit_layout(0), "legend") == ["CPU", "AMD CPU", "Intel CPU", "KVM"]
        assert text_of(plot.bit_layout(0, table=EPT), "legend") == ["Intel CPU"]

    def test_numbers_of_numpy_are_numbers(self):
        assert ones(plot.bit_layout(np.uint64(1 << 63))) == {63}

    @pytest.mark.parametrize("code", [-1, 1 << 64, 1.0, "6", None])
    def test_what_is_no_code(self, code):
        with pytest.raises(InputError, match="unsigned 64-bit"):
            plot.bit_layout(code)

    def test_what_is_no_code_before(self):
        with pytest.raises(InputError, match="before=-1"):
            plot.bit_layout(0, before=-1)


class TestBitChanges:
    def test_bit_49_is_set_by_the_attribute_check(self):
        assert plot.bit_changes(private_write()) == {49: "mark_private"}

    def test_both_synthetic_bits_go_in_the_sanitiser(self):
        assert plot.bit_changes(explain(IMPLICIT | PRIVATE | WRITE)) == {48: "sanitize", 49: "sanitize"}

    def test_also_on_the_way_to_mmio(self):
        assert plot.bit_changes(explain(IMPLICIT | RSVD)) == {48: "sanitize"}

    def test_cleared_and_set_again(self):
        changes = plot.bit_changes(explain(PRIVATE | WRITE, vm_type="sw-protected", private=True))
        assert changes == {49: "sanitize, mark_private"}

    def test_cut_to_32_bits(self):
        changes = plot.bit_changes(private_write(revision="posted_u32"))
        assert changes == {32: "handler_error_code", 49: "mark_private, handler_error_code"}

    def test_nothing_changes(self):
        assert plot.bit_changes(explain(WRITE)) == {}


# The EPT qualification, wired.  Expected: Intel's bits and what the kernels make of them, written down by hand.

ANY_RWX = [{3: 1}, {4: 1}, {5: 1}]
MBEC, PRIVATE_GPA = 64, 65
WIRES = {
    "posted": {0: ANY_RWX, 1: [{1: 1}], 2: [{0: 1}], 4: [{2: 1}], 32: [{8: 1}], 33: [{8: 0}]},
    "v6_12": {0: ANY_RWX, 1: [{1: 1}], 2: [{0: 1}], 4: [{2: 1}], 32: [{7: 1, 8: 1}], 33: [{7: 1, 8: 0}]},
    "v7_3": {
        0: [*ANY_RWX, {6: 1, MBEC: 1}], 1: [{1: 1}], 2: [{7: 1, 8: 1, 9: 1}], 4: [{2: 1}],
        32: [{7: 1, 8: 1}], 33: [{7: 1, 8: 0}], 49: [{PRIVATE_GPA: 1}],
    },
}  # fmt: skip


def blind_to_writes(q: int, _mbec: bool, _private_gpa: bool) -> int:
    return 4 if (q & 1 != 0 and q & 2 == 0) or q & 1 << 40 != 0 else 0


class TestEptWiring:
    @pytest.mark.parametrize("revision", WIRES)
    def test_the_wires_are_the_kernels(self, revision):
        assert plot.ept_terms(get(revision)) == WIRES[revision]

    def test_the_wires_are_found_in_the_function(self):
        odd = get("posted").derive("odd", ept_error_code=blind_to_writes)
        assert plot.ept_terms(odd) == {2: [{40: 1}, {0: 1, 1: 0}]}
        figure = plot.ept_wiring(1, odd)
        assert set(by_gid(figure, "lit:")) == {"0>2", "1>2"}
        assert set(by_gid(figure, "pale:")) == {"40>2"}
        assert text_of(figure, "if:2") == ["if bits 40 or (0 and not 1)"]

    def test_a_user_write_to_a_page_table(self):
        figure = plot.ept_wiring(0x683)
        assert text_of(figure, "value") == ["0x683", "0x200000006"]
        assert set(by_gid(figure, "lit:")) == {"0>2", "1>1", "8>33"}
        assert set(by_gid(figure, "pale:")) == {"2>4", "3>0", "4>0", "5>0", "8>32"}
        assert sorted(map(int, by_gid(figure, "on:"))) == [0, 1, 1, 2, 7, 9, 10, 33]

    def test_conditions_in_words(self):
        figure = plot.ept_wiring(0, "v7_3")
        assert text_of(figure, "if:0") == ["if bits 3 or 4 or 5 or (6 and MBEC)"]
        assert text_of(figure, "if:49") == ["if private GPA"]
        assert text_of(plot.ept_wiring(0), "if:33") == ["unless bit 8"]

    @pytest.mark.parametrize(
        ("gpa", "direct_bits", "code"),
        [
            (0x12345000, 1 << 35, "0x2000000000002"),
            (1 << 47 | 0x12345000, 1 << 35, "0x2"),
            (0x12345000, 0, "0x2"),
        ],
    )
    def test_a_trust_domains_address_decides_about_bit_49(self, gpa, direct_bits, code):
        figure = plot.ept_wiring(2, "v7_3", gpa=gpa, direct_bits=direct_bits)
        assert text_of(figure, "value") == ["0x2", code]

    def test_what_is_no_qualification(self):
        with pytest.raises(InputError, match="qualification"):
            plot.ept_wiring(-1)


# One fault's path.  Expected: the order of kvm_mmu_page_fault(), read in the kernel.

ENTRY = ["sanitize", "root_is_valid"]
MARKED = [*ENTRY, "mark_private", "reserved?"]
HANDLER = ["kvm_mmu_do_page_fault", "is_private", "new_fault", "page_fault"]
STALE = {"mmio_cfg": 2, "walk_leaf": 1, "spte1": NPT_SPTE, "cr2_or_gpa": 0x60000000}
PATHS = {
    "fixed": ({"error_code": WRITE}, [*MARKED, *HANDLER, "after_fault", "resume"]),
    "emulated": ({"error_code": WRITE, "pf_ret": "EMULATE"}, [*MARKED, *HANDLER, "after_fault", "emulate"]),
    "failed": ({"error_code": WRITE, "pf_ret": "EFAULT"}, [*MARKED, *HANDLER, "after_fault", "user space"]),
    "a bug": ({"error_code": WRITE, "pf_ret": "INVALID"}, [*MARKED, *HANDLER, "bug"]),
    "no root": ({"error_code": WRITE, "root_valid": 0}, [*ENTRY, "no root"]),
    "MMIO, current": ({"error_code": RSVD, "gen": 2, **STALE}, [*MARKED, "handle_mmio_page_fault", "emulate"]),
    "MMIO, gone": ({"error_code": RSVD}, [*MARKED, "handle_mmio_page_fault", "after_fault", "resume"]),
    "MMIO, stale": ({"error_code": RSVD, "gen": 7, **STALE},
                    [*MARKED, "handle_mmio_page_fault", *HANDLER, "after_fault", "resume"]),
    "private and reserved, 6.12": ({"error_code": RSVD | PRIVATE, "revision": "v6_12"}, [*MARKED, "refused"]),
    "private and reserved, series": ({"error_code": RSVD | PRIVATE, "revision": "posted_series"},
                                     [*MARKED, *HANDLER, "after_fault", "resume"]),
    "exit to user space, 7.3": ({"error_code": WRITE, "pf_ret": "CONTINUE", "revision": "v7_3"},
                                [*MARKED, *HANDLER, "after_fault", "user space"]),
}  # fmt: skip


class TestDecisionPath:
    @pytest.mark.parametrize(("state", "way"), PATHS.values(), ids=PATHS)
    def test_the_steps_taken_are_lit(self, state, way):
        figure = plot.decision_path(explain(**state))
        lit = by_gid(figure, "lit:")
        assert {gid for gid in lit if ">" not in gid} == set(way)
        assert {gid for gid in lit if ">" in gid} == {f"{a}>{b}" for a, b in pairwise(way)}

    def test_the_rest_is_there_but_pale(self):
        figure = plot.decision_path(explain(WRITE))
        pale = {gid for gid in by_gid(figure, "pale:") if ">" not in gid}
        assert pale == {"handle_mmio_page_fault", "no root", "bug", "emulate", "user space"}
        assert not text_of(figure, "why:handle_mmio_page_fault")

    @pytest.mark.parametrize(
        "revision", ["before", "posted", "posted_series", "merged_patch", "v6_10", "v7_3"]
    )
    def test_an_end_that_no_fault_can_come_to_is_not_there(self, revision):
        figure = plot.decision_path(explain(WRITE, revision=revision))
        ends = {"pale:refused", "pale:reserved?>refused", "label:refused"}
        drawn = {gid for gid in by_gid(figure, "") if gid.endswith("refused")}
        assert drawn == (ends if revision in ("v6_10", "v7_3") else set())

    def test_it_gives_reasons_and_the_code(self):
        figure = plot.decision_path(private_write())
        assert text_of(figure, "code") == ["error code 0x100000006 (WRITE|USER|GUEST_FINAL)"]
        assert text_of(figure, "why:mark_private") == [
            "gfn 0x100000 is private: PRIVATE_ACCESS set",
            "0x100000006 → 0x2000100000006",
        ]
        assert text_of(figure, "why:resume") == ["returns 1: resume the guest"]

    def test_a_cut_code_is_told(self):
        figure = plot.decision_path(private_write(revision="posted_u32"))
        assert "0x2000100000006 → 0x6" in text_of(figure, "why:kvm_mmu_do_page_fault")

    def test_a_long_reason_is_cut_and_says_so(self):
        rows = draw.wrap("word " * 40, 3, 2)
        assert len(rows) == 2
        assert rows[1].endswith("word…")


# Guest memory


class TestMemoryStrip:
    def test_slots_and_attributes_cut_it(self):
        assert by_gid(strip(), "region:") == [
            "shared:0x0", "mmio:0x200", "private:0x100000", "shared:0x100200", "private:0x100300",
            "shared:0x100301", "mmio:0x140000", "mmio:0x200000",
        ]  # fmt: skip

    def test_what_is_written_in_it(self):
        said = texts(strip())
        for text in ("slot 0, 2 MiB", "no slot, 4094 MiB", "slot 1, 1 page", "no slot, private, 16 pages"):
            assert text in said

    def test_without_slots_there_is_no_mmio(self):
        store, _ = guest()
        kinds = {gid.split(":")[0] for gid in by_gid(plot.memory_strip(store), "region:")}
        assert kinds == {"private", "shared"}

    def test_a_window(self):
        figure = strip(window=(0x100100, 0x100300))
        assert by_gid(figure, "region:") == ["private:0x100100", "shared:0x100200"]
        assert "0x100300" in texts(figure)
        regions = [(0, 0x100, "shared"), (0x100, 0x200, "private")]
        figure = plot.memory_strip(regions, window=(0x80, 0x180))
        assert by_gid(figure, "region:") == ["shared:0x80", "private:0x100"]
        assert {"0x80", "0x100", "0x180"} <= set(texts(figure))

    def test_a_fault_says_what_it_wanted(self):
        figure = strip(fault=private_write().outcome.handled.fault)
        assert text_of(figure, "fault") == ["private write at gfn 0x100000"]

    def test_a_fault_is_drawn_in_its_region(self):
        figure = strip(fault=0x100300)
        box = {a.get_gid(): a for a in figure.findobj() if a.get_gid()}[
            "region:private:0x100300"
        ].get_extents()
        marks = [a for a in figure.axes[0].patches if a.get_gid() == "fault"]
        assert box.x0 < marks[0].get_extents().x0 < box.x1

    def test_a_fault_outside_of_every_slot_makes_room_for_itself(self):
        assert "mmio:0x200010" in by_gid(strip(fault=0x300000), "region:")

    def test_many_regions_take_more_rows(self):
        regions = [(n, n + 1, "private" if n % 2 else "shared") for n in range(20)]
        figure = plot.memory_strip(regions)
        assert len(by_gid(figure, "region:")) == 20
        assert figure.get_figheight() > plot.memory_strip(regions[:4]).get_figheight()

    @pytest.mark.parametrize(
        ("pages", "text"),
        [(1, "1 page"), (255, "255 pages"), (256, "1 MiB"), (1 << 18, "1 GiB"), (3 << 28, "3 TiB"),
         (262105, "≈ 1023 MiB"), ((5 << 18) + 1, "≈ 5 GiB")],
    )  # fmt: skip
    def test_sizes(self, pages, text):
        assert text in texts(plot.memory_strip([(0, pages, "shared")]))

    @pytest.mark.parametrize(
        ("regions", "more", "complaint"),
        [
            ([(0, 1, "secret")], {}, "one of private, shared, mmio, not 'secret'"),
            ([], {}, "no region"),
            ([(0, 2, "shared")], {"window": (5, 9)}, "no region"),
            ([(0, 2, "shared")], {"fault": 2}, "gfn 0x2 lies in none"),
            ([(0, 2, "shared"), (1, 3, "private")], {}, "two regions hold gfn 0x1"),
        ],
    )
    def test_what_cannot_be_drawn(self, regions, more, complaint):
        with pytest.raises(InputError, match=complaint):
            plot.memory_strip(regions, **more)


# MMIO SPTEs.  Expected: where the kernels keep the generation, by bit numbers.


class TestSpteFields:
    @pytest.mark.parametrize(
        ("revision", "places"),
        [("posted", [*range(3, 11), *range(52, 63)]), ("v7_3", [*range(3, 10), *range(52, 63)])],
    )
    @pytest.mark.parametrize("mmio_cfg", [0, 1, 2])
    def test_the_generations_places(self, revision, places, mmio_cfg):
        fields = plot.spte_fields(mmio_cfg, revision)
        assert {f"gen {n}": place for n, place in enumerate(places)} == {
            name: bit for bit, name in fields.items() if name.startswith("gen")
        }

    @pytest.mark.parametrize(
        ("mmio_cfg", "value", "access", "gfn"),
        [(0, {0, 1, 2}, set(), range(12, 46)), (2, {0, 51}, {1, 2}, range(12, 48))],
    )
    def test_the_other_fields(self, mmio_cfg, value, access, gfn):
        fields = plot.spte_fields(mmio_cfg, "posted")
        assert {n for n, name in fields.items() if name == "value"} == value
        assert {n for n, name in fields.items() if name == "access"} == access
        assert {n: name for n, name in fields.items() if name.startswith("gfn")} == {
            n: f"gfn {n - 12}" for n in gfn
        }

    def test_l1tf_moves_five_bits_of_the_gfn(self):
        fields = plot.spte_fields(1, "posted")
        assert {n for n, name in fields.items() if name == "L1TF"} == set(range(41, 46))
        assert [fields[n] for n in range(46, 51)] == [f"gfn {n}" for n in range(29, 34)]

    def test_bit_63_marks_an_spte_of_7_3(self):
        assert plot.spte_fields(0, "v7_3")[63] == "value"
        assert 63 not in plot.spte_fields(0, "posted")

    def test_a_recorded_spte(self):
        figure = plot.mmio_spte_layout(NPT_SPTE, 2)
        assert text_of(figure, "says") == [f"generation {NPT_GEN:#x} (19 bits), gfn {NPT_GFN:#x}, access 0x6"]
        assert ones(figure) == {0, 1, 2, 4, 29, 30, 51}

    def test_what_is_no_mmio_spte_is_called_so(self):
        assert text_of(plot.mmio_spte_layout(0x29DDE67), "says") == ["this is no MMIO SPTE"]

    @pytest.mark.parametrize(("spte", "mmio_cfg", "complaint"), [(-1, 0, "spte=-1"), (0, 4, "mmio_cfg=4")])
    def test_what_cannot_be_drawn(self, spte, mmio_cfg, complaint):
        with pytest.raises(InputError, match=complaint):
            plot.mmio_spte_layout(spte, mmio_cfg)


class TestMmioGeneration:
    def points(self, figure, verdict) -> list[tuple[float, float]]:
        lines = [line for line in figure.axes[0].lines if line.get_gid() == verdict]
        return [(float(x), float(y)) for line in lines for x, y in zip(*line.get_data(), strict=True)]

    def test_a_recorded_life(self):
        figure = plot.mmio_generation(LIFE)
        ax = figure.axes[0]
        assert [t.get_text() for t in ax.get_yticklabels()] == ["0x2", "0x7"]
        assert [t.get_text() for t in ax.get_xticklabels()] == [event["time"] for event in LIFE]
        assert self.points(figure, "made") == [(0, 0), (2, 1)]
        assert self.points(figure, "stale") == [(1, 0)]
        assert self.points(figure, "valid") == [(3, 1)]
        assert by_gid(figure, "gap:") == ["1"]

    def test_the_generation_begins_anew(self):
        figure = plot.mmio_generation(WRAP)
        ax = figure.axes[0]
        assert [t.get_text() for t in ax.get_yticklabels()] == ["0x0", "0x7fffe"]
        assert len(by_gid(figure, "wrap")) == 1
        assert by_gid(figure, "updating:") == ["2"]
        assert not {0, 3} & {
            x for verdict in ("made", "valid", "stale") for x, _ in self.points(figure, verdict)
        }

    def test_from_7_3_a_bit_is_missing(self):
        events = [("a", 0x40002, 2, True)]
        assert by_gid(plot.mmio_generation(events), "gap:") == ["0"]
        figure = plot.mmio_generation(events, "v7_3")
        assert not by_gid(figure, "gap:")
        assert figure.axes[0].get_ylabel() == "generation, 18 bits"

    def test_axes_are_labelled(self):
        ax = plot.mmio_generation(LIFE).axes[0]
        assert (ax.get_xlabel(), ax.get_ylabel()) == (
            "events in order; their times in seconds",
            "generation, 19 bits",
        )
        assert plot.mmio_generation(WRAP).axes[0].get_xlabel() == "events in order"

    def test_long_lives_keep_their_labels_apart(self):
        assert_legible(plot.mmio_generation([(f"step number {n}", 2 * n, 2 * n, None) for n in range(60)]))

    @pytest.mark.parametrize(
        ("events", "complaint"),
        [
            ([], "no event"),
            ([(1, 2)], "event 0"),
            ([{"time": 1}], "event 0: kvm_gen=None"),
            ([(0, 2, "2", True)], "spte_gen"),
        ],
    )
    def test_what_cannot_be_drawn(self, events, complaint):
        with pytest.raises(InputError, match=complaint):
            plot.mmio_generation(events)


# Tables


class TestBitCounts:
    def counts(self, figure) -> dict[int, int]:
        found = {int(t.get_gid().split(":")[1]): t.get_text() for t in figure.axes[0].texts if t.get_gid()}
        return {bit: int(text.replace(",", "")) for bit, text in found.items() if text != "0"}

    @pytest.mark.parametrize(
        "column",
        [
            ["0x6", "0x100000006", None],
            pd.array([6, 0x100000006, None], dtype="UInt64"),
            np.array([6, 0x100000006], dtype=np.uint64),
            [6, 0x100000006],
        ],
        ids=["text", "UInt64", "uint64", "int64"],
    )
    def test_how_often_each_bit_is_set(self, column):
        assert self.counts(plot.bit_counts(pd.DataFrame({"error_code": column}))) == {1: 2, 2: 2, 32: 1}

    def test_the_bars_are_as_long(self):
        bars = {b.get_gid(): b for b in plot.bit_counts(CODES).axes[0].patches if b.get_gid()}
        assert {n: bars[f"bar:{n}"].get_width() for n in (0, 1, 32, 63)} == {0: 0, 1: 3, 32: 1, 63: 1}

    def test_named_bits_are_drawn_in_any_case_others_if_they_occur(self):
        drawn = {int(n) for n in by_gid(plot.bit_counts(CODES), "bar:")}
        assert drawn == {row.bit for row in PFERR} | {63}

    def test_axes_are_labelled(self):
        assert plot.bit_counts(CODES).axes[0].get_xlabel() == "rows of error_code with the bit set, of 3"

    def test_another_column(self):
        assert self.counts(plot.bit_counts(pd.DataFrame({"pf_err": ["0x8"]}), "pf_err")) == {3: 1}

    @pytest.mark.parametrize(
        ("frame", "complaint"),
        [
            ({"code": [1]}, "no column 'error_code'"),
            ({"error_code": ["0x6", "six"]}, "row 1: 'six'"),
            ({"error_code": [-1]}, "row 0: -1"),
        ],
    )
    def test_what_cannot_be_counted(self, frame, complaint):
        with pytest.raises(InputError, match=complaint):
            plot.bit_counts(pd.DataFrame(frame))
