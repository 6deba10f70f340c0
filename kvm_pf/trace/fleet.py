# SPDX-License-Identifier: GPL-2.0-only
"""Many traces at once, here or on a Dask cluster: a file is a partition, and each is read by the same functions.

    kvm-pf trace traces/ --workers 2                      # on this machine
    kvm-pf trace traces/ --scheduler tcp://HOST:8786      # on a cluster whose workers see the same files
    kvm-pf trace traces/ --workers 2 --out faults/        # each file's table as well, as Parquet

The answers are the same to the row as without Dask.  A worker that dies costs the files that it was reading: they
are read again.  A file is not split, since the events around a fault are joined; `kvm_pf.trace.scan` with a client,
which joins nothing, splits one plain file among the workers.  The tables that `--out` writes are partitions for
`dask.dataframe.read_parquet("faults/")`.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import repeat
from os.path import isfile, join
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvm_pf.common.errors import InputError
from kvm_pf.common.files import check_target, folder, scratch
from kvm_pf.common.text import one_line, visible
from kvm_pf.common.typed import typed
from kvm_pf.revisions import Revision
from kvm_pf.trace.digest import Digest, storm_table
from kvm_pf.trace.faults import table
from kvm_pf.trace.lines import FILES, UNPACKED, Pace
from kvm_pf.trace.reading import Stream, Survey
from kvm_pf.trace.report import counts, disagreements, followed, section
from kvm_pf.trace.tables import MAGIC, TableStream, writing

if TYPE_CHECKING:
    import pandas as pd


def stream_of(
    file: str | Path, revision: Revision | str | None = None, pace: Pace | None = None
) -> Stream | TableStream:
    """Open a trace, or a Parquet table of faults: it is told by its first bytes."""
    is_table = False
    if str(file) != "-" and Path(file).is_file():
        try:
            with open(file, "rb") as opened:
                is_table = opened.read(len(MAGIC)) == MAGIC
        except OSError as error:
            raise InputError(f"{file}: {error.strerror or error}") from error
    return TableStream(file, revision, pace) if is_table else Stream(file, revision, pace)


def survey(
    file: str | Path,
    revision: Revision | str | None = None,
    out: str | Path | None = None,
    limit: int = UNPACKED,
) -> Survey:
    """Read one trace in bounded memory; give what it amounts to, and write its table to `out` if that is given.

    `limit` is the most bytes that a packed trace may hold.
    """
    stream = stream_of(file, revision, Pace(limit))
    with writing(out) if out is not None else nullcontext() as add:
        for part in stream.parts():
            if add:
                add(part)
        stream.check()
    return Survey(stream.name, stream.kind, stream.reader, stream.joiner, stream.digest)


@dataclass
class Refused:
    """A file that could not be read, and why."""

    name: str
    why: str


def _survey(file: str, revision: Revision | str | None, out: str | None, limit: int) -> Survey | Refused:
    try:
        return survey(file, revision, out, limit)
    except InputError as error:
        return Refused(file, one_line(error))


@dataclass
class Fleet:
    """What many traces amount to: `surveys` in the order of the files, `refused` those that could not be read."""

    surveys: list[Survey]
    refused: list[Refused]

    def files(self) -> pd.DataFrame:
        """List the traces, a row each.

        Columns: `file`, `kind`, `cpu`, `faults`, `span` (s), `storms`, `longest` (the number of faults of the longest
        storm), `disagreements`, `lost`, `read_as` (the revision that the trace is read as).
        """
        rows = []
        for one in self.surveys:
            storms = one.digest.finder.found
            joiner = one.joiner
            span = None if joiner.first is None or joiner.last is None else joiner.last - joiner.first
            rows.append((
                one.name, one.kind, one.vendor, one.digest.rows, span, len(storms),
                storms[0].faults if storms else 0, one.digest.disagreeing.count, one.reader.lost,
                one.digest.read_as.revision.name,
            ))  # fmt: skip
        dtypes = {
            "file": "string", "kind": "string", "cpu": "string", "faults": "Int64", "span": "Float64",
            "storms": "Int64", "longest": "Int64", "disagreements": "Int64", "lost": "Int64", "read_as": "string",
        }  # fmt: skip
        return table({name: [row[n] for row in rows] for n, name in enumerate(dtypes)}, dtypes)

    def digest(self) -> Digest:
        """Add up the counts by code, by outcome and by what should have followed; pages and storms are each file's."""
        total = Digest()
        for one in self.surveys:
            total.absorb(one.digest)
        return total

    def storms(self) -> pd.DataFrame:
        """List the storms of all traces, the longest first: as `kvm_pf.trace.storms`, and `file`."""
        found = [(storm, one.name) for one in self.surveys for storm in one.digest.finder.found]
        found.sort(key=lambda pair: -pair[0].faults)
        listed = storm_table(storm for storm, _ in found)
        listed.insert(0, "file", table({"file": [name for _, name in found]}, {"file": "string"})["file"])
        return listed

    def disagreements(self) -> pd.DataFrame:
        """List where traces and model disagree: `file`, `line`, `what`."""
        import pandas as pd

        parts = [
            disagreements(one).assign(file=one.name) for one in self.surveys if one.digest.disagreeing.count
        ]
        empty = pd.DataFrame({"file": [], "line": [], "what": []})
        return pd.concat([empty, *parts], ignore_index=True)[["file", "line", "what"]]


