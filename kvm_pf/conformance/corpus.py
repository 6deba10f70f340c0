# SPDX-License-Identifier: GPL-2.0-only
"""The corpus: curated cases, kernel vectors and recorded faults, as tables that are checked when they are read.

Curated cases (data/cases) are reasoned by hand from sources.  Kernel vectors (data/vectors) are what the
kernel's own functions returned.  Recordings (data/recordings) are faults of a running KVM.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import cache, cached_property, lru_cache
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import pandas as pd

from kvm_pf.common.errors import InputError
from kvm_pf.common.files import folder as new_folder
from kvm_pf.common.files import write
from kvm_pf.common.paths import data_dir
from kvm_pf.common.text import one_line
from kvm_pf.common.typed import typed
from kvm_pf.conformance.cases import (
    CASE_COLUMNS,
    CaseDifference,
    case_files,
    changed_at,
    read_cases,
    run_case,
)
from kvm_pf.conformance.cases import differences as rows_that_differ
from kvm_pf.conformance.vectors import kind_and_revision
from kvm_pf.revisions import REVISIONS, Revision, get
from kvm_pf.run.inputs import brief, limits, outputs
from kvm_pf.run.tables import TABLES, Input, Output


def case_schema() -> Any:
    """Return the pandera schema of `Corpus.cases`."""
    import pandera.pandas as pa

    text: dict[str, Any] = {"dtype": "str", "nullable": False}
    known = {kind: {i.column for i in t.inputs} | set(t.labels) for kind, t in TABLES.items()}
    made = {kind: {o.column for o in t.outputs} for kind, t in TABLES.items()}

    def known_columns(column: str, columns: dict[str, set[str]]) -> Any:
        def good(frame: pd.DataFrame) -> pd.Series:
            pairs = zip(frame["kind"], frame[column], strict=True)
            return pd.Series(
                [kind not in columns or set(values) <= columns[kind] for kind, values in pairs], frame.index
            )

        return pa.Check(good, name=f"{column} columns are those of the table")

    return pa.DataFrameSchema(
        {
            "id": pa.Column(**text, checks=pa.Check.str_matches(r"^[a-z0-9][a-z0-9-]*$")),
            "topic": pa.Column(**text),
            "kind": pa.Column(**text, checks=pa.Check.isin([*TABLES, "call"])),
            "function": pa.Column(**text),
            "revision": pa.Column(**text, checks=pa.Check.isin(list(REVISIONS))),
            "why": pa.Column(**text, checks=pa.Check.str_length(min_value=10, max_value=500)),
            "flags": pa.Column(
                object,
                pa.Check(
                    lambda flags: bool(flags) and all(isinstance(f, str) for f in flags),
                    element_wise=True,
                    name="words",
                ),
            ),
            "source": pa.Column(**text, checks=pa.Check.str_length(min_value=5)),
            "input": pa.Column(object),
            "expect": pa.Column(
                object, pa.Check(lambda expect: bool(expect), element_wise=True, name="something")
            ),
        },
        checks=[known_columns("input", known), known_columns("expect", made)],
        unique=["id", "revision"],
        strict=True,
        ordered=True,
    )


def vector_schema(kind: str, revision: str) -> Any:
    """Return the pandera schema of a table of kernel vectors: every column, its type and its range."""
    import pandera.pandas as pa

    table = TABLES[kind]
    columns: dict[str, Any] = {"case_id": pa.Column("Int64", unique=True)}
    for label in table.labels:
        if label != "case_id":
            columns[label] = pa.Column("str", required=False)
    for column in table.inputs:
        low, high, _ = limits(column)
        if column.kind == "label":
            check, dtype = pa.Check.isin(list(column.labels)), "str"
        else:
            check, dtype = pa.Check.in_range(low, high), "UInt64" if column.kind == "u64" else "Int64"
        columns[column.column] = pa.Column(dtype, check, required=False)
    for output in outputs(kind, get(revision)):
        dtype = {"u64": "UInt64", "warns": "str", "label": "str"}.get(output.kind, "Int64")
        columns[output.column] = pa.Column(dtype, nullable=True, required=False)
    return pa.DataFrameSchema(columns, strict=True)


class Corpus:
    """The three tables; each is read and checked when used, and everyone gets a copy to change."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def cases(self) -> pd.DataFrame:
        """Curated cases: one row for each case and revision; columns as in CASE_COLUMNS."""
        frame = self._cases.copy()
        for part in ("input", "expect"):
            frame[part] = frame[part].map(dict)
        return frame

    @cached_property
    def _cases(self) -> pd.DataFrame:
        frame = pd.DataFrame(read_cases(self.folder), columns=list(CASE_COLUMNS))
        for column in CASE_COLUMNS:
            frame[column] = frame[column].astype(object if column in ("flags", "input", "expect") else "str")
        places = [f"{row.topic}.toml, case {row.id}, {row.revision}" for row in frame.itertuples()]
        return _checked(frame, case_schema(), places)

    @cached_property
    def vector_tables(self) -> dict[tuple[str, str], Path]:
        """The files of kernel vectors by kind and revision."""
        files = sorted((self.folder / "vectors").glob("*.parquet"))
        return {kind_and_revision(file): file for file in files}

    def vectors(self, kind: str = "cases", revision: str = "posted") -> pd.DataFrame:
        """Read a table of kernel vectors: inputs and outputs of one revision's own functions.

        Raises InputError if there is no such table, or if it does not fit its schema.
        """
        if (kind, revision) not in self.vector_tables:
            have = ", ".join("_".join(key) for key in self.vector_tables)
            raise InputError(f"there are no kernel vectors {kind}_{revision}; there are {have}")
        path = self.vector_tables[kind, revision]
        types = {**_types(kind, revision), "case_id": "Int64"}
        try:
            frame = pd.read_parquet(path, dtype_backend="numpy_nullable")
            numbers = [str(column) for column in frame if types.get(str(column), "str") != "str"]
            frame[numbers] = frame[numbers].replace("", pd.NA)  # nothing but blanks was written as text
            frame = frame.astype({str(column): types.get(str(column), "str") for column in frame})
        except (OSError, ValueError, TypeError) as error:
            raise InputError(f"{path}: not a table of kernel vectors ({brief(str(error))})") from None
        return _checked(frame, vector_schema(kind, revision), [f"{path.name}, row {n}" for n in frame.index])

    @property
    def recordings(self) -> pd.DataFrame:
        """Recorded faults, one row each; columns as in data/recordings/README.md."""
        return self._recordings.copy()

    @cached_property
    def _recordings(self) -> pd.DataFrame:
        from kvm_pf.conformance.fault_rows import fault_frame, load_faults

        return fault_frame(load_faults(self.folder / "recordings" / "faults.csv.gz"))

    def records(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield (name of table, record) for every row of the corpus, as JSON takes it.

        What has 64 bits is text with 0x, because many a reader of JSON makes a float of a long number.
        """
        for case in self.cases.to_dict("records"):
            told = {part: _told(case["kind"], case[part]) for part in ("input", "expect")}
            yield "cases", {**dict[Any, Any](case), "flags": list(case["flags"]), **told}
        for (kind, revision), path in self.vector_tables.items():
            frame = self.vectors(kind, revision)
            inputs = [c.column for c in TABLES[kind].inputs if c.column in frame]
            made = [o.column for o in TABLES[kind].outputs if o.column in frame]
            for row in _rows(frame):
                yield (
                    path.stem,
                    {
                        "id": f"{path.stem}-{row['case_id']}",
                        "kind": kind,
                        "revision": revision,
                        "source": "kernel",
                        "input": {c: row[c] for c in inputs},
                        "expect": {c: row[c] for c in made},
                    },
                )
        for row in _rows(self.recordings):
            name = f"{row['recording']}-{row['scenario']}-{row['fault']}"
            yield "recordings", {"id": name, "kind": "recording", "source": "recording", "fault": row}


def _rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a table as JSON takes them."""
    wide = frame.select_dtypes("UInt64")
    frame = frame.assign(**{str(c): wide[c].astype(object).map(hex, na_action="ignore") for c in wide})
    rows: list[dict[Any, Any]] = frame.astype(object).where(frame.notna(), None).to_dict("records")
    return rows


def _told(kind: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """A curated case's values as JSON takes them; of a call's, a number beyond 32 bits is taken for a wide one."""

    def is_wide(name: str, value: int) -> bool:
        return name in _wide(kind) if kind in TABLES else value >> 32 > 0

    return {
        name: hex(value) if isinstance(value, int) and is_wide(name, value) else value
        for name, value in values.items()
    }


@cache
def _wide(kind: str) -> set[str]:
    """The columns of 64 bits in tables of a kind."""
    columns: list[Input | Output] = [*TABLES[kind].inputs, *TABLES[kind].outputs]
    return {column.column for column in columns if column.kind == "u64"}


def _types(kind: str, revision: str) -> dict[str, str]:
    spec: list[Input | Output] = [*TABLES[kind].inputs, *outputs(kind, get(revision))]
    return {s.column: {"u64": "UInt64", "warns": "str", "label": "str"}.get(s.kind, "Int64") for s in spec}


def _checked(frame: pd.DataFrame, schema: Any, places: list[str]) -> pd.DataFrame:
    """Check a table, whose rows stand in `places`; complain of the first row and column that do not fit."""
    import pandera.errors

    try:
        checked: pd.DataFrame = schema.validate(frame, lazy=True)
    except pandera.errors.SchemaErrors as error:
        first = error.failure_cases.sort_values("index", kind="stable").iloc[0]
        place = places[0] if pd.isna(first["index"]) else places[int(first["index"])]
        raise InputError(
            f"{place}: {first['column']}: {brief(first['failure_case'])} fails {first['check']}"
        ) from None
    return checked


@typed()
def load_corpus(folder: str | Path | None = None) -> Corpus:
    """Return the corpus: the package's own, or the one in `folder` (laid out like data/).

    Cases and recordings are read once, and again when a file has changed; a table of vectors, whenever asked for.
    Raises InputError if `folder` has no cases; a table that is wrong raises InputError when it is first used.
    """
    folder = data_dir() if folder is None else Path(folder)
    try:
        files = case_files(folder)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise InputError(f"{one_line(folder, 200)}: cannot be read: {why}") from None
    if not files:
        raise InputError(f"{folder}: no cases/*.toml here")
    files = sorted(folder.glob("*/*"))
    return _corpus(folder, tuple((file, changed_at(file)) for file in files))


@lru_cache(maxsize=4)
def _corpus(folder: Path, files: tuple[tuple[Path, int], ...]) -> Corpus:
    """The corpus as its files, with the times of their last change, have it."""
    return Corpus(folder)


# Running curated cases


def run_cases(cases: pd.DataFrame, revision: str | Revision | None = None) -> pd.DataFrame:
    """Run curated cases and return `cases` with a column `got`: the model's values of the expected columns.

    `revision` runs them all on one revision (a name, or one made in a notebook) whatever they are for.
    """
    rows: list[dict[Any, Any]] = cases.to_dict("records")
    got = [run_case(row, revision) for row in rows]
    return cases.assign(got=pd.Series(got, cases.index, dtype=object))


def differences(cases: pd.DataFrame, revision: str | Revision | None = None) -> list[CaseDifference]:
    """Run curated cases and list every expected value that the model does not give, as `run_cases` takes them."""
    rows: list[dict[Any, Any]] = cases.to_dict("records")
    return rows_that_differ(rows, revision)


# Export


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of one exported record."""
    wide = {"type": "string", "pattern": "^0x[0-9a-f]{1,16}$"}

    def values(*types: str) -> dict[str, Any]:
        return {"type": "object", "additionalProperties": {"type": [*types]}}

    def expected(column: Output) -> dict[str, Any]:
        if column.kind == "u64":
            return {"anyOf": [wide, {"type": "null"}]}
        return {"type": ["string" if column.kind in ("warns", "label") else "integer", "null"]}

    def inputs(kind: str) -> dict[str, Any]:
        properties: dict[str, Any] = {label: {"type": "string"} for label in TABLES[kind].labels}
        for column in TABLES[kind].inputs:
            low, high, _ = limits(column)
            about: dict[str, Any] = {"description": column.means, "default": column.default}
            if column.kind == "label":
                about["enum"] = list(column.labels)
            elif column.kind == "u64":
                about |= {**wide, "default": hex(int(column.default))}
            else:
                about |= {"type": ["integer", "string"], "minimum": low, "maximum": high}
            properties[column.column] = about
        return {"properties": properties, "additionalProperties": False}

    def of_kind(kind: str, inputs: Any, outputs: Any) -> dict[str, Any]:
        then = {
            "required": ["revision", "input", "expect"],
            "properties": {"input": inputs, "expect": outputs},
        }
        return {"if": {"properties": {"kind": {"const": kind}}}, "then": then}

    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A fault of KVM's page-fault path: what went in, what must come out",
        "type": "object",
        "required": ["id", "kind", "source"],
        "properties": {
            "id": {"type": "string"},
            "kind": {"enum": [*TABLES, "call", "recording"]},
            "revision": {"enum": list(REVISIONS)},
            "source": {"type": "string"},
            "why": {"type": "string"},
            "topic": {"type": "string"},
            "function": {"type": "string"},
            "flags": {"type": "array", "items": {"type": "string"}},
            "input": values("integer", "string"),
            "expect": values("integer", "string", "null"),
            "fault": values("integer", "string", "boolean", "null"),
        },
        "additionalProperties": False,
        "allOf": [
            *(
                of_kind(
                    kind,
                    inputs(kind),
                    {
                        "properties": {o.column: expected(o) for o in table.outputs},
                        "additionalProperties": False,
                    },
                )
                for kind, table in TABLES.items()
            ),
            of_kind("call", True, True),
        ],
    }


def export(
    folder: str | Path, progress: Callable[[str], None] | None = None, corpus: Corpus | None = None
) -> dict[Path, int]:
    """Write a corpus (without one: ours) as JSON lines, one gzipped file a table, and schema.json beside them.

    Returns the number of records in each file.  What has 64 bits is text with 0x.  `progress` is called with each
    table's name as it is begun.  The files are put in place together when all are written
    (kvm_pf.common.files.write); `folder` is made if it is absent.
    """
    written: dict[Path, int] = {}
    with new_folder(folder) as where, ExitStack() as together:
        schema = where / "schema.json"
        text = json.dumps(json_schema(), indent=1) + "\n"
        together.enter_context(write(schema)).write(text.encode())
        written[schema] = 1
        for table, records in groupby((corpus or load_corpus()).records(), key=itemgetter(0)):
            path = where / f"{table}.jsonl.gz"
            written[path] = 0
            if progress:
                progress(table)
            file = together.enter_context(write(path))
            with gzip.GzipFile("", "wb", compresslevel=6, fileobj=file, mtime=0) as lines:
                for _, record in records:
                    lines.write((json.dumps(record, ensure_ascii=False) + "\n").encode())
                    written[path] += 1
    return written
