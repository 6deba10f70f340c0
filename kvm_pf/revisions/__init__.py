# SPDX-License-Identifier: GPL-2.0-only
"""Revisions of the fault path: each is another revision with a few names bound anew.

The modules of `kvm_pf` hold the path as posted.  Each module of this package holds only what one revision
does differently, under the same names, so that the difference between two revisions can be read as the
difference between two functions.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, cached_property
from pkgutil import iter_modules
from traceback import extract_tb
from types import FunctionType, MappingProxyType, ModuleType
from typing import Any, NamedTuple

import kvm_pf
from kvm_pf.common.errors import InputError
from kvm_pf.revisions.link import digest, link
from kvm_pf.state import KVM_X86_SW_PROTECTED_VM

__all__ = (
    "REVISIONS", "ROWS", "TRAITS", "Revision", "Row", "get", "having", "logic_names", "of_release",
    "path_modules", "revision_modules", "steps_of",
)  # fmt: skip


@cache
def path_modules() -> tuple[str, ...]:
    """The modules of the fault path: those that stand beside this package, not in a folder of their own."""
    return tuple(
        sorted(m.name for m in iter_modules(kvm_pf.__path__) if not m.ispkg and not m.name.startswith("_"))
    )


def _own(module: ModuleType) -> dict[str, Any]:
    """The functions that a module defines and the integer constants that it holds."""
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (
            (isinstance(value, FunctionType) and value.__module__ == module.__name__)
            or (type(value) is int and name.isupper())
        )
    }


def _changes(module: ModuleType) -> dict[str, Any]:
    """The functions and constants that a revision's module defines or assigns, not what it only imports."""
    written: set[str] = set()
    for s in ast.parse(inspect.getsource(module)).body:
        if isinstance(s, ast.FunctionDef):
            written.add(s.name)
        elif isinstance(s, ast.Assign):
            written |= {target.id for target in s.targets if isinstance(target, ast.Name)}
    return {
        name: value
        for name, value in vars(module).items()
        if name in written
        and not name.startswith("_")
        and (isinstance(value, FunctionType) or (type(value) is int and name.isupper()))
    }


@cache
def revision_modules() -> tuple[str, ...]:
    """The modules of this package that hold what one revision does differently."""
    return tuple(sorted(m.name for m in iter_modules(__path__) if m.name != "link"))


@cache
def logic_names() -> Mapping[str, Any]:
    """Every function and constant of the path as posted, by name."""
    names: dict[str, Any] = {}
    for module in path_modules():
        names |= _own(importlib.import_module(f"kvm_pf.{module}"))
    return MappingProxyType(names)


@dataclass(frozen=True, eq=False)
class Revision:
    """One revision of the path: the posted one with `changes` on top of its `base`'s.

    `changes` maps names of steps and constants to functions and integers.
    """

    name: str
    base: Revision | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)
    summary: str = ""
    row: Row | None = None

    @cached_property
    def lineage(self) -> tuple[str, ...]:
        """The names of this revision and of all that it is based on."""
        return (self.name, *(self.base.lineage if self.base else ()))

    @property
    def last_vm_type(self) -> int:
        """The highest KVM_X86_*_VM that this revision, or the one it is derived from, has."""
        if self.row is None:
            return self.base.last_vm_type if self.base else KVM_X86_SW_PROTECTED_VM
        return self.row.last_vm_type

    def has(self, trait: str) -> bool:
        """Say whether this revision, or the one it is derived from, has a trait (see TRAITS)."""
        if self.row is None:
            return self.base is not None and self.base.has(trait)
        return trait in self.row.traits.split()

    @cached_property
    def names(self) -> dict[str, Any]:
        """What each changed name means in this revision, the bases' changes included."""
        return {**(self.base.names if self.base else {}), **self.changes}

    def step(self, name: str | Callable[..., Any]) -> Any:
        """Return the function or constant that this revision uses under `name`.

        A function that is not of the path, but calls it, stands for itself.  Raises InputError if the path has
        no such name.
        """
        if not isinstance(name, str):
            return self.names.get(name.__name__, name)
        if name in self.names:
            return self.names[name]
        posted = logic_names()
        if name not in posted:
            raise InputError(f"the path has no step or constant {name!r}")
        return posted[name]

    def link(self, name: str | Callable[..., Any], bind: Callable[[FunctionType], Any] | None = None) -> Any:
        """Return the function `name` with all names bound as in this revision; plain and runnable by default."""
        if bind is None:
            if name not in self._plain:
                self._plain[name] = link(self.step(name), self.names)
            return self._plain[name]
        return link(self.step(name), self.names, bind)

    @cached_property
    def _plain(self) -> dict[str | Callable[..., Any], Any]:
        return {}

    def digest(self, name: str | Callable[..., Any]) -> str:
        """Return a fingerprint of everything that `name` does in this revision."""
        return digest(self.step(name), self.names)

    def derive(self, name: str, summary: str = "", **changes: Any) -> Revision:
        """Make a revision that differs from this one in the given steps or constants.

        Raises InputError if the path has no such name, or if a function is replaced by a number or the other
        way round.

        >>> blunt = get("posted").derive("blunt", sanitize=lambda error_code: (error_code, 0))
        >>> blunt.link("sanitize")(1 << 49) == (1 << 49, 0)
        True
        """
        if not isinstance(name, str) or not isinstance(summary, str):
            raise InputError(
                f"{ascii(name)[:80]}, {ascii(summary)[:80]}: a revision's name and summary are text"
            )
        known = {**logic_names(), **self.names}
        for key, value in changes.items():
            if key not in known:
                raise InputError(f"the path has no step or constant {key!r} that {name!r} could replace")
            kind, wanted = (
                ("a function", FunctionType) if isinstance(known[key], FunctionType) else ("an integer", int)
            )
            if not isinstance(value, wanted):
                raise InputError(f"{key} is {kind}; {name!r} gives {ascii(value)[:80]}")
        return Revision(name, self, changes, summary)

    def __reduce__(self) -> Any:
        """One that is registered is the same in another process; one made elsewhere goes with what it is made of."""
        if REVISIONS.get(self.name) is self:
            return get, (self.name,)
        return Revision, (self.name, self.base, dict(self.changes), self.summary, self.row)

    def __repr__(self) -> str:
        return f"<revision {self.name}>"


