# SPDX-License-Identifier: GPL-2.0-only
"""Tables of faults: the path run over every row of a DataFrame, compiled.

The functions are the path's own.  A loop over the columns is written from the table's description
(`kvm_pf.run.tables`), linked with a revision's steps and compiled by numba.  Compiling takes seconds, so a short
table is run by the same loop and the same functions uncompiled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import cache
from numbers import Integral
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import numpy as np
import pandas as pd

from kvm_pf.bits import U64_MASK
from kvm_pf.common.cores import cores
from kvm_pf.common.errors import InputError
from kvm_pf.common.files import as_path, regular, write
from kvm_pf.common.text import bit_names
from kvm_pf.revisions import Revision, get, logic_names, steps_of
from kvm_pf.revisions.link import digest, link
from kvm_pf.run.inputs import brief, entry_point, limits, outputs, parse, takes, words
from kvm_pf.run.ranges import Uses, as_int64, span_of
from kvm_pf.run.tables import CASE_LABELS, ENTRY_POINTS, MODE_COLUMNS, MODES, EntryPoint, Input, Output
from kvm_pf.state import PAGE_SHIFT

PLAIN_ROWS = 100_000
"""Tables up to this length are run uncompiled: it takes about as long as compiling would."""

CHUNK = 1 << 15
"""Rows that one thread works on at a time."""

MOST_ROWS = 1_000_000_000
"""Rows of a Parquet file that are evaluated, unless told otherwise."""

GROUP_BYTES = 1 << 30
"""What a row group of a Parquet file may take, unpacked."""

EVERY_ROW = (1 << 64) - 1
"""The stride of a column that has a value for each row."""


# The loop over the rows


def _gates(wanted: list[Output]) -> list[str]:
    """The flags that say whether an output was reached, each once."""
    return list(dict.fromkeys(o.reached for o in wanted if o.reached))


def _loop(table: EntryPoint, wanted: list[Output]) -> FunctionType:
    """Write the loop: each input is read at `i & stride`, so that a stride of 0 makes a constant of it.

    Row numbers are unsigned, or every access would look whether it counts from the end.
    """
    gates = _gates(wanted)
    arrays = [f"i_{i.column}" for i in table.inputs] + [f"o_{o.column}" for o in wanted]
    arrays += [f"g_{n}" for n in range(len(gates))]
    lines = [f"def loop(start, stop, strides, {', '.join(arrays)}):", " for i in range(start, stop):"]
    for n, column in enumerate(table.inputs):
        value = f"i_{column.column}[i & strides[{n}]]"
        lines.append(f"  {column.column} = {f'{value} != 0' if column.kind == 'bool' else f'word({value})'}")
    lines.append(f"  o = {table.row.__name__}({', '.join(i.column for i in table.inputs)})")
    lines += [f"  o_{o.column}[i] = {o.path if '(' in o.path else f'o.{o.path}'}" for o in wanted]
    lines += [f"  g_{n}[i] = o.{gate} != 0" for n, gate in enumerate(gates)]
    scope: dict[str, Any] = {
        **logic_names(),
        table.row.__name__: table.row,
        "word": int,
        "__name__": __name__,
    }
    exec(_code("\n".join(lines)), scope)
    loop: FunctionType = scope["loop"]
    return loop


@cache
def _code(text: str) -> CodeType:
    return compile(text, __file__, "exec")


_IN_TYPES: dict[str, np.dtype[Any]] = {
    "u64": np.dtype(np.int64), "int": np.dtype(np.int16), "label": np.dtype(np.int16), "bool": np.dtype(np.uint8),
}  # fmt: skip
_OUT_TYPES: dict[str, np.dtype[Any]] = {
    "u64": np.dtype(np.uint64), "long": np.dtype(np.int64), "int": np.dtype(np.int16), "bool": np.dtype(np.uint8),
    "warns": np.dtype(np.int16), "label": np.dtype(np.uint8),
}  # fmt: skip

_compiled: dict[str, Any] = {}
"""Compiled functions by fingerprint; what two revisions share is compiled once."""


def uses(kind: str, revision: Revision) -> Uses:
    """Find out which operators of the path read unsigned values, given all that the columns can hold.

    Raises InputError naming the step and the operator that compiled code could not compute as Python does.
    """
    table = ENTRY_POINTS[kind]
    found = Uses()

    def bind(function: FunctionType) -> Any:
        if function.__name__ == "loop":
            function.__globals__["word"] = lambda value: value
            return function
        return found.bind(function)

    wanted = outputs(kind, revision)
    given = [[found.value(*limits(column)[:2])] for column in table.inputs]
    made: list[list[Any]] = [[0] for _ in (*wanted, *_gates(wanted))]
    loop = link(_loop(table, wanted), revision.names, bind, found.constant)
    loop(0, 1, [0] * len(given), *given, *made)
    for output, (value,) in zip(wanted, made, strict=False):
        _check_output(output, revision.name, *span_of(value))
    return found


def _check_output(output: Output, revision: str, least: int, greatest: int) -> None:
    """Raise InputError unless all that an output can be fits into its column; a u64 holds the low 64 bits."""
    if output.kind == "u64":
        return
    limit = np.iinfo(_OUT_TYPES[output.kind])
    low, high = int(limit.min), int(limit.max)
    if output.labels:
        low, high = 0, (1 << len(output.labels) if output.kind == "warns" else len(output.labels)) - 1
    if least < low or greatest > high:
        raise InputError(
            f"revision {revision!r}: what it says for column {output.column!r} can be {least} to {greatest}, "
            f"and the column holds {low} to {high}"
        )


def _fingerprint(table: EntryPoint, revision: Revision) -> str:
    return digest(_loop(table, outputs(table.kind, revision)), revision.names)


def compiled_loop(kind: str, revision: Revision) -> Any:
    """Compile the loop of `kind` for `revision`, or load it from the cache of an earlier process."""
    from kvm_pf.run.compiler import kept, numba
    from kvm_pf.run.unsigned import compiled

    table = ENTRY_POINTS[kind]
    wanted = outputs(kind, revision)
    fingerprint = _fingerprint(table, revision)
    if fingerprint in _compiled:
        return _compiled[fingerprint]

    found = uses(kind, revision)

    def step(function: FunctionType) -> Any:
        unsigned = found.unsigned(function.__code__)
        key = f"{digest(function, {})} {sorted(unsigned)}"
        if key not in _compiled:
            # Only the loop is ever called from Python: without wrappers, all is compiled in half the time.
            inner: Any = {"forceinline": True, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
            _compiled[key] = compiled(function, unsigned, **inner)
        return _compiled[key]

    def compile_loop(cached: bool) -> Any:
        def bind(function: FunctionType) -> Any:
            if function.__name__ != "loop":
                return step(function)
            function.__globals__["word"] = np.int64
            function.__qualname__ = f"loop_u64_{kind}_{fingerprint}"
            return numba.njit(function, nogil=True, error_model="numpy", cache=cached)

        loop = link(_loop(table, wanted), revision.names, bind, as_int64)
        loop.compile((numba.uint64, numba.uint64, *array))
        return loop

    given = [_IN_TYPES[i.kind] for i in table.inputs]
    made = [np.dtype(np.int64) if o.kind == "u64" else _OUT_TYPES[o.kind] for o in wanted] + [
        _OUT_TYPES["bool"]
    ] * len(_gates(wanted))
    array = [numba.types.Array(numba.from_dtype(np.dtype(np.uint64)), 1, "C")]
    array += [numba.types.Array(numba.from_dtype(t), 1, "C", readonly=True) for t in given]
    array += [numba.types.Array(numba.from_dtype(t), 1, "C") for t in made]
    try:
        loop = kept(compile_loop)
    except numba.core.errors.NumbaError as error:
        what = str(error).strip().partition("\n")[0]
        raise InputError(
            f"revision {revision.name!r} cannot be compiled ({what}); engine='plain' runs it"
        ) from error
    _compiled[fingerprint] = loop
    return loop


def _in_threads(work: Callable[[Any], Any], jobs: Iterable[Any]) -> list[Any]:
    """Do all jobs, on every core; compiled loops and numpy's copies let each other run."""
    with ThreadPoolExecutor(cores()) as threads:
        return list(threads.map(work, jobs))


