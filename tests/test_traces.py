# SPDX-License-Identifier: GPL-2.0-only
"""The tables behind the pictures of traces, by value; what the pictures show of them; and large and empty traces.

How the pictures look is held in test_plot.
"""

import numpy as np
import pandas as pd
import pytest

from kvm_pf.bits import EPT, PFERR
from kvm_pf.common.errors import InputError
from kvm_pf.common.paths import data_dir
from kvm_pf.show import traces
from kvm_pf.trace import conversions, load, storms
from tests.test_plot import assert_legible, by_gid, text_of, texts

WALK, READ, WRITE, FETCH = 0x200000006, 0x100000004, 0x100000006, 0x100000014


def line(time, code, gfn, vcpu=0, rip=0x1000):
    return (
        f" CPU {vcpu}/KVM-414{vcpu} [00{vcpu}] ..... {time:.6f}: kvm_page_fault: vcpu {vcpu} rip {rip:#x} "
        f"address {gfn << 12:#018x} error_code {code:#x}\n"
    )


def table(tmp_path, text):
    path = tmp_path / "trace.txt"
    path.write_text(text)
    return load(path)


@pytest.fixture(scope="module")
def some(tmp_path_factory):
    """Ten faults in 9 ms on three pages: six walks on page 5 one after the other, then four others."""
    text = "".join(line(100 + n / 1000, WALK, 5) for n in range(6))
    text += (
        line(100.006, READ, 6, 1)
        + line(100.007, WRITE, 6, 1)
        + line(100.008, FETCH, 7, 1)
        + line(100.009, READ, 5, 1)
    )
    return table(tmp_path_factory.mktemp("some"), text).faults


# The tables


def test_pairs_of_bits_are_counted(some):
    together = traces.co_occurrence(some)
    assert together.index.tolist() == together.columns.tolist() == [1, 2, 4, 32, 33]
    assert together.to_numpy().tolist() == [
        [7, 7, 0, 1, 6],  # WRITE: six walks, which count as writes, and one write
        [7, 10, 1, 4, 6],  # USER: all
        [0, 1, 1, 1, 0],  # FETCH
        [1, 4, 1, 4, 0],  # GUEST_FINAL
        [6, 6, 0, 0, 6],  # GUEST_PAGE
    ]


def test_bits_of_high_and_mixed_codes_are_counted_exactly():
    frame = pd.DataFrame({
        "error_code": pd.array([1 << 63 | 1, 1 << 63, None, 3], dtype="UInt64"), "encoding": ["npf"] * 4,
    })  # fmt: skip
    together = traces.co_occurrence(frame)
    assert together.loc[63, 63] == 2
    assert together.loc[63, 0] == together.loc[0, 1] == 1
    assert together.loc[1, 63] == 0


def test_outcomes_are_counted_by_access(some):
    counted = traces.outcomes(some)
    assert counted.index.tolist() == ["not shown"]
    assert counted.loc["not shown"].to_dict() == {"read": 2, "write": 1, "fetch": 1, "walk": 6}


def test_the_rarest_of_many_outcomes_share_a_row():
    frame = pd.DataFrame({"outcome": [f"end {n}" for n in range(20)] + ["end 3"], "access": ["read"] * 21})
    counted = traces.outcomes(frame, most=5)
    assert counted.index.tolist() == ["end 3", "end 0", "end 1", "end 2", "others (16 kinds)"]
    assert counted["read"].tolist() == [2, 1, 1, 1, 16]


def test_an_access_that_is_not_told_is_counted_as_such():
    frame = pd.DataFrame({"outcome": ["mapped"] * 3, "access": [None, "something new", "read"]})
    assert traces.outcomes(frame).loc["mapped"].to_dict() == {"read": 1, "not told": 2}


def test_faults_are_counted_in_equal_parts_of_the_time(some):
    counted = traces.over_time(some, bins=3)
    assert counted.index.tolist() == pytest.approx([0, 0.003, 0.006])
    assert counted["walk"].tolist() == [3, 3, 0]
    assert counted["read"].tolist() == [0, 0, 2]
    assert counted.to_numpy().sum() == 10


def test_without_times_faults_are_counted_by_their_number(some):
    timeless = some.assign(time=pd.array([None] * len(some), dtype="Float64"))
    counted = traces.over_time(timeless, bins=3)
    assert counted.index.tolist() == pytest.approx([0, 3, 6])
    assert counted["walk"].tolist() == [3, 3, 0]
    assert any("the trace has no times" in text for text in texts(traces.faults_over_time(timeless)))


def test_faults_without_a_time_among_others_are_said_to_be_left_out(some):
    part = some.copy()
    part.loc[2, "time"] = pd.NA
    assert traces.over_time(part).to_numpy().sum() == 9
    assert any("1 without a time left out" in text for text in texts(traces.faults_over_time(part)))


def test_a_page_life_has_each_fault_of_the_page_once(some):
    life = traces.life(some, 5)
    assert life["faults"].tolist() == [1] * 7
    assert life["access"].tolist() == ["walk"] * 6 + ["read"]
    assert life["at"].tolist() == pytest.approx([0, 0.001, 0.002, 0.003, 0.004, 0.005, 0.009])
    merged = traces.life(some, 5, bins=2)
    assert merged[["access", "faults"]].to_numpy().tolist() == [["walk", 5], ["walk", 1], ["read", 1]]
    assert merged["at"].tolist() == pytest.approx([0, 0.005, 0.009])
    assert traces.life(some, 99).empty


def test_pages_are_counted_over_time_the_others_together(some):
    counted = traces.pages_over_time(some, most=2, bins=3)
    assert counted.index.tolist() == [5, 6, traces.OTHERS]
    assert counted.to_numpy().tolist() == [[3, 3, 1], [0, 0, 2], [0, 0, 1]]