@typed(limit=60, most=40)
def read_all(
    files: Sequence[str | Path],
    revision: Revision | str | None = None,
    out: str | Path | None = None,
    client: Any = None,
    progress: Callable[[str], None] | None = None,
    limit: int = UNPACKED,
    most: int = FILES,
) -> Fleet:
    """Read many traces, one after another, or on the workers of a Dask client at once.

    `files` are traces as `load` takes them, or Parquet tables of faults; a folder stands for the files in it.  `out`
    is a folder for a Parquet table of each.  `progress` is called with what is done; `limit` is the most bytes that a
    packed trace may hold.  Raises InputError if there is none of them, or more than `most`, and if `out` cannot be
    made or written to.
    """
    names = expanded(files)
    if len(names) > most:
        given = ", ".join(map(str, files[:1])) + (f" and {len(files) - 1} more" if len(files) > 1 else "")
        raise InputError(
            f"{given}: {len(names)} files are more than {most}, the most that are read at once: --most (most=) takes "
            "another number"
        )
    with _targets(names, out) as targets:
        found: list[Survey | Refused] = []
        if client is None:
            answers: Iterable[Survey | Refused] = map(
                _survey, names, repeat(revision), targets, repeat(limit)
            )
        else:
            answers = _on_workers(client, names, revision, targets, limit)
        for answer in answers:
            found.append(answer)
            if progress:
                progress(f"{len(found)} of {len(names)} traces")
    return Fleet(
        [one for one in found if isinstance(one, Survey)], [one for one in found if isinstance(one, Refused)]
    )


def _on_workers(
    client: Any, names: list[str], revision: Revision | str | None, targets: list[str | None], limit: int
) -> Iterator[Survey | Refused]:
    """Have the workers read the files; give the answers in the order of the files, each as soon as it can be."""
    from distributed import KilledWorker

    futures = client.map(_survey, names, [revision] * len(names), targets, [limit] * len(names), pure=False)
    for n, future in enumerate(futures):
        try:
            yield client.gather(future)
        except KilledWorker:
            yield Refused(names[n], f"{names[n]}: the workers that read it died, again and again")
        futures[n] = None  # the worker need not keep it


def expanded(files: Sequence[str | Path]) -> list[str]:
    """Put the files in the place of each folder, by name, hidden ones left out."""
    names: list[str] = []
    for file in files:
        if Path(file).is_dir():
            try:
                inside = sorted(os.listdir(file))
            except OSError as error:
                raise InputError(f"{file}: {error.strerror or error}") from error
            names += [str(Path(file, name)) for name in inside if name[0] != "." and isfile(join(file, name))]
        else:
            names.append(str(file))
    if not names:
        raise InputError(f"{', '.join(map(str, files)) or 'no trace is given'}: there is no file in it")
    return names