def _run_compiled(loop: Any, rows: int, strides: Any, given: list[Any], made: list[Any]) -> None:
    from kvm_pf.run.compiler import read_only

    made = [array.view(np.int64) if array.dtype == np.uint64 else array for array in made]
    given = [read_only(array) for array in given]

    def work(start: int) -> None:
        loop(np.uint64(start), np.uint64(min(start + CHUNK, rows)), strides, *given, *made)

    if rows <= CHUNK:
        work(0)
        return
    _in_threads(work, range(0, rows, CHUNK))


def _run_plain(
    loop: Any,
    kinds: list[str],
    rows: int,
    strides: Any,
    given: list[Any],
    made: list[Any],
    check: Callable[[int, int, int], None],
) -> None:
    """Run the loop uncompiled: unsigned values as they are, in lists; `check` the ends of every small column."""
    lists = [(a.view(np.uint64) if k == "u64" else a).tolist() for a, k in zip(given, kinds, strict=True)]
    results: list[list[Any]] = [[0] * rows for _ in made]
    loop(0, rows, strides.tolist(), *lists, *results)
    for n, (array, values) in enumerate(zip(made, results, strict=True)):
        if array.dtype in (np.int64, np.uint64):  # a u64 holds what is left modulo 2^64
            array.view(np.uint64)[:] = [value & U64_MASK for value in values]
        else:
            check(n, min(values), max(values))
            array[:] = values


