# SPDX-License-Identifier: GPL-2.0-only
"""Tables of faults in Parquet files, written, read and classified part by part: memory stays bounded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvm_pf.common.errors import InputError
from kvm_pf.common.files import write
from kvm_pf.common.text import visible
from kvm_pf.common.typed import typed
from kvm_pf.revisions import Revision
from kvm_pf.run.meanings import ENCODINGS
from kvm_pf.trace.digest import Digest
from kvm_pf.trace.faults import (
    COLUMNS,
    DTYPES,
    SOURCES,
    Joiner,
    classified,
    frame,
    is_amd,
    is_intel,
)
from kvm_pf.trace.lines import Pace, Reader
from kvm_pf.trace.reading import Survey
from kvm_pf.trace.release import Signs

if TYPE_CHECKING:
    import pandas as pd

MAGIC = b"PAR1"
"""What a Parquet file begins with."""

ROWS = 1 << 18
"""Rows that are read at once, and that a row group has which is written."""

_WORDS = tuple(name for name, dtype in DTYPES.items() if dtype == "string")


@contextmanager
def writing(path: str | Path) -> Iterator[Callable[[pd.DataFrame], None]]:
    """Write a Parquet file of tables of faults: the block gets a function that takes the next one, a row group each.

    The file is there, whole, when the block has ended well; it has the columns of the first table, without any those
    of `kvm_pf.trace.read`.  Raises InputError if it cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with write(path) as file, ExitStack() as opened:
        writer: Any = None

        def add(part: pd.DataFrame) -> None:
            nonlocal writer
            table = pa.Table.from_pandas(part, preserve_index=False).replace_schema_metadata()
            if writer is None:
                words = [pa.field(f.name, pa.string() if f.name in _WORDS else f.type) for f in table.schema]
                writer = opened.enter_context(pq.ParquetWriter(file, pa.schema(words)))
            writer.write_table(table.cast(writer.schema))

        yield add
        if writer is None:
            add(frame([], None, False))


class TableStream(Survey):
    """A Parquet table of faults that is read in parts: as `kvm_pf.trace.reading.Stream`, without a text to read.

    The table needs `raw_code`, and may have any column of `kvm_pf.trace.read`; others ride along.  Unless it has
    `encoding`, or if `anew` is True, the codes are classified here; the vendor is taken from `source`, and from the
    codes so far.  Words come as categories.  Raises InputError if the file is no such table.
    """

    def __init__(
        self,
        path: str | Path,
        revision: Revision | str | None = None,
        pace: Pace | None = None,
        anew: bool = False,
    ) -> None:
        super().__init__(str(path), "Parquet", Reader(), Joiner(), Digest())
        self.path, self.pace, self.anew = path, pace or Pace(), anew
        self._signs = Signs(revision)
        self.digest.take(self._signs.read_as())

    def parts(self, rows: int = ROWS) -> Iterator[pd.DataFrame]:
        """Yield the faults in tables of at most `rows` each."""
        from kvm_pf.run.batch import parquet_batches

        done = 0
        for batch, count in parquet_batches(self.path, rows, _WORDS):
            part = _frame(self.path, batch, done)
            is_raw = self.anew or "encoding" not in part
            if is_raw:
                self._vendor_of(part)
                part = self._classified(part)
            self._signs.look_at_table(part)
            if self._signs.read_as() != self.digest.read_as:
                self.digest.take(self._signs.read_as())
                part = self._classified(part) if is_raw else part
            self._digest(part, done)
            done += len(part)
            self.pace.done, self.pace.size = done, count
            self.pace.tick()
            if self.pace.stopped:
                return
            if len(part) or not count:
                yield part

    def _classified(self, part: pd.DataFrame) -> pd.DataFrame:
        return classified(part, self.vendor, False, self.digest.read_as.revision, as_text=False)

    def so_far(self) -> None:
        """Give the faults since the last part: none, for they come with it."""

    def _vendor_of(self, part: pd.DataFrame) -> None:
        counts: Any = part["raw_code"].value_counts().items()
        for code, count in counts:
            self.joiner.amd_codes += is_amd(int(code)) * int(count)
            self.joiner.intel_codes += is_intel(int(code)) * int(count)

    def _digest(self, part: pd.DataFrame, done: int) -> None:
        filled = _filled(part, done)
        kinds = filled["source"].value_counts()
        self.joiner.amd += int(kinds.get("npf", 0))
        self.joiner.intel += int(kinds.get("ept", 0)) + int(kinds.get("misconfig", 0))
        self.reader.lines = done + len(part)
        self.joiner.events["kvm_page_fault"] += len(part)
        times = filled["time"]
        if times.notna().any():
            first, last = float(times.min()), float(times.max())
            self.joiner.first = first if self.joiner.first is None else min(self.joiner.first, first)
            self.joiner.last = last if self.joiner.last is None else max(self.joiner.last, last)
        self.digest.add(filled)