def test_faults_without_an_address_have_a_row_of_their_own(tmp_path):
    text = "".join(
        f" qemu-77 [000] 15.80{n}: kvm_exit: reason EPT_MISCONFIG rip 0x1000 info 0 0\n" for n in range(4)
    )
    counted = traces.pages_over_time(table(tmp_path, text).faults, bins=2)
    assert counted.index.tolist() == [traces.NO_PAGE]
    assert counted.to_numpy().tolist() == [[2, 2]]


# The pictures


def test_squares_show_the_counts_and_bits_their_names(some):
    picture = traces.bits_together(some)
    names = {f"{row.name} {row.bit}" for row in PFERR if row.bit in (1, 2, 4, 32, 33)}
    assert names <= set(texts(picture))
    counts = [[text_of(picture, f"count:{r}:{c}")[0] for c in range(5)] for r in range(5)]
    assert counts == traces.co_occurrence(some).astype(str).to_numpy().tolist()


def test_raw_codes_of_intel_have_intel_names_and_several_encodings_are_refused(tmp_path):
    intel = table(tmp_path, line(1, 0x683, 5)).faults
    names = {f"{row.name} {row.bit}" for row in EPT if 0x683 >> row.bit & 1}
    assert names <= set(texts(traces.bits_together(intel, "raw_code")))
    mixed = table(tmp_path, line(1, 0x683, 5) + line(2, WALK, 5)).faults
    with pytest.raises(InputError, match=r"several encodings \(ept, npf\)"):
        traces.bits_together(mixed, "raw_code")
    assert_legible(traces.bits_together(mixed))


def test_bars_over_time_are_as_high_as_the_counts(some):
    picture = traces.faults_over_time(some)
    bars = [artist for artist in picture.findobj() if artist.get_gid() == "bar:walk"]
    assert sum(bar.get_height() for bar in bars) == 6
    assert "walk 6" in texts(picture)


def test_declared_memory_stands_under_the_faults_of_its_page():
    recorded = load(data_dir() / "recordings" / "6.12" / "2-swprot.trace.gz")
    picture = traces.page_life(recorded.faults, 0x60001, conversions(recorded))
    assert sorted(by_gid(picture, "band:")) == ["private", "shared"]
    private, shared = (
        next(a for a in picture.findobj() if a.get_gid() == f"band:{kind}") for kind in ("private", "shared")
    )
    marks = [a for a in picture.findobj() if (a.get_gid() or "").startswith("mark:to user space: error 14")]
    refused = [float(x) for mark in marks for x in mark.get_xdata()]
    assert len(refused) == 3  # the accesses to the page while it was private and nothing was there
    assert private.get_x() < min(refused)
    assert max(refused) < shared.get_x()
    assert shared.get_x() == pytest.approx(private.get_x() + private.get_width())


def test_a_storm_is_framed_on_its_pages_and_told(some):
    picture = traces.storm(some)
    assert by_gid(picture, "storm:") == ["A:0"]
    frame = next(artist for artist in picture.findobj() if artist.get_gid() == "storm:A:0")
    assert (frame.get_x(), frame.get_x() + frame.get_width()) == pytest.approx((0, 0.005), abs=1e-4)
    told = " ".join(text_of(picture, f"told:{n}")[0] for n in range(len(by_gid(picture, "told:"))))
    why = "how each ends was not recorded; a walk of the guest's"
    assert told.startswith(f"A: vCPU 0, 6 faults in 5 ms, 1,000 a second, rip 0x1000: {why}")
    assert text_of(picture, "total:0") == ["7"]


def test_a_cycle_over_two_pages_has_two_frames_with_one_letter(tmp_path):
    text = "".join(line(1 + n / 100, READ, 8 + n % 2, rip=0x1000 + n % 2) for n in range(20))
    picture = traces.storm(table(tmp_path, text).faults)
    assert sorted(by_gid(picture, "storm:")) == ["A:0", "A:1"]


def test_no_storm_is_said(some):
    assert any("no storm" in text for text in texts(traces.storm(some.tail(4))))


DRAW = {
    "bits_together": traces.bits_together,
    "access_by_outcome": traces.access_by_outcome,
    "faults_over_time": traces.faults_over_time,
    "page_life": lambda faults: traces.page_life(faults, 5),
    "storm": traces.storm,
}
every_picture = pytest.mark.parametrize("name", DRAW)


@every_picture
def test_a_trace_without_a_fault_gives_a_picture_that_says_so(name, some):
    said = texts(DRAW[name](some.head(0)))
    assert len(said) == 1
    assert "nothing to draw" in said[0]


@every_picture
@pytest.mark.parametrize("rows", [1, 2, 3])
def test_a_few_faults_can_be_drawn(name, rows, some):
    assert_legible(DRAW[name](some.head(rows)))


@every_picture
def test_what_is_no_table_of_faults_is_refused(name):
    for wrong in (None, 3, pd.DataFrame({"a": [1]})):
        with pytest.raises(InputError):
            DRAW[name](wrong)


@every_picture
def test_no_more_is_drawn_for_many_faults(name, some):
    """What is drawn is bounded by the paper, whatever the number of rows."""
    many = pd.concat([some] * 3000, ignore_index=True)
    many["line"] = pd.array(np.arange(len(many)) + 1, dtype="Int64")
    many["time"] = pd.array(np.arange(len(many)) / 1000, dtype="Float64")
    few = storms(some) if name == "storm" else None
    picture = traces.storm(many, few) if name == "storm" else DRAW[name](many)
    assert len(picture.findobj()) < 6000
    assert_legible(picture)