# What goes in


def _place(frame: pd.DataFrame, row: int) -> str:
    label = frame.index[row]
    return (
        f"row {row}" if isinstance(label, Integral) and label == row else f"row {row} (index {brief(label)})"
    )


_NO_VALUE = "no value (leave the column out to get its default)"


def _distinct(series: pd.Series) -> tuple[Any, list[Any]]:
    """Number the distinct values of a column: the number of each row's, and the values.

    Texts, integers and categories are counted; of anything else, every row is distinct, for 1, 1.0 and True
    are equal and yet not the same, and not everything can be compared.
    """
    dtype = series.dtype
    if (
        isinstance(dtype, pd.CategoricalDtype)
        or pd.api.types.is_string_dtype(series)
        or (
            pd.api.types.is_object_dtype(dtype)
            and pd.api.types.infer_dtype(series, skipna=False) == "integer"
        )
    ):
        codes, values = pd.factorize(series, use_na_sentinel=False)
        return codes, list(values)
    return np.arange(len(series)), list(series)


def _numbers(frame: pd.DataFrame, column: Input, known: Mapping[str, int]) -> Any:
    """Return the column as an array of its type (u64: as int64 of the same bits).

    Raises InputError naming column and row of the first value that is missing, unreadable or out of range.
    """
    series = frame[column.column]
    low, high, _ = limits(column)
    target = _IN_TYPES[column.kind]
    if not len(series):
        return np.empty(0, target)

    def complain(row: int, what: str) -> InputError:
        return InputError(
            f"column {column.column!r}, {_place(frame, row)}: {what}; it takes {takes(column, known)}"
        )

    dtype = series.dtype
    if not pd.api.types.is_object_dtype(dtype) and series.hasnans:
        row = int(series.isna().to_numpy().argmax())
        raise complain(row, _NO_VALUE)
    if pd.api.types.is_float_dtype(dtype) or pd.api.types.is_complex_dtype(dtype):
        raise InputError(
            f"column {column.column!r}, {_place(frame, 0)}: it holds {dtype}, and 64-bit codes do not fit into "
            f"floats; give integers or text such as 0x1f"
        )
    if pd.api.types.is_bool_dtype(dtype) and column.kind == "bool":
        return series.to_numpy(dtype=bool).view(np.uint8)
    if pd.api.types.is_integer_dtype(dtype) and not isinstance(dtype, pd.CategoricalDtype):
        unsigned = pd.api.types.is_unsigned_integer_dtype(dtype)
        numbers = series.to_numpy(dtype=np.uint64 if unsigned else np.int64)
        if column.kind == "label":
            raise complain(0, f"{int(numbers[0])} is no name")
        if int(numbers.min()) < low or int(numbers.max()) > high:
            wrong = numbers < 0 if column.kind == "u64" else (numbers < low) | (numbers > high)
            row = int(wrong.argmax())
            raise complain(row, f"{int(numbers[row])} is out of range")
        if column.kind == "u64":
            array = np.ascontiguousarray(numbers)
            return array.view(np.int64)
        return np.ascontiguousarray(numbers.astype(target))
    codes, distinct = _distinct(series)
    values: list[int] = []
    for code, value in enumerate(distinct):
        number = parse(value, column, known)
        if number is None or not low <= number <= high:
            row = int((codes == code).argmax())
            what = f"{brief(value)} is {'not readable' if number is None else 'out of range'}"
            absent = value is None or value is pd.NA or (isinstance(value, float) and value != value)
            raise complain(row, _NO_VALUE if absent else what)
        values.append(number)
    if column.kind == "u64":
        return np.array(values, dtype=np.uint64)[codes].view(np.int64)
    return np.array(values, dtype=target)[codes]