@contextmanager
def steps_of(*revisions: Revision) -> Iterator[None]:
    """Take an error that the steps of a derived revision raise, or cause by what they return, as a wrong input.

    Raises InputError naming the step and its error.  Errors of registered revisions stay what they are.
    """
    try:
        yield
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        NameError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:
        derived = [revision for revision in revisions if REVISIONS.get(revision.name) is not revision]
        if isinstance(error, InputError) or not derived:
            raise
        names = {name: value.__code__.co_filename for revision in derived for name, value in _steps(revision)}
        if not names:
            raise
        trace = extract_tb(error.__traceback__)
        raised = [frame for frame in trace if names.get(frame.name) == frame.filename]
        where = (
            f"step {raised[-1].name!r}, line {raised[-1].lineno}" if raised else f"after {', '.join(names)}"
        )
        raise InputError(f"{derived[0].name}, {where}: {type(error).__name__}: {error}") from error


def _steps(revision: Revision | None) -> Iterator[tuple[str, FunctionType]]:
    """The functions that a derived revision changes, and those that it is derived from."""
    while revision is not None and REVISIONS.get(revision.name) is not revision:
        for name, value in revision.changes.items():
            if isinstance(value, FunctionType):
                yield name, value
        revision = revision.base


HUNK_STEPS = ("sanitize", "mark_private", "is_private")
"""The patch's three behavioural changes: hunk 2's two halves and hunk 3."""

TRAITS = {
    "strips": "kvm_mmu_page_fault() drops bits 48 and 49 that a caller hands in",
    "callers-strip": "the exits' handlers do that",
    "leaves-49": "nobody drops bit 49",
    "looks-up": "the attribute says whether a fault is private, for any VM and any kind of fault",
    "borrows": "a copy of AMD's encryption bit says so",
    "cut": "error codes are cut to 32 bits on their way to the handler",
    "never-private": "no fault is private",
    "no-attributes": "there are no memory attributes",
    "emulates-private": "a private fault is emulated if the handler asks for it",
    "pf-32": "a legacy #PF hands on 32 bits",
    "compares-first": "kvm_faultin_pfn() begins with private against shared",
    "refuses-reserved": "a fault that is private and reserved is refused",
    "stops-ready": "a private fault that was put off is not taken up when its page is ready",
    "compares-fast": "the fast path, too, holds private against shared, if the VM has private memory",
    "write-protected": "a write to a page that is write-tracked has a result of its own",
    "tdx": "EPT violations of trust domains share the translation of qualifications",
}
"""What distinguishes revisions, in a word each: what is claimed of them follows from these."""


class Row(NamedTuple):
    """What is written down about a revision: one row makes it known everywhere.

    The module `kvm_pf.revisions.NAME` holds what it does differently from `base`, unless it consists of
    `posted` steps alone.
    """

    name: str
    base: str
    summary: str
    traits: str  # words of TRAITS
    last_vm_type: int  # the highest KVM_X86_*_VM that there is
    kernel: tuple[int, int] | None = None  # the first release that is replayed with it
    vectors: str = ""  # what tables of kernel vectors call it, besides its name
    posted: tuple[str, ...] = ()  # steps taken from the patch as posted


