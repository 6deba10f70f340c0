# SPDX-License-Identifier: GPL-2.0-only
"""Which curated case kills which mutant: the committed result of breaking the logic (data/mutants).

load() -> Kills
minimal(matrix) -> ids of cases that together kill all that is killed
idle(matrix) -> ids of cases that kill nothing that another does not kill
coverage(by) -> how many curated cases there are of each step, flag, VM type, revision or topic
"""

from __future__ import annotations

import ast
import gzip
import hashlib
import importlib
import inspect
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from kvm_pf.common.errors import InputError
from kvm_pf.common.files import write
from kvm_pf.common.paths import data_dir
from kvm_pf.conformance.corpus import load_corpus
from kvm_pf.proof.mutants import MODULES, Mutant, Settled, covered, reached, rows
from kvm_pf.revisions import REVISIONS
from kvm_pf.run.tables import VM_TYPES

KILLED, EQUIVALENT, GAP = "killed", "equivalent", "gap"

COLUMNS = ("module", "name", "line", "change", "verdict", "killers", "proof")


class Kills(NamedTuple):
    """What became of every mutant.

    `mutants` has a row for each mutant, `cases` one for each curated case, with columns as in data/mutants/README.md;
    `matrix` has a row for each case and a column for each mutant, True where the case kills the mutant.
    """

    mutants: pd.DataFrame
    cases: pd.DataFrame
    matrix: pd.DataFrame

    def of(self, module: str, name: str = "") -> Kills:
        """Keep the mutants of one module, or of one function or constant in it, and the cases that kill any.

        Raises InputError if there are none.
        """
        kept = self.mutants[
            (self.mutants["module"] == module) & (self.mutants["name"].eq(name) | (name == ""))
        ]
        if kept.empty:
            raise InputError(f"there are no mutants of {module}{name and '.' + name}")
        matrix = self.matrix[kept.index]
        matrix = matrix[matrix.any(axis=1)]
        return Kills(kept, self.cases.loc[matrix.index], matrix)


def table(mutants: Sequence[Mutant], killers: Sequence[list[str]], settled: dict[int, Settled]) -> Kills:
    """Put together what was found out: each mutant's killers, and what was proved of those without."""
    rows: list[tuple[Any, ...]] = []
    for number, (mutant, ids) in enumerate(zip(mutants, killers, strict=True)):
        proof, gap = settled.get(number, ("", ""))
        verdict = KILLED if ids else GAP if gap else EQUIVALENT
        rows.append((mutant.module, mutant.name, mutant.line, mutant.change, verdict, len(ids), proof or gap))
    topics = load_corpus().cases.drop_duplicates("id").set_index("id")["topic"].rename_axis("case")
    found = [set(ids) for ids in killers]
    matrix = pd.DataFrame([[case in ids for ids in found] for case in topics.index], topics.index, dtype=bool)
    needed, spare = minimal(matrix), idle(matrix)
    cases = pd.DataFrame(
        {
            "topic": topics,
            "kills": matrix.sum(axis=1),
            "alone": matrix.loc[:, matrix.sum() == 1].sum(axis=1),
            "minimal": matrix.index.isin(needed).astype(int),
            "idle": matrix.index.isin(spare).astype(int),
        }
    )
    return Kills(pd.DataFrame(rows, columns=list(COLUMNS)), cases, matrix)


# --- data/mutants ---


def digests() -> dict[str, str]:
    """Fingerprints of what is broken and of what must notice: the logic's text, and the cases."""
    logic, cases = hashlib.sha256(), hashlib.sha256()
    for short in MODULES:
        tree = ast.parse(inspect.getsource(importlib.import_module(f"kvm_pf.{short}")))
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef)
                and ast.get_docstring(node) is not None
            ):
                node.body = node.body[1:] or [ast.Pass()]
        # Which quotation marks it writes depends on Python's version.
        logic.update(ast.unparse(tree).replace('"', "'").encode())
    for row in load_corpus().cases[["id", "revision", "function", "input", "expect"]].itertuples(index=False):
        cases.update(repr(tuple(row)).encode())
    return {"logic": logic.hexdigest()[:16], "cases": cases.hexdigest()[:16]}