def _default(column: Input, known: Mapping[str, int]) -> Any:
    value = known[column.default] if isinstance(column.default, str) else column.default
    return np.array([value], dtype=np.uint64 if column.kind == "u64" else _IN_TYPES[column.kind]).view(
        _IN_TYPES[column.kind]
    )


_MODE = Input("mode", "label", "tdp", "the paging mode", tuple(MODES))


def _unfold(frame: pd.DataFrame, table: EntryPoint) -> pd.DataFrame:
    """Give the columns that `mode` stands for, where they are absent.

    Raises InputError for a mode that there is not, and for a column that only names what others would say.
    """
    columns = [i.column for i in table.inputs]
    for label, stands_for in CASE_LABELS.items():
        absent = [c for c in stands_for if c in columns and c not in frame]
        if label not in frame or not absent or (label != "mode" and len(absent) < len(stands_for)):
            continue
        if label != "mode":
            raise InputError(f"column {label!r} only names a state; give {', '.join(absent)}")
        codes = _numbers(frame, _MODE, {mode: n for n, mode in enumerate(MODES)})
        flags = np.array(list(MODES.values()))[codes]
        frame = frame.assign(**{c: flags[:, n] for n, c in enumerate(MODE_COLUMNS) if c in absent})
    return frame


def _check_columns(frame: Any, table: EntryPoint) -> None:
    if not isinstance(frame, pd.DataFrame):
        raise InputError(f"a table of faults is a pandas DataFrame, not a {type(frame).__name__}")
    known = [i.column for i in table.inputs]
    silent = {*table.labels, *(o.column for o in table.outputs)}
    for n, column in enumerate(frame.columns):
        if not isinstance(column, str) or column not in {*known, *silent}:
            raise InputError(
                f"column {brief(column)} (number {n}) is no input of {table.kind} tables; they have "
                f"{', '.join(known)}"
            )
    doubled = frame.columns[frame.columns.duplicated()]
    if len(doubled):
        raise InputError(f"column {doubled[0]!r} is there twice")


# What comes out


@cache
def _warn_texts(names: tuple[str, ...]) -> list[str]:
    return [bit_names(code, names) for code in range(1 << len(names))]


def _text_column(codes: Any, texts: list[str], missing: Any) -> Any:
    import pyarrow as pa

    array = pa.DictionaryArray.from_arrays(pa.array(codes, mask=missing), pa.array(texts, pa.large_string()))
    return pd.array(array.cast(pa.large_string()), dtype=pd.StringDtype("pyarrow", na_value=pd.NA))


def _shown(output: Output, values: Any, missing: Any) -> Any:
    """Make the pandas column of an output: 64-bit values UInt64, text for names, <NA> where not reached."""
    if output.kind in ("warns", "label"):
        texts = _warn_texts(output.labels) if output.kind == "warns" else list(output.labels)
        return _text_column(values, texts, missing)
    mask = np.zeros(len(values), dtype=bool) if missing is None else missing.copy()
    return pd.arrays.IntegerArray(values, mask)