def _frame(path: str | Path, batch: Any, done: int) -> pd.DataFrame:
    """Make a table of Arrow's batch, the known columns of their kinds: nothing that does not fit is taken."""
    import pandas as pd
    import pyarrow as pa

    if "raw_code" not in batch.schema.names:
        raise InputError(
            f"{path}: a table of faults has a column raw_code; this one has {batch.schema.names}"
        )
    kinds: dict[Any, Any] = {
        pa.int64(): pd.Int64Dtype(), pa.int32(): pd.Int32Dtype(), pa.uint64(): pd.UInt64Dtype(),
        pa.bool_(): pd.BooleanDtype(), pa.float64(): pd.Float64Dtype(),
    }  # fmt: skip
    wanted = {str(dtype): arrow for arrow, dtype in kinds.items()}
    columns, names = [], batch.schema.names
    for name in names:
        column = batch.column(name)
        column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        kind = DTYPES.get(name)
        try:
            if kind in wanted and column.type != wanted[kind]:
                if pa.types.is_floating(column.type) and kind != "Float64":
                    raise pa.ArrowInvalid(f"{column.type} cannot hold whole numbers of 64 bits")
                column = column.cast(wanted[kind])
            elif kind == "string" and not (
                pa.types.is_dictionary(column.type) and column.type.value_type == pa.string()
            ):
                column = column.cast(pa.string()).dictionary_encode()
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise InputError(f"{path}: column {name}: {kind} is wanted ({error})") from None
        columns.append(column)
    try:
        table = pa.table(columns, names=names)
        table.validate(full=True)  # what a damaged file says of itself need not hold
        made: pd.DataFrame = table.to_pandas(types_mapper=kinds.get)
    except (ValueError, pa.ArrowException) as error:
        raise InputError(f"{path}: is damaged: {error}") from None
    for name, words in (("source", SOURCES), ("encoding", (*ENCODINGS, "misconfig"))):
        if name in made and (odd := ~made[name].isin(words) & made[name].notna() & (made[name] != "")).any():
            row = int(odd.to_numpy().argmax())
            raise InputError(
                f"{path}: column {name}, row {done + row + 1}: {visible(str(made[name].iloc[row])[:40])} is none of "
                f"{', '.join(words)}"
            )
    return made


def _filled(part: pd.DataFrame, done: int) -> pd.DataFrame:
    """Add the columns that a table of `read` has, as gaps; rows without a line get the number of the row."""
    import numpy as np
    import pandas as pd

    count = len(part)
    gaps = np.ones(count, dtype=bool)
    absent: dict[str, Any] = {}
    for name in COLUMNS:
        dtype = DTYPES[name]
        if name == "line":
            numbers = pd.Series(np.arange(done + 1, done + count + 1), index=part.index, dtype="Int64")
            absent[name] = part[name].fillna(numbers) if name in part else numbers
        elif name in part:
            continue
        elif dtype == "string":
            default = {"outcome": "not shown", "source": ""}.get(name)
            codes = np.full(count, -1 if default is None else 0, dtype=np.int8)
            words = pd.Index([] if default is None else [default], dtype="str")
            absent[name] = pd.Categorical.from_codes(codes, categories=words)
        elif dtype == "boolean":
            absent[name] = pd.arrays.BooleanArray(np.zeros(count, dtype=bool), gaps)
        elif dtype == "Float64":
            absent[name] = pd.arrays.FloatingArray(np.zeros(count), gaps)
        else:
            kind: Any = dtype.lower()
            absent[name] = pd.arrays.IntegerArray(np.zeros(count, dtype=kind), gaps)
    return part.assign(**absent)


@typed(rows=40)
def convert(
    source: str | Path,
    target: str | Path,
    revision: Revision | str | None = None,
    rows: int = ROWS,
    pace: Pace | None = None,
) -> Survey:
    """Classify a Parquet table of faults into another, part by part; return what it amounts to.

    Takes any table that has `raw_code`, of any length; see TableStream.  Raises InputError if `source` is none, and
    if `target` cannot be written.
    """
    stream = TableStream(source, revision, pace, anew=True)
    with writing(target) as add:
        for part in stream.parts(rows):
            add(part)
    return stream
