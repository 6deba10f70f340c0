# SPDX-License-Identifier: GPL-2.0-only
"""Compare the model with tables of the kernel's own answers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kvm_pf.common.errors import InputError
from kvm_pf.common.files import as_path, regular
from kvm_pf.common.text import one_line, write_number
from kvm_pf.common.typed import typed
from kvm_pf.revisions import ROWS, get
from kvm_pf.run.batch import evaluate, read_parquet
from kvm_pf.run.inputs import number, outputs
from kvm_pf.run.tables import TABLES

CHUNK_ROWS = 125_000
CHUNK_BYTES = 1 << 23
"""How much of a table is read at a time: rows of Parquet, bytes of CSV."""

LIMIT = 1 << 32
"""How much of a table is read at most, unpacked: 4 GiB, unless told otherwise."""

ALIASES = {row.vectors: row.name for row in ROWS if row.vectors}
"""Short names of the revisions in the facts that the project started from."""


@dataclass
class TableDifference:
    """One value of one row on which the table and the model differ."""

    row: int  # counted from 0, the header not counted
    case: str  # the row's case_id, if it has one
    column: str
    expected: str
    got: str


@dataclass
class TableReport:
    """What comparing one table showed."""

    name: str
    kind: str
    revision: str
    rows: int = 0
    compared: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)  # output columns that the table does not have
    foreign: list[str] = field(default_factory=list)  # and those that this revision does not have
    differing: int = 0  # rows
    by_column: dict[str, int] = field(default_factory=dict)
    first: list[TableDifference] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [
            f"{one_line(self.name, 200)}: {self.kind}, {self.revision}: {self.rows} rows, "
            f"{len(self.compared)} columns compared, {self.differing} differing rows"
        ]
        if self.missing:
            lines.append(f"  not in the table: {', '.join(self.missing)}")
        if self.foreign:
            lines.append(f"  not of this revision: {', '.join(self.foreign)}")
        lines += [f"  {column}: {count} rows differ" for column, count in self.by_column.items()]
        for d in self.first:
            where = f"row {d.row}" + (f" (case_id {one_line(d.case, 80)})" if d.case else "")
            expected, got = (one_line(text, 200) or "blank" for text in (d.expected, d.got))
            lines.append(f"  {where}, {d.column}: table {expected}, model {got}")
        return "\n".join(lines)


COLUMNS = 1000
"""A table of vectors has no more columns; many take hours."""


def kind_and_revision(path: Path, revision: str | None = None) -> tuple[str, str]:
    """Read a table's kind and revision off its name: KIND_REVISION.csv, .csv.gz or .parquet.

    `revision` overrules the name's; both may be short (ALIASES).
    Raises InputError if the name does not say, or says what there is not.
    """
    parts = re.fullmatch(rf"({'|'.join(TABLES)})(?:_(.*))?\.(?:csv|csv\.gz|parquet)", path.name)
    if not parts:
        raise InputError(
            f"{path}: a table's name is {' or '.join(TABLES)}, _, a revision, and .csv, .csv.gz or .parquet"
        )
    kind, named = parts[1], revision or parts[2] or ""
    name = ALIASES.get(named, named)
    try:
        return kind, get(name).name
    except InputError as error:
        raise InputError(f"{path}: {error}; name one with --revision") from None


def _chunks(path: Path, limit: int) -> Iterator[pd.DataFrame]:
    """Read a table in pieces: CSV as text, Parquet as it is typed; of more than `limit` bytes, no more."""
    if path.suffix == ".parquet":
        pieces: Iterator[tuple[pd.DataFrame, int]] = (
            (frame, int(frame.memory_usage(deep=True).sum())) for frame, _ in read_parquet(path, CHUNK_ROWS)
        )
    else:
        pieces = _csv_pieces(path)
    done = 0
    for frame, size in pieces:
        done += size
        if done > limit:
            raise InputError(
                f"{path}: there are more than {limit:,} bytes in it; a higher limit would let it be read"
            )
        yield frame


def _csv_pieces(path: Path) -> Iterator[tuple[pd.DataFrame, int]]:
    """Read a CSV table as text, in pieces; give each with the bytes that it takes."""
    import pyarrow as pa
    from pyarrow import compute, csv

    if regular(path) is None:
        raise InputError(f"{path}: not readable as a table: there is no such file")
    try:
        with csv.open_csv(path) as head:
            names = head.schema.names
        if len(names) > COLUMNS:
            raise ValueError(f"it has {len(names)} columns, and no table more than {COLUMNS}")
        text = {name: pa.string() for name in names}
        blocks = csv.ReadOptions(block_size=CHUNK_BYTES)
        with csv.open_csv(path, blocks, convert_options=csv.ConvertOptions(column_types=text)) as batches:
            for batch in batches:
                for name, column in zip(batch.schema.names, batch.columns, strict=True):
                    if compute.any(compute.match_substring(column, "\n")).as_py():
                        raise ValueError(f"column {name!r}: a quotation mark is not closed")
                for start in range(0, max(len(batch), 1), CHUNK_ROWS):
                    piece = batch.slice(start, CHUNK_ROWS)
                    yield piece.to_pandas(), piece.nbytes
    except (OSError, ValueError, pa.ArrowException) as error:
        raise InputError(f"{path}: not readable as a table ({one_line(error, 200)})") from None


def _expected(column: pd.Series) -> Any:
    """Read a column of the table: whole numbers as such, blanks and names as text."""
    if pd.api.types.is_integer_dtype(column.dtype) or pd.api.types.is_bool_dtype(column.dtype):
        return _got(column)
    texts = _got(column)
    if not all(isinstance(text, str) for text in texts):
        raise InputError(f"column {column.name!r} holds {column.dtype}; it takes integers or text")
    values = {}
    for text in set(texts):
        read = number(text)
        values[text] = text if read is None else read
    return np.array([values[text] for text in texts], dtype=object)


def _got(column: pd.Series) -> Any:
    """The model's column as an array of objects, with blanks for what was not reached."""
    return np.where(column.isna().to_numpy(), "", column.to_numpy(dtype=object))


