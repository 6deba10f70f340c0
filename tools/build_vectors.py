# SPDX-License-Identifier: GPL-2.0-only
"""Re-encode kernel vectors (KIND_REVISION.csv.gz) as typed Parquet: python tools/build_vectors.py FROM [TO].

64-bit values become uint64, small numbers int16, names dictionary-encoded text, blanks nulls.  The same input
gives the same bytes.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

NUMBER = re.compile(r"-?(0x[0-9a-f]+|[0-9]+)")


def column(texts: pd.Series) -> pa.Array:
    """Encode one column by what its texts are."""
    unique = set(texts.unique()) - {""}
    if not unique or not all(NUMBER.fullmatch(text) for text in unique):
        return pa.array(texts.tolist(), pa.string()).dictionary_encode()
    wide = any(text.startswith("0x") for text in unique)
    numbers = {text: int(text, 0) for text in unique}
    kind = pa.uint64() if wide else pa.int16() if max(numbers.values()) < 1 << 15 else pa.int32()
    return pa.array([numbers.get(text) for text in texts], kind)


def main(source: Path, target: Path) -> None:
    """Re-encode every table of `source` into `target`."""
    for path in sorted(source.glob("*.csv.gz")):
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
        table = pa.table({name: column(frame[name]) for name in frame})
        out = target / path.name.replace(".csv.gz", ".parquet")
        pq.write_table(table, out, compression="zstd", compression_level=19)
        print(f"{out}: {table.num_rows} rows, {out.stat().st_size} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2] if len(sys.argv) > 2 else "data/vectors"))