def evaluate(
    frame: pd.DataFrame, revision: str | Revision = "posted", *, kind: str = "cases", engine: str = "auto"
) -> pd.DataFrame:
    """Run a way into the path over a table.

    `kind` says which (`kvm_pf.run.tables.ENTRY_POINTS`): "cases" for kvm_mmu_page_fault(), "sources" for the exits'
    handlers that lead to it, "faultin" for kvm_faultin_pfn(), "page_ready" for kvm_arch_async_page_ready(),
    "pre_fault" for kvm_arch_vcpu_pre_fault_memory().
    `frame` has any of that entry point's input columns, as integers or as text (decimal, or hexadecimal with 0x);
    absent columns get the defaults named there, an absent `gfn` is that of `addr`.  `mode` may stand for direct,
    is_tdp, guest_mode and nested.  `pf_ret`, the handler's answer, is a name (FIXED, EMULATE, …), a negative errno, or
    the revision's own number.  Output columns that ride along are not read.
    `engine`: "compiled", "plain" (the same functions, uncompiled), or "auto": plain for a short table.
    The plain run computes with exact integers, which is what a step means; compiled code gives the same numbers or
    refuses a step whose numbers 64 bits cannot hold, which engine="plain" still runs.

    Returns a DataFrame with the same index and every output column of the entry point that `revision` has: 64-bit
    values UInt64, small numbers Int16, flags UInt8 (0 or 1), `warns` text joined by "|", and <NA> for what was not
    reached.

    Raises InputError naming column and row of what is wrong; step and operator of what cannot be compiled; and a
    column of small numbers that could not hold what a derived revision's step says.
    """
    if not isinstance(engine, str) or engine not in ("auto", "plain", "compiled"):
        raise InputError(f"engine {brief(engine)}: it takes auto, plain or compiled")
    table, revision = entry_point(kind), get(revision)
    _check_columns(frame, table)
    frame = _unfold(frame, table)
    rows = len(frame)
    given, strides = [], np.zeros(len(table.inputs), dtype=np.uint64)
    for n, column in enumerate(table.inputs):
        known = words(column, revision)
        if column.column in frame:
            given.append(_numbers(frame, column, known))
            strides[n] = EVERY_ROW
        elif column.column == "gfn" and "addr" in frame:
            addresses = _numbers(frame, table.inputs[[i.column for i in table.inputs].index("addr")], {})
            given.append((addresses.view(np.uint64) >> PAGE_SHIFT).view(np.int64))
            strides[n] = EVERY_ROW
        else:
            given.append(_default(column, known))
    wanted = outputs(kind, revision)
    gates = _gates(wanted)
    made = [np.empty(rows, dtype=_OUT_TYPES[o.kind]) for o in wanted]
    made += [np.empty(rows, dtype=np.uint8) for _ in gates]
    if engine == "auto":
        is_ready = bool(_compiled) and _fingerprint(table, revision) in _compiled
        engine = "compiled" if rows > PLAIN_ROWS or is_ready else "plain"
    if rows and engine == "compiled":
        _run_compiled(compiled_loop(kind, revision), rows, strides, given, made)
    elif rows:
        kinds = [i.kind for i in table.inputs]

        def check(n: int, least: int, greatest: int) -> None:
            if n < len(wanted):
                _check_output(wanted[n], revision.name, least, greatest)

        loop = link(_loop(table, wanted), revision.names)
        with steps_of(revision):
            _run_plain(loop, kinds, rows, strides, given, made, check)
    absent = {gate: values == 0 for gate, values in zip(gates, made[len(wanted) :], strict=True)}
    columns = list(zip(wanted, made, strict=False))

    def show(column: tuple[Output, Any]) -> Any:
        output, values = column
        return _shown(output, values, absent[output.reached] if output.reached else None)

    arrays = _in_threads(show, columns) if rows > CHUNK else [show(column) for column in columns]
    shown = dict(zip((o.column for o in wanted), arrays, strict=True))
    return pd.DataFrame(shown, index=frame.index, copy=False)


