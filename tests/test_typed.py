# SPDX-License-Identifier: GPL-2.0-only
"""Every public function answers a wrong argument with an InputError that names it, never with another error."""

import copy
import inspect
import pickle
import re

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

import kvm_pf
from kvm_pf import Machine
from kvm_pf.bits import PFERR, decode, describe, encode
from kvm_pf.common.errors import InputError
from kvm_pf.common.typed import check, typed
from kvm_pf.conformance.corpus import load_corpus
from kvm_pf.conformance.fault_rows import load_faults
from kvm_pf.conformance.follow import carried, follow
from kvm_pf.conformance.ftrace import read_trace
from kvm_pf.conformance.placement import revision_for
from kvm_pf.conformance.recordings import read_recording
from kvm_pf.conformance.replay import replay
from kvm_pf.conformance.vectors import check_table
from kvm_pf.guest.attribute_store import AttributeStore
from kvm_pf.guest.memslots import Memslots
from kvm_pf.patch.diff import Row, compared, diff_text
from kvm_pf.patch.identify import steps_of
from kvm_pf.patch.reader import read_patch, read_patches
from kvm_pf.proof.ask import asked, prove, prove_all
from kvm_pf.proof.compare import compare
from kvm_pf.proof.verdict import verdict
from kvm_pf.revisions import REVISIONS, get
from kvm_pf.run.batch import evaluate, evaluate_parquet
from kvm_pf.run.tables import SOURCE_INPUTS
from kvm_pf.run.watch import explain
from kvm_pf.show.draw import png
from kvm_pf.show.traces import co_occurrence
from kvm_pf.trace import read_all

WRONG = (
    None,
    -1,
    1 << 70,
    1.5,
    float("nan"),
    "x",
    "",
    "٣",
    "\x1b[2J",
    b"b",
    [],
    ["x"],
    {},
    object(),
    (1, 2),
    pd.DataFrame(),
    np.int64(-3),
    np.float64(1),
)


def public():
    """Public functions and methods by name, with arguments that are right."""
    machine, slots, store = Machine("sw-protected"), Memslots(), AttributeStore()
    right = [
        (decode, (6, PFERR)),
        (describe, (6, PFERR)),
        (encode, ("WRITE", PFERR)),
        (explain, (6, 0x1000)),
        (evaluate, (pd.DataFrame({"error_code": [6]}), "posted")),
        (evaluate_parquet, ("none.parquet", "out.parquet")),
        (check_table, ("cases_none.csv", "posted")),
        (replay, ("none", "posted")),
        (follow, ("none", "2-swprot")),
        (load_corpus, ("none",)),
        (prove, ("merged-form-flags", "posted")),
        (asked, ("merged-form-flags", "posted")),
        (compare, ("posted", "posted")),
        (verdict, ("none",)),
        (Memslots, (2, False, 46, 0, 19)),
        (Machine, ("default", "npt")),
    ]
    arguments = {
        "addr": 0x1000,
        "gpa": 0x1000,
        "size": 0x1000,
        "kind": "w",
        "access": "w",
        "gfn": 1,
        "spte": 0,
        "number": 1,
        "op": "r 0x1000",
        "vm_type": "default",
        "l2_gpa": 0x1000,
        "l1_gpa": 0x1000,
        "private": True,
        "error_code": 6,
        "start": 1,
        "end": 2,
        "word": 8,
        "level": 2,
        "guest_phys_addr": 0x1000,
        "memory_size": 0x1000,
        "userspace_addr": 0x1000,
        "emu_ret": 1,
        "name": "RET_PF_RETRY",
    }
    for owner in (machine, slots, store):
        for name, method in inspect.getmembers(owner, inspect.ismethod):
            needed = [
                p.name
                for p in inspect.signature(method).parameters.values()
                if p.default is p.empty and p.kind < 2
            ]
            if not name.startswith("_") and needed and set(needed) <= set(arguments):
                right.append((method, tuple(arguments[n] for n in needed)))
    return {f"{function.__qualname__}": (function, arguments) for function, arguments in right}


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: compared("abc", ["a"]), "compared: left='abc': a list is wanted, each item text"),
        (lambda: compared(["a"], ["b", 3]), r"compared: right\[1\]=3: text is wanted"),
        (lambda: compared([["a"]], []), r"compared: left\[0\]=\['a'\]: text is wanted"),
        (lambda: diff_text("abc"), "diff_text: rows='abc': a list is wanted, each item Row"),
        (lambda: diff_text([("equal", "a", "a")]), r"diff_text: rows\[0\]=.*: Row is wanted"),
        (
            lambda: diff_text([Row("equal", "a", "a"), Row("same", "a", "a")]),
            r"rows\[1\].tag='same': one of equal",
        ),
        (lambda: diff_text([Row("equal", None, "a")]), r"rows\[0\].left=None: text is wanted"),
        (lambda: diff_text([Row("insert", "", 5)]), r"rows\[0\].right=5: text is wanted"),
        (
            lambda: read_all("trace.txt"),
            "read_all: files='trace.txt': a list is wanted, each item text or Path",
        ),
        (lambda: read_all(["trace.txt", 3]), r"read_all: files\[1\]=3: text or Path is wanted"),
        (lambda: read_all([]), "no trace is given"),
        (lambda: read_recording(None), "read_recording: directory=None: text or Path is wanted"),
        (lambda: read_recording("x" * 5000), "x{90}.*: cannot be read: File name too long"),
        (lambda: replay("none", limit="x"), "replay: limit='x': a whole number is wanted"),
        (lambda: read_trace(3), "read_trace: path=3: text or Path is wanted"),
        (lambda: load_faults(None), "load_faults: path=None: text or Path is wanted"),
        (lambda: revision_for(6.12), "revision_for: kernel=6.12: text or None is wanted"),
        (lambda: carried(None), "carried: name=None: text or Path is wanted"),
        (lambda: read_patch(b"x", limit="9"), "read_patch: limit='9': a whole number is wanted"),
        (lambda: read_patches(["x"]), "read_patches: source=.*: text or bytes or Path is wanted"),
        (lambda: steps_of([]), r"steps_of: name=\[\]: text is wanted"),
        (lambda: co_occurrence(None, []), r"co_occurrence: column=\[\]: text is wanted"),
        (lambda: png(None), "png: picture=None: Figure or Axes is wanted"),
        (lambda: png(Figure(), 1e9), "png: dpi=1000000000.0: 10 to 1200"),
    ],
)
def test_a_wrong_value_is_named_with_its_place(call, said):
    with pytest.raises(InputError, match=said):
        call()