def save(kills: Kills, folder: Path, ran: Mapping[str, str]) -> None:
    """Write data/mutants: the mutants with their killers as a bit for each case, the cases, and what was run.

    `ran` has the digests() of that.
    """
    folder.mkdir(parents=True, exist_ok=True)
    bits = [sum(1 << int(n) for n in np.flatnonzero(kills.matrix[mutant])) for mutant in kills.matrix]
    text = kills.mutants.assign(killed_by=[f"{word:x}" for word in bits]).to_csv(
        index=False, lineterminator="\n"
    )
    counts = {"mutants": len(kills.mutants), **Counter(kills.mutants["verdict"])}
    lines = [
        "# SPDX-License-Identifier: GPL-2.0-only",
        *(f'{key} = "{value}"' for key, value in ran.items()),
        *(f"{k} = {n}" for k, n in counts.items()),
    ]
    files = {
        "mutants.csv.gz": gzip.compress(text.encode(), mtime=0),
        "cases.csv": kills.cases.to_csv(lineterminator="\n").encode(),
        "run.toml": ("\n".join(lines) + "\n").encode(),
    }
    with ExitStack() as together:
        for name, content in files.items():
            together.enter_context(write(folder / name)).write(content)


def load(folder: Path | None = None) -> Kills:
    """Read data/mutants.  Raises InputError if it is not there."""
    folder = folder or data_dir() / "mutants"
    try:
        mutants = pd.read_csv(folder / "mutants.csv.gz", keep_default_na=False)
        cases = pd.read_csv(folder / "cases.csv", index_col="case")
    except OSError as error:
        raise InputError(f"{folder}: no result of breaking the logic ({error})") from None
    words = [int(word, 16) for word in mutants.pop("killed_by").astype(str)]
    matrix = np.array([[word >> n & 1 for word in words] for n in range(len(cases))], dtype=bool)
    return Kills(mutants, cases, pd.DataFrame(matrix, cases.index))


def stale(folder: Path | None = None) -> list[str]:
    """Say what has changed since data/mutants was written: "logic", "cases", both, or nothing."""
    ran = tomllib.loads(((folder or data_dir() / "mutants") / "run.toml").read_text(encoding="utf-8"))
    return [what for what, digest in digests().items() if ran[what] != digest]


# --- which cases are needed ---


def minimal(matrix: pd.DataFrame) -> list[str]:
    """Choose cases that together kill all that is killed: again and again the one that kills most of the rest.

    That is few, and each is needed beside those chosen after it; it need not be the fewest there are.
    """
    left = matrix.to_numpy()[:, matrix.any().to_numpy()]
    chosen: list[str] = []
    while left.any():
        best = int(left.sum(axis=1).argmax())
        chosen.append(str(matrix.index[best]))
        left = left[:, ~left[best]]
    for case in reversed(chosen[:]):
        if matrix.loc[[c for c in chosen if c != case]].any().sum() == matrix.any().sum():
            chosen.remove(case)
    return chosen


def idle(matrix: pd.DataFrame) -> list[str]:
    """List the cases whose every kill another case has, too: any one of them could go."""
    alone = matrix.loc[:, matrix.sum() == 1].any(axis=1)
    return [str(case) for case in matrix.index[~alone]]


# --- what the corpus is about ---


def coverage(by: str) -> pd.Series[int]:
    """Count the curated cases of each "step", "flag", "vm_type", "revision" or "topic"; what has none counts 0.

    A case counts for each step that it runs, for each of its flags, and for each revision that it speaks of.
    Raises InputError for another `by`.
    """
    cases: list[dict[Any, Any]] = load_corpus().cases.to_dict("records")
    known: list[str] = []
    if by == "step":
        names = {code: function.__name__ for code, function in reached().items()}
        known = [*dict.fromkeys(names.values())]
        pairs = {(names[code], row.id) for row, codes in covered() for code in codes}
    elif by == "flag":
        pairs = {(flag, case["id"]) for case in cases for flag in case["flags"]}
    elif by == "vm_type":
        known = list(VM_TYPES)
        pairs = {(known[row.given["vm_type"]], row.id) for row in rows() if row.kind == "cases"}
    elif by in ("revision", "topic"):
        known = list(REVISIONS) if by == "revision" else []
        pairs = {(case[by], case["id"]) for case in cases}
    else:
        raise InputError(f"cases are counted by step, flag, vm_type, revision or topic, not by {by!r}")
    counts = Counter(thing for thing, _ in sorted(pairs))
    return pd.Series({**dict.fromkeys(known, 0), **counts}, name="cases").rename_axis(by)