def evaluate_parquet(
    source: str | Path,
    target: str | Path,
    revision: str | Revision = "posted",
    *,
    kind: str = "cases",
    batch_rows: int = 1 << 19,
    most_rows: int = MOST_ROWS,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Evaluate a Parquet file into another, batch by batch: memory stays bounded however long the file.

    `progress` is called with (rows done, rows in all) after each batch.  Returns the number of rows.
    Raises InputError if `source` is no Parquet file, if it has more than `most_rows` rows (a few kilobytes can
    hold any number), or as `evaluate` does; the index that it names is then the row in the file.
    `target` is written whole or not at all, as kvm_pf.common.files.write does.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    entry_point(kind)
    source, target = as_path(source, "a Parquet file"), as_path(target, "the file to write")
    if regular(target) and source.exists() and target.samefile(source):
        raise InputError(f"{target}: this is the table itself; name another file to write")
    done = 0
    with write(target) as file, ExitStack() as opened:
        writer: Any = None
        for frame, rows in read_parquet(source, batch_rows):
            if rows > most_rows:
                raise InputError(
                    f"{source}: there are {rows:,} rows in it, and {most_rows:,} are the most; "
                    "a higher limit would let it be read"
                )
            frame.index = pd.RangeIndex(done, done + len(frame))
            engine = "auto" if rows <= PLAIN_ROWS else "compiled"
            result = evaluate(frame, revision, kind=kind, engine=engine)
            answer = pa.Table.from_pandas(result, preserve_index=False)
            if writer is None:
                writer = opened.enter_context(pq.ParquetWriter(file, answer.schema))
            writer.write_table(answer)
            done += len(frame)
            if progress:
                progress(done, rows)
    return done


def read_parquet(path: str | Path, batch_rows: int) -> Iterator[tuple[pd.DataFrame, int]]:
    """Read a Parquet file batch by batch; give each batch, and the number of rows in all.

    As `parquet_batches` does; whole numbers stay whole where values are missing.
    """
    import pyarrow as pa

    def whole(arrow_type: Any) -> Any:
        return pd.ArrowDtype(arrow_type) if pa.types.is_integer(arrow_type) else None

    for batch, rows in parquet_batches(path, batch_rows):
        with _readable(path):
            frame = batch.to_pandas(types_mapper=whole, ignore_metadata=True)
        yield frame, rows


@contextmanager
def _readable(path: str | Path) -> Iterator[None]:
    """Raise InputError naming the file for whatever Arrow finds wrong with what it holds."""
    import pyarrow as pa

    try:
        yield
    except (OSError, ValueError, pa.ArrowException) as error:
        raise InputError(f"{path}: not readable as a table ({str(error).partition(chr(10))[0]})") from None


def parquet_batches(
    path: str | Path, batch_rows: int, words: Sequence[str] = ()
) -> Iterator[tuple[Any, int]]:
    """Read a Parquet file as Arrow's record batches; give each batch, and the number of rows in all.

    The first batch is empty, so that a file without rows gives its columns too.  A nameless index that pandas wrote is
    left out.  Columns of text named in `words` come as dictionaries.
    Raises InputError naming the file if it is not readable, or if one of its row groups, which are read as a
    whole, unpacks to more than GROUP_BYTES.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    def named(batch: Any) -> Any:
        names = batch.schema.names
        return batch.select([n for n, name in enumerate(names) if not name.startswith("__index_level_")])

    path = as_path(path, "a Parquet file")
    if regular(path) is None:
        raise InputError(f"{path}: not readable as a table: there is no such file")
    with _readable(path):
        there = {field.name: field.type for field in pq.read_schema(path)} if words else {}
        dictionaries = [name for name in words if name in there and not pa.types.is_nested(there[name])]
        # What is buffered ahead is kept until the file is closed: memory would grow with it.
        with pq.ParquetFile(path, read_dictionary=dictionaries, pre_buffer=False) as file:
            rows = file.metadata.num_rows
            groups = (file.metadata.row_group(n).total_byte_size for n in range(file.metadata.num_row_groups))
            if any(size > GROUP_BYTES for size in groups):
                raise ValueError(
                    f"a row group unpacks to more than {GROUP_BYTES:,} bytes; write it with smaller row groups"
                )
            yield named(file.schema_arrow.empty_table()), rows
            for batch in file.iter_batches(batch_size=batch_rows):
                yield named(batch), rows