def _written(value: int | str) -> str:
    return value if isinstance(value, str) else write_number(value)


@typed()
def check_table(
    path: str | Path,
    revision: str | None = None,
    *,
    first: int = 5,
    engine: str = "auto",
    limit: int = LIMIT,
    progress: Callable[[int], None] | None = None,
) -> TableReport:
    """Compare every output column of a table of kernel vectors with the model.

    `path` is a CSV file (also gzipped) or a Parquet file with the columns of kvm_pf.run.tables; its name gives kind
    and revision unless `revision` does.  Of a table with more than `limit` bytes, unpacked, no more is read; memory is
    bounded however long the table.  `progress` is called with the number of rows done.
    Raises InputError, naming the file, if it cannot be read or its inputs are wrong.
    """
    path = as_path(path, "a table of kernel vectors")
    kind, name = kind_and_revision(path, revision)
    report = TableReport(path.name, kind, name)
    wanted = [o.column for o in outputs(kind, get(name))]
    for frame in _chunks(path, limit):
        start = report.rows
        frame.index = pd.RangeIndex(start, start + len(frame))
        report.compared = [c for c in wanted if c in frame]
        report.missing = [c for c in wanted if c not in frame]
        if not report.compared:
            raise InputError(f"{path}: no output column to compare; there would be {', '.join(wanted)}")
        report.foreign = [
            o.column for o in TABLES[kind].outputs if o.column in frame and o.column not in wanted
        ]
        try:
            result = evaluate(frame, name, kind=kind, engine=engine)
            expectations = {column: _expected(frame[column]) for column in report.compared}
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
        wrong_rows = pd.Series(False, index=frame.index)
        for column, expected in expectations.items():
            got = _got(result[column])
            wrong = expected != got
            if wrong.any():
                wrong_rows |= wrong
                report.by_column[column] = report.by_column.get(column, 0) + int(wrong.sum())
                for row in frame.index[wrong][: max(0, first - len(report.first))]:
                    case = str(frame["case_id"][row]) if "case_id" in frame else ""
                    there = _written(expected[row - start]), _written(got[row - start])
                    report.first.append(TableDifference(row, case, column, *there))
        report.differing += int(wrong_rows.sum())
        report.rows += len(frame)
        if progress:
            progress(report.rows)
    if not report.rows:
        raise InputError(f"{path}: the table has no rows")
    return report