@pytest.mark.parametrize("name", list(public()))
def test_no_wrong_argument_ends_in_another_error(name):
    function, right = public()[name]
    for n in range(len(right)):
        for wrong in WRONG:
            try:
                function(*right[:n], wrong, *right[n + 1 :])
            except InputError as error:
                said = str(error)
                assert len(said) < 1500, said
                assert said.isprintable()


def test_a_wrong_argument_is_named_with_what_is_wanted():
    machine = Machine("sw-protected")
    with pytest.raises(InputError, match=r"Machine\.access: addr=None: an unsigned 64-bit number is wanted"):
        machine.access("w", None)
    with pytest.raises(InputError, match=r"set_attributes: private='x': True or False is wanted"):
        machine.set_attributes(0, 0x1000, "x")
    with pytest.raises(InputError, match=r"access: addr=-1: an unsigned 64-bit number is wanted"):
        machine.access("w", -1)
    with pytest.raises(InputError, match=r"Machine: mbec='x': True or False"):
        Machine(mbec="x")
    with pytest.raises(InputError, match="1 or 2 address spaces, not 0"):
        Machine(address_spaces=0)
    with pytest.raises(InputError, match="32 to 52 bits, not 1"):
        Machine(maxphyaddr=1)
    with pytest.raises(InputError, match="lacks a word or number"):
        machine.run("r ٣")
    with pytest.raises(InputError, match="RET_PF_RETRY is an integer; 'x' gives 'y'"):
        get("posted").derive("x", RET_PF_RETRY="y")
    with pytest.raises(InputError, match="no claim 'nothing'"):
        prove_all("nothing")
    assert [claim.name for claim, _ in asked("reserved-never-private", "posted")] == [
        "reserved-never-private"
    ]


@pytest.mark.parametrize(
    ("column", "wrong"),
    [
        ("cpl", -1),
        ("cpl", 4),
        ("cpl", 9),
        ("retries", -7),
        ("insn_len", 16),
        ("insn_len", 99),
        ("insn_len", -1),
        ("break_after", -1),
    ],
)
def test_sources_take_what_their_documentation_says(column, wrong):
    with pytest.raises(InputError, match=f"column '{column}', row 0"):
        evaluate(pd.DataFrame({column: [wrong]}), "v7_3", kind="sources")
    assert column in {c.column for c in SOURCE_INPUTS}


