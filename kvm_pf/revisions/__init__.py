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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from pkgutil import iter_modules
from types import FunctionType, MappingProxyType, ModuleType
from typing import Any

import kvm_pf
from kvm_pf.common.errors import InputError
from kvm_pf.revisions.link import digest, link

__all__ = ("REVISIONS", "Revision", "get", "logic_names", "path_modules", "revision_modules")


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
    """What a revision's module defines itself, not what it imports."""
    written = ast.parse(inspect.getsource(module)).body
    assigned = {
        target.id
        for s in written
        if isinstance(s, ast.Assign)
        for target in s.targets
        if isinstance(target, ast.Name)
    }
    return {name: v for name, v in _own(module).items() if isinstance(v, FunctionType) or name in assigned}


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
        known = {**logic_names(), **self.names}
        for key, value in changes.items():
            if key not in known:
                raise InputError(f"the path has no step or constant {key!r} that {name!r} could replace")
            if isinstance(known[key], FunctionType) != isinstance(value, FunctionType):
                kind = "a function" if isinstance(known[key], FunctionType) else "an integer"
                raise InputError(f"{key} is {kind}; {name!r} gives {value!r}")
        return Revision(name, self, changes, summary)

    def __repr__(self) -> str:
        return f"<revision {self.name}>"


_MODULES = (
    ("before", "posted", "the kernel that the patch was posted against"),
    ("posted_series", "posted", "the posted series after this patch"),
    ("merged_patch", "posted", "the patch alone as merged, b3d5dc629c32"),
    ("v6_10", "merged_patch", "Linux 6.10"),
    ("v6_12", "v6_10", "Linux 6.12 (6.12.117)"),
    ("v7_3", "v6_12", "Linux 7.3 (7.3.4)"),
    ("guest_enc_ungated", "before", "borrow AMD's encryption bit, for every VM (TDX v19)"),
    ("guest_enc_gated", "guest_enc_ungated", "borrow AMD's encryption bit, for VMs with private memory"),
    ("v6_1", "before", "Linux 6.1 (Debian 6.1.176): no private memory, 32-bit codes"),
)

HUNK_STEPS = ("sanitize", "mark_private", "is_private")
"""The patch's three behavioural changes: hunk 2's two halves and hunk 3."""


class _Registry(Mapping[str, Revision]):
    """The revisions by name, each made when first asked for."""

    def __init__(self) -> None:
        self._made: dict[str, Revision] = {}

    def _module(self, name: str) -> dict[str, Any]:
        return _changes(importlib.import_module(f"kvm_pf.revisions.{name}"))

    def _make(self, name: str) -> Revision:
        if name == "posted":
            return Revision("posted", None, {}, "the patch as posted")
        for module, base, summary in _MODULES:
            if module == name:
                return Revision(name, self[base], self._module(name), summary)
        if name == "posted_u32":
            cut = self._module("posted_u32")
            return Revision(
                name, self["posted"], cut, "posted without its prerequisite: codes cut to 32 bits"
            )
        if name == "posted_on_6_12":
            posted = logic_names()
            steps = {step: posted[step] for step in ("sanitize", "reserved_fault", "npf_synthetic")}
            summary = "6.12 with the posted patch's placement put back (a recording's kernel)"
            return Revision(name, self["v6_12"], steps, summary)
        if name in LATTICE:
            posted = logic_names()
            steps = {step: posted[step] for step in LATTICE[name]}
            return Revision(name, self["before"], steps, "before, with " + " and ".join(LATTICE[name]))
        raise KeyError(name)

    def __getitem__(self, name: str) -> Revision:
        if name not in self._made:
            self._made[name] = self._make(name)
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(_NAMES)

    def __len__(self) -> int:
        return len(_NAMES)


LATTICE: dict[str, tuple[str, ...]] = {
    "before+" + "+".join(steps): steps
    for n in range(1, 8)
    if (steps := tuple(step for i, step in enumerate(HUNK_STEPS) if n >> i & 1))
}
"""Every combination of the patch's three changes on top of `before`; all three together are `posted`."""

_NAMES = (
    "before", "posted", "posted_series", "merged_patch", "v6_10", "v6_12", "v7_3", "guest_enc_gated",
    "guest_enc_ungated", "posted_u32", "posted_on_6_12", "v6_1", *LATTICE,
)  # fmt: skip

REVISIONS: Mapping[str, Revision] = _Registry()
"""All revisions by name: those with a kernel behind them, the cut one, and the lattice of the hunks."""


def get(revision: str | Revision) -> Revision:
    """Return the revision called `revision`, or the revision itself.

    Raises InputError naming the revisions there are.
    """
    if isinstance(revision, Revision):
        return revision
    if revision not in _NAMES:
        raise InputError(f"there is no revision {revision!r}; there are {', '.join(_NAMES)}")
    return REVISIONS[revision]
