# SPDX-License-Identifier: GPL-2.0-only
"""Tables of faults in Parquet files, written and read part by part."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvm_pf.common.files import write

if TYPE_CHECKING:
    import pandas as pd


@contextmanager
def writing(path: str | Path) -> Iterator[Callable[[pd.DataFrame], None]]:
    """Write a Parquet file of tables of faults: the block gets a function that takes the next one, a row group each.

    The file is there, whole, when the block has ended well; it has the columns of `kvm_pf.trace.read`, also if no
    table came.  Raises InputError if it cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    from kvm_pf.trace.faults import frame

    with write(path) as file, ExitStack() as opened:
        schema = pa.Schema.from_pandas(frame([], None, False), preserve_index=False).remove_metadata()
        writer: Any = opened.enter_context(pq.ParquetWriter(file, schema))

        def add(part: pd.DataFrame) -> None:
            writer.write_table(pa.Table.from_pandas(part, schema=schema, preserve_index=False))

        yield add