@pytest.mark.parametrize("revision", list(REVISIONS))
def test_exits_of_trust_domains_are_of_kernels_that_have_them(revision):
    frame = pd.DataFrame({"kind": ["tdx"]})
    if get(revision).has("tdx"):
        assert len(evaluate(frame, revision, kind="sources")) == 1
    else:
        with pytest.raises(InputError, match=r"column 'kind', row 0: 'tdx'.* one of ept, miscfg, npf, pf"):
            evaluate(frame, revision, kind="sources")


def test_numbers_of_numpy_are_numbers():
    machine = Machine()
    assert machine.access("w", np.uint64(0x1000)) is not None
    assert check("x", np.int64(5), int) == 5
    assert type(check("x", np.int64(5), int)) is int
    assert check("x", np.bool_(True), bool) is True


def test_what_is_declared_is_checked_and_the_rest_left_alone():
    @typed(a=8)
    def f(a: int, *rest: str, b: "int | None" = None, c=0, d: "NoSuchName" = 0, **more: int) -> object:  # noqa: F821
        return a, rest, b, c, d, more

    assert f(1, "x", b=2, c="c", d="d", e="e") == (1, ("x",), 2, "c", "d", {"e": "e"})
    for wrong in ({"a": 256}, {"a": "1"}, {"a": 1, "b": "x"}):
        with pytest.raises(InputError):
            f(**wrong)
    with pytest.raises(InputError, match="rest=3: text is wanted"):
        f(1, 3)
    with pytest.raises(TypeError):
        f()


def test_an_explanation_and_a_revision_survive_pickling():
    explained = explain("WRITE|USER", 0x1000, private=True, vm_type="sw-protected")
    again = pickle.loads(pickle.dumps(explained))
    assert str(again) == str(explained)
    assert again.revision is explained.revision is get("posted")
    assert copy.deepcopy(get("v6_12")) is get("v6_12")
    mine = get("posted").derive("mine", "numbers only", RET_PF_RETRY=7)
    other = pickle.loads(pickle.dumps(mine))
    assert (other.name, other.base, other.changes) == ("mine", get("posted"), {"RET_PF_RETRY": 7})


def test_every_public_name_is_tried_here():
    tried = {name.partition(".")[0] for name in public()}
    assert {n for n in kvm_pf.__all__ if inspect.isfunction(getattr(kvm_pf, n))} <= tried


UNFIT = {
    "**": lambda error_code: (error_code**2, 0),
    "/": lambda error_code: (error_code / 2, 0),
    "abs()": lambda error_code: (abs(error_code), 0),
    "int()": lambda error_code: (int(error_code), 0),
    "divmod()": lambda error_code: divmod(error_code, 3),
    "the number itself": lambda error_code: ((1, 2)[error_code & 1], 0),
    "the text": lambda error_code: (len(f"{error_code}"), 0),
    "1.5 stands where a whole number is wanted": lambda error_code: (error_code + 1.5, 0),
    "None stands where a whole number is wanted": lambda error_code: (error_code < None, 0),
}


@pytest.mark.parametrize("what", UNFIT)
def test_a_step_that_a_solver_cannot_be_asked_about_is_named(what):
    mine = REVISIONS["posted"].derive("mine", sanitize=UNFIT[what])
    for ask in (
        lambda: prove("sanitiser-is-a-mask", mine),
        lambda: compare("posted", mine, way="kvm_mmu_page_fault"),
    ):
        with pytest.raises(InputError, match=f"step 'sanitize'.*{re.escape(what)}"):
            ask()


BROKEN = {
    "ZeroDivisionError": lambda error_code: (error_code // 0, 0),
    "NameError": lambda error_code: (no_such_name, 0),  # noqa: F821
    "TypeError: cannot unpack": lambda error_code: None,
    "ValueError: too many values": lambda error_code: (error_code, 0, 0),
    "TypeError: unsupported operand": lambda error_code: ("x", 0),
}


@pytest.mark.parametrize("error", BROKEN)
def test_an_error_of_a_step_is_an_error_of_whoever_wrote_it(error):
    mine = REVISIONS["posted"].derive("mine", sanitize=BROKEN[error])
    with pytest.raises(InputError, match=f"mine, (step 'sanitize', line|after sanitize).*{error}"):
        evaluate(pd.DataFrame({"error_code": ["0x6"]}), mine)