ROWS = (
    Row("before", "posted", "the kernel that the patch was posted against", "leaves-49 looks-up", 1, None, "R0"),
    Row("posted", "", "the patch as posted", "strips", 1, None, "R1"),
    Row(
        "posted_series", "posted", "the posted series after this patch", "callers-strip pf-32 compares-first", 1,
        None, "S16",
    ),
    Row("merged_patch", "posted", "the patch alone as merged, b3d5dc629c32", "callers-strip pf-32", 1, None, "R2c"),
    Row(
        "v6_10", "merged_patch", "Linux 6.10", "callers-strip pf-32 compares-first refuses-reserved stops-ready", 3,
        (6, 10), "R2",
    ),
    Row(
        "v6_12", "v6_10", "Linux 6.12 (6.12.117)",
        "callers-strip pf-32 compares-first refuses-reserved stops-ready compares-fast write-protected", 4, (6, 12),
        "R3",
    ),
    Row(
        "v7_3", "v6_12", "Linux 7.3 (7.3.4)",
        "callers-strip pf-32 compares-first refuses-reserved stops-ready compares-fast write-protected tdx", 5, (7, 3),
        "R4",
    ),
    Row(
        "guest_enc_gated", "guest_enc_ungated",
        "borrow AMD's encryption bit, for VMs with private memory", "leaves-49 borrows", 1, None, "ALTP",
    ),
    Row(
        "guest_enc_ungated", "before", "borrow AMD's encryption bit, for every VM (TDX v19)", "leaves-49 borrows", 1,
        None, "ALTI",
    ),
    Row(
        "posted_u32", "posted", "posted without its prerequisite: codes cut to 32 bits", "strips cut never-private", 1,
    ),
    Row(
        "posted_on_6_12", "v6_12", "6.12 with the posted patch's placement put back (a recording's kernel)",
        "strips pf-32 compares-first stops-ready compares-fast write-protected", 4,
        posted=("sanitize", "reserved_fault", "npf_synthetic"),
    ),
    Row(
        "v6_1", "before", "Linux 6.1 (Debian 6.1.176): no private memory, 32-bit codes",
        "leaves-49 cut never-private no-attributes", 1, (6, 1),
    ),
    Row(
        "v6_8", "before", "Linux 6.8: 32-bit codes in the handler, and a private fault can be emulated",
        "leaves-49 looks-up cut emulates-private", 1, (6, 8), "V68",
    ),
    *(
        Row(
            "before+" + "+".join(steps), "before", "before, with " + " and ".join(steps), "", 1, posted=steps,
        )
        for n in range(1, 8)
        if (steps := tuple(step for i, step in enumerate(HUNK_STEPS) if n >> i & 1))
    ),
)  # fmt: skip
"""The revisions: those with a kernel behind them, the cut one, and every combination of the patch's changes."""

LATTICE: dict[str, tuple[str, ...]] = {row.name: row.posted for row in ROWS if row.name.startswith("before+")}
"""Every combination of the patch's three changes on top of `before`; all three together are `posted`."""


def having(traits: str = "", but: str = "") -> str:
    """Return the names of the revisions that have all of some traits and none of others, with blanks between.

    The combinations of the patch's changes have no traits, and are in no answer.

    >>> having("callers-strip", but="compares-first")
    'merged_patch'
    """
    wanted, unwanted = set(traits.split()), set(but.split())
    if unknown := (wanted | unwanted) - set(TRAITS):
        raise InputError(f"there is no trait {unknown.pop()!r}; there are {', '.join(TRAITS)}")
    found = [(row.name, set(row.traits.split())) for row in ROWS if row.traits]
    return " ".join(name for name, has in found if wanted <= has and not unwanted & has)


class _Registry(Mapping[str, Revision]):
    """The revisions by name, each made when first asked for."""

    def __init__(self, rows: tuple[Row, ...]) -> None:
        self._rows = {row.name: row for row in rows}
        self._made: dict[str, Revision] = {}

    def _make(self, row: Row) -> Revision:
        base = self[row.base] if row.base else None
        if row.posted:
            changes = {step: logic_names()[step] for step in row.posted}
        else:
            changes = _changes(importlib.import_module(f"kvm_pf.revisions.{row.name}")) if base else {}
        return Revision(row.name, base, changes, row.summary, row)

    def __getitem__(self, name: str) -> Revision:
        if name not in self._made:
            self._made[name] = self._make(self._rows[name])
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)


REVISIONS: Mapping[str, Revision] = _Registry(ROWS)
"""All revisions by name."""


def of_release(release: tuple[int, int]) -> Revision | None:
    """Return the revision for a release of Linux: its own, or that of the nearest older one; None if there is none."""
    known = max(
        ((row.kernel, row.name) for row in ROWS if row.kernel and row.kernel <= release), default=None
    )
    return None if known is None else REVISIONS[known[1]]


def get(revision: str | Revision) -> Revision:
    """Return the revision called `revision`, or that for a release such as "6.12", or the revision itself.

    Raises InputError naming the revisions there are.

    >>> get("6.12").name, get("6.13").name
    ('v6_12', 'v6_12')
    """
    if isinstance(revision, Revision):
        return revision
    if isinstance(revision, str):
        if revision in REVISIONS:
            return REVISIONS[revision]
        release = re.fullmatch(r"v?([0-9]{1,2})\.([0-9]{1,3})(\.[0-9]{1,4})?", revision)
        if release and (known := of_release((int(release[1]), int(release[2])))):
            return known
    names = [name for name in REVISIONS if name not in LATTICE]
    raise InputError(
        f"there is no revision {ascii(revision)[:80]}; there are {', '.join(names)}, combinations such as "
        f"{next(iter(LATTICE))}, and releases from 6.1 on"
    )
