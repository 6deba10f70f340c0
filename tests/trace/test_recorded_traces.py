# SPDX-License-Identifier: GPL-2.0-only
"""Traces of a running KVM: every fault is found, as the comparison with the model finds them."""

import gzip
import lzma
import random
import re
from pathlib import Path

import pandas as pd
import pytest

from kvm_pf.common.errors import InputError
from kvm_pf.common.paths import data_dir
from kvm_pf.conformance.placement import revision_for
from kvm_pf.trace import conversions, disagreements, load, page
from kvm_pf.trace.dat import TraceDat
from kvm_pf.trace.faults import Joiner, frame
from kvm_pf.trace.lines import Reader
from kvm_pf.trace.reading import _events

DATA = Path(__file__).parent / "data"
RECORDINGS = data_dir() / "recordings"
TRACES = sorted(RECORDINGS.glob("*/*.trace.gz"))


@pytest.fixture(scope="module")
def joined(recorded_faults):
    rows = recorded_faults
    return rows[rows["source"].isin(["npf", "ept", "miscfg", "pf"])]


@pytest.mark.parametrize("path", TRACES, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_every_fault_is_found(joined, load_once, path):
    mine = joined[(joined["recording"] == path.parent.name) & (joined["scenario"] == path.name.split(".")[0])]
    kernel = joined.loc[joined["recording"] == path.parent.name, "kernel"].iloc[0]
    traced = load_once(path, revision_for(kernel)[0])
    assert traced.faults["line"].tolist() == mine["first_line"].tolist()
    assert traced.reader.unread == []
    both = mine.merge(traced.faults, left_on="first_line", right_on="line", suffixes=("_theirs", ""))
    code = both["trace_error_code"].fillna(both["cpu_code"])
    pd.testing.assert_series_equal(code, both["raw_code"], check_names=False)
    pd.testing.assert_series_equal(both["pf_err"], both["handler_code"], check_names=False)
    pd.testing.assert_series_equal(both["exit_rip"], both["rip"], check_names=False)
    asked = both[both["pf_err"].notna() & ~both["inject_at"].fillna("").str.contains("pf")]
    assert (asked["error_code"] == asked["pf_err"]).all()


ALTERED = re.compile(r"pfinject: (\w+) \w+ \w+ \w+ (\w+) -> (\w+)")
SYNTHETIC = 3 << 48  # npf_interception() of 6.12 drops these two bits


def test_codes_that_were_altered_on_the_way_are_where_trace_and_model_disagree():
    path = RECORDINGS / "6.12" / "4-inject-swprot.trace.gz"
    altered = []
    for where, before, after in ALTERED.findall(gzip.decompress(path.read_bytes()).decode()):
        code = int(after, 16) & ~(SYNTHETIC if where == "npf_interception" else 0)
        altered += [code] if code != int(before, 16) else []
    wrong = disagreements(load(path, "v6_12"))
    assert len(altered) == 5
    assert [int(what.split(";")[0].split()[-1], 16) for what in wrong["what"]] == altered


def test_conversions_are_those_that_user_space_made():
    traced = load(RECORDINGS / "6.12" / "2-swprot.trace.gz")
    text = gzip.decompress((RECORDINGS / "6.12" / "2-swprot.trace.gz").read_bytes()).decode()
    made = [line.split(": attr ")[1].split() for line in text.splitlines() if ": attr " in line]
    table = conversions(traced)
    found = [
        [f"{row.gpa:#x}", f"{row.size:#x}", "private" if row.private else "shared"]
        for row in table.itertuples()
    ]
    assert found == made


def events(path):
    return list(_events(path, Reader())[1])


def like_text(event):
    name = "mark" if event.name in ("print", "tracing_mark_write") else event.name
    fields = dict(event.fields)
    if "text" in fields:
        fields["text"] = fields["text"].removeprefix("tracing_mark_write:").strip()
    if (
        fields.get("reason") == "0x27"
    ):  # libtraceevent prints the exit's number where the kernel prints "error"
        fields["reason"] = "error"
    return round(event.time * 1e6), event.cpu, event.task, event.pid, name, fields


@pytest.mark.parametrize("name", ["2-swprot.v7.dat", "2-swprot.v6.dat.xz"])
def test_trace_dat_and_its_text_agree_event_for_event(name):
    text = [like_text(event) for event in events(DATA / "2-swprot.report.txt.gz")]
    binary = [like_text(event) for event in events(DATA / name)]
    assert len(binary) == 559  # of them 3 check_mmio_spte
    assert [event[:5] for event in binary] == [event[:5] for event in text]
    for ours, theirs in zip(binary, text, strict=True):
        assert {key: ours[5].get(key) for key in theirs[5]} == theirs[5]


def test_a_trace_dat_and_its_text_give_the_same_table():
    text = load(DATA / "2-swprot.report.txt.gz").faults.drop(columns="line")
    binary = load(DATA / "2-swprot.v7.dat").faults.drop(columns="line")
    assert len(text) == 34
    assert (binary["outcome"] == "to user space: KVM_EXIT_MEMORY_FAULT").sum() == 8
    # the text has microseconds, of which a difference can be off by one
    assert (binary.pop("took") - text.pop("took")).abs().max() <= 2e-6
    pd.testing.assert_frame_equal(binary.round({"time": 6}), text.round({"time": 6}))


def test_a_trace_dat_that_was_cut_is_refused():
    data = (DATA / "2-swprot.v7.dat").read_bytes()
    for end in (5, 20, 100, 5000, 200000, len(data) - 5000, len(data) - 200):
        with pytest.raises(InputError):
            list(TraceDat("cut", data[:end]).events())


def test_a_damaged_trace_dat_is_read_or_refused_and_never_crashes():
    chance = random.Random(1)
    whole = (
        (DATA / "2-swprot.v7.dat").read_bytes(),
        lzma.decompress((DATA / "2-swprot.v6.dat.xz").read_bytes()),
    )
    for n in range(60):
        data = bytearray(whole[n % 2])
        for _ in range(chance.randint(1, 30)):
            near = chance.choice((len(data), 4000))
            data[chance.randrange(near) if chance.random() < 0.5 else -chance.randint(1, near)] = (
                chance.randrange(256)
            )
        joiner = Joiner()
        try:
            frame(list(joiner.join(TraceDat("damaged", bytes(data)).events())), None, False)
        except InputError:
            continue


def test_memory_faults_that_ftrace_hides_behind_an_error_are_explained():
    text = page(load(RECORDINGS / "6.12-intel" / "2-swprot.trace.gz"))
    assert "8 faults end with EFAULT: with private memory that is KVM_EXIT_MEMORY_FAULT" in text