@contextmanager
def _targets(names: list[str], out: str | Path | None) -> Iterator[list[str | None]]:
    """Name the table of each file: in a folder of their own, from where they are moved to `out` when all are there.

    What a worker leaves behind that dies while it writes goes with that folder.
    """
    if out is None:
        yield [None] * len(names)
        return
    tables = [f"{Path(name).name}.parquet" for name in names]
    if twice := [table for table, count in Counter(tables).items() if count > 1]:
        raise InputError(f"{out}: two tables would be named {min(twice)}; give the folders one by one")
    with folder(out), scratch(out) as made:
        for table in tables:
            check_target(Path(out) / table, names)
        yield [str(made / table) for table in tables]
        for table in tables:
            if (made / table).exists():
                os.replace(made / table, Path(out) / table)


@contextmanager
@typed(workers=10)
def cluster(
    workers: int = 0, scheduler: str = "", died: Callable[[str], None] = lambda line: None
) -> Iterator[Any]:
    """Give a Dask client: of `workers` processes of this machine, or of the cluster at `scheduler` (an address).

    `died` is called with a line for the user if one of these processes dies.  Raises InputError if Dask is not
    installed, if these processes cannot be started, or if nobody answers at the address.
    """
    try:
        from distributed import Client, LocalCluster, SchedulerPlugin
    except ImportError:
        raise InputError("this needs Dask: python -m pip install 'kvm_pf[dask]'") from None
    if scheduler:
        try:
            client = Client(scheduler, timeout=10)
        except (OSError, TimeoutError, ValueError) as error:
            raise InputError(f"{scheduler}: no Dask scheduler answers ({one_line(error, 200)})") from None
        with client:
            yield client
        return

    class Deaths(SchedulerPlugin):  # type: ignore[misc]
        """Say so when a worker goes before the end."""

        is_end = False

        def remove_worker(self, *_: Any, **__: Any) -> None:
            if not self.is_end:
                died("a worker died; another takes its place, and the file that it was reading is read again")

    deaths = Deaths()
    try:
        processes = LocalCluster(
            n_workers=workers, threads_per_worker=1, dashboard_address=":0", silence_logs=logging.ERROR
        )
    except (RuntimeError, OSError) as error:
        why = one_line(error, 200).rstrip(".")
        raise InputError(
            f"so many workers could not be started: {workers} ({why}); one was killed, or there is too little memory "
            "for them: try again, or fewer"
        ) from error
    with processes as local, Client(local) as client:
        local.scheduler.add_plugin(deaths)
        try:
            yield client
        finally:
            deaths.is_end = True


def fleet_page(fleet: Fleet, most: int = 8) -> str:
    """Tell on one page of plain text what many traces amount to, where to look first at the top."""
    order = ["disagreements", "longest", "faults"]
    listed = fleet.files().fillna({"cpu": "not shown"}).sort_values(order, ascending=False, kind="stable")
    out = [f"{len(listed)} traces, {listed['faults'].sum()} faults"]
    out += section(
        "Traces, where to look first",
        [
            f"{row.faults:>7}  {row.file} (CPU {row.cpu}, read as {row.read_as}): "
            f"{row.disagreements} disagree with the model, {row.storms} storms, the longest of {row.longest}"
            for row in listed.head(most).itertuples()
        ],
        len(listed),
    )
    out += section("Not read", [f"{one.why}" for one in fleet.refused[:most]], len(fleet.refused))
    digest = fleet.digest()
    out += counts(digest, most)
    storms = fleet.storms()
    out += section(
        "Storms: the same again and again",
        [
            f"{row.faults:>7}  {row.file}, line {row.first_line}: {row.why}; stuck on {row.stuck_on}"
            for row in storms.head(most).itertuples()
        ],
        len(storms),
    )
    wrong = fleet.disagreements()
    out += section(
        "Where the traces and the model disagree",
        [f"{row.file}, line {row.line}: {row.what}" for row in wrong.head(most).itertuples()],
        digest.disagreeing.count,
    )
    out += followed(digest, most)
    return "\n".join(visible(line) for line in out)
