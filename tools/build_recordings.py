#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Carry recordings over into data/recordings and join them into one table.

    tools/build_recordings.py DIR [--out data/recordings]

DIR is one boot's directory, or a directory of such directories.  Each boot's traces, JSON and summaries are
gzipped, its logs are cut to the lines that matter, and `faults.csv.gz` is made anew: one row per fault of all the
boots that OUT then holds.
The tables between the markers of the README in OUT are written anew.  The same input gives the same bytes.
"""

from __future__ import annotations

import argparse
import gzip
import io
import re
import shutil
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from kvm_pf.common.errors import InputError  # noqa: E402
from kvm_pf.conformance.fault_rows import columns, dump_faults  # noqa: E402
from kvm_pf.conformance.join import faults  # noqa: E402
from kvm_pf.conformance.recordings import Recording, read_recording  # noqa: E402

KEEP = {
    "dmesg.txt": re.compile(
        r"((?:\[ *\d+\.\d+\] )?"
        r"(?:Linux version \S+|Command line: .*|(?:SVM: )?kvm(?:_amd|_intel)?: .*|WARNING: .*))"
    ),
    "console.log": re.compile(r"(LAB (?:boot|/sys|pfinject|scenario|rc).*|recorder: .*|[prf]\d*:lab/.*)"),
}
"""Lines of the logs that are carried, and of each line the part."""


def pack(data: bytes) -> bytes:
    """Gzip without time and name."""
    out = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", compresslevel=9, fileobj=out, mtime=0) as file:
        file.write(data)
    return out.getvalue()


def carry(source: Path, target: Path) -> None:
    """Carry one boot's directory over."""
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.iterdir()):
        if path.name == "provenance.json":
            shutil.copy(path, target)
        elif path.name in KEEP:
            lines = path.read_text(errors="replace").splitlines()
            kept = [found[1] for line in lines if (found := KEEP[path.name].match(line))]
            (target / path.name).write_text("".join(f"{line}\n" for line in kept))
        elif path.name.endswith((".trace", ".json", ".summary.txt")):
            (target / f"{path.name}.gz").write_bytes(pack(path.read_bytes()))


def counts(recordings: list[Recording]) -> str:
    """Say in a table what each recording holds."""
    lines = [
        "| directory | kernel | mode | scenarios | events | faults | by source | WARNs |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for recording in recordings:
        by_source = Counter(row.source for row in faults(recording))
        cells = (
            f"`{recording.name}`", recording.kernel, recording.mode, len(recording.scenarios),
            sum(len(scenario.trace) for scenario in recording.scenarios), by_source.total(),
            ", ".join(f"{source} {count}" for source, count in sorted(by_source.items())),
            ", ".join(f"{warn.function} {warn.file}:{warn.line}" for warn in recording.warnings) or "–",
        )  # fmt: skip
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def described() -> str:
    """Say in a table what each column holds."""
    lines = ["| column | kind | from | what |", "|---|---|---|---|"]
    for name, column in columns().items():
        source = f"`{column.source}`" if column.source else ""
        lines.append(f"| `{name}` | {column.kind} | {source} | {column.means.replace('|', ', ')} |")
    return "\n".join(lines)


def rewrite(readme: Path, tables: dict[str, str]) -> None:
    """Put tables between the markers of a README."""
    text = readme.read_text()
    for name, table in tables.items():
        head, rest = text.split(f"<!-- {name} -->\n")
        text = f"{head}<!-- {name} -->\n{table}\n<!-- end -->" + rest.split("<!-- end -->", 1)[1]
    readme.write_text(text)


def main() -> int:
    """Run the command line."""
    shape = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=shape)
    parser.add_argument("directory", type=Path, help="one boot's recordings, or a directory of such")
    parser.add_argument("--out", type=Path, default=ROOT / "data" / "recordings")
    given = parser.parse_args()
    boots = sorted({path.parent for path in given.directory.glob("**/*.trace")})
    try:
        if not boots:
            raise InputError(f"{given.directory}: no *.trace here or below; recordings are wanted")
        for boot in boots:
            carry(boot, given.out / boot.name)
        carried = sorted(path for path in given.out.iterdir() if path.is_dir())
        recordings = [read_recording(path) for path in carried]
        rows = [row for recording in recordings for row in faults(recording)]
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    (given.out / "faults.csv.gz").write_bytes(pack(dump_faults(rows).encode()))
    if (readme := given.out / "README.md").exists():
        rewrite(readme, {"counts": counts(recordings), "columns": described()})
    for recording in recordings:
        count = sum(row.recording == recording.name for row in rows)
        print(f"{recording.name}: {count} faults", *recording.gaps(), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
