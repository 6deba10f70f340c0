# SPDX-License-Identifier: GPL-2.0-only
"""The patch in Python: a step of one revision beside the same step of another, line by line."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterator, Sequence
from difflib import SequenceMatcher
from functools import lru_cache
from itertools import zip_longest
from typing import Literal, NamedTuple

from kvm_pf import bits
from kvm_pf.common.typed import check, typed
from kvm_pf.revisions import Revision, get

__all__ = ("Row", "compared", "diff_text", "source_lines", "step_diff")


class Row(NamedTuple):
    """One line of a comparison.

    `tag` is difflib's: equal, replace, delete (only left) or insert (only right).  The side on which nothing
    stands is "".
    """

    tag: str
    left: str
    right: str


@typed()
def source_lines(name: str, revision: str | Revision) -> list[str]:
    """Return what `revision` means by `name`, as lines of Python: a function without its docstring, or a constant.

    The name "bits" stands for the lines of the bit table that are about the bits that only KVM sets.
    Raises InputError if there is no such revision, or if the path has no such name.
    """
    revision = get(revision)
    if name == "bits":
        return list(_synthetic_bits(revision))
    meaning = revision.step(name)
    if isinstance(meaning, int):
        return [f"{name} = {meaning:#x}"]
    return list(_without_docstring(meaning))


@lru_cache(maxsize=1024)
def _without_docstring(function: Callable[..., object]) -> tuple[str, ...]:
    """The lines of a function's source, without its docstring."""
    source = textwrap.dedent(inspect.getsource(function))
    lines = source.rstrip().split("\n")
    written = ast.parse(source).body[0]
    if isinstance(written, ast.FunctionDef) and ast.get_docstring(written) is not None:
        docstring = written.body[0]
        del lines[docstring.lineno - 1 : docstring.end_lineno]
    return tuple(lines)


def _synthetic_bits(revision: Revision) -> Iterator[str]:
    """Yield the lines of the bit table's module that name a bit of KVM's, unless the revision does not know it."""
    names = {row.name: _knows(revision, row.since) for row in bits.PFERR if row.set_by is bits.KVM}
    lines = inspect.getsource(bits).split("\n")
    for statement in ast.parse("\n".join(lines)).body:
        if isinstance(statement, ast.Assign | ast.AnnAssign):
            for line in lines[statement.lineno - 1 : statement.end_lineno]:
                told = [known for name, known in names.items() if name in line]
                if told and all(told):
                    yield line.strip()


def _knows(revision: Revision, since: str) -> bool:
    """Say whether a bit first named by the revision `since` has that name in `revision`."""
    lineage = revision.lineage
    return since == "before" or (since in lineage and (since != "posted" or "before" not in lineage))


@typed()
def step_diff(name: str, a: str | Revision = "before", b: str | Revision = "posted") -> list[Row]:
    """Compare a step or constant of two revisions, without docstrings; `name` as in `source_lines`.

    >>> [row.tag for row in step_diff("handler_error_code", "posted", "posted_u32")]
    ['equal', 'replace']
    """
    return compared(source_lines(name, a), source_lines(name, b))


@typed()
def compared(left: Sequence[str], right: Sequence[str]) -> list[Row]:
    """Compare lines of text.

    >>> [row.tag for row in compared(["a", "b"], ["a", "c", "d"])]
    ['equal', 'replace', 'replace']
    """
    return [
        Row(tag, one or "", other or "")
        for tag, i, j, m, n in SequenceMatcher(None, left, right, autojunk=False).get_opcodes()
        for one, other in zip_longest(left[i:j], right[m:n])
    ]


@typed()
def diff_text(rows: Sequence[Row]) -> str:
    """Write a comparison as text: common lines after two blanks, others after "- " and "+ ".

    Raises InputError naming a row that is none.
    """
    lines = []
    for n, (tag, left, right) in enumerate(rows):
        check(f"diff_text: rows[{n}].tag", tag, Literal["equal", "replace", "delete", "insert"])
        check(f"diff_text: rows[{n}].left", left, str)
        check(f"diff_text: rows[{n}].right", right, str)
        if tag == "equal":
            lines.append(f"  {left}")
        else:
            lines += [f"- {left}"] if left else []
            lines += [f"+ {right}"] if right else []
    return "\n".join(line.rstrip() for line in lines)
