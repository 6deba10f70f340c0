# SPDX-License-Identifier: GPL-2.0-only
"""What `trace-cmd report` says of a trace.dat is what is read of it; skipped where there is no trace-cmd.

Debian's package trace-cmd will do.  Files that trace-cmd itself writes anew, in the other version or compressed, tell
the same.
"""

import lzma
import shutil
import subprocess

import pytest
from test_dat import PLAIN, SPREADERS, Packed, Spread
from test_recorded_traces import DATA, like_text

from kvm_pf.trace.lines import Reader
from kvm_pf.trace.reading import _events

TRACE_CMD = shutil.which("trace-cmd")
pytestmark = pytest.mark.skipif(TRACE_CMD is None, reason="there is no trace-cmd")


def trace_cmd(*arguments):
    return subprocess.run([TRACE_CMD, *arguments], capture_output=True, check=True).stdout


MAKERS = {
    "version 7": lambda path: path.write_bytes(PLAIN),
    "version 6": lambda path: path.write_bytes(lzma.decompress((DATA / "2-swprot.v6.dat.xz").read_bytes())),
    "version 7, zlib by us": lambda path: path.write_bytes(Packed(PLAIN, "zlib").out),
    "version 7, zstd by us": lambda path: path.write_bytes(Packed(PLAIN, "zstd").out),
    "from 7 to 6": lambda path: converted(path, "version 7", "6"),
    "from 7, zstd": lambda path: converted(path, "version 7", "7", "--compression", "zstd"),
    "from 7, zlib": lambda path: converted(path, "version 7", "7", "--compression", "zlib"),
    "from 6 to 7, zstd": lambda path: converted(path, "version 6", "7", "--compression", "zstd"),
    "two CPUs, version 6": lambda path: path.write_bytes(SPREADERS["version 6"](2)),
    "five CPUs, version 6": lambda path: path.write_bytes(SPREADERS["version 6"](5)),
    "two CPUs, zstd": lambda path: path.write_bytes(Spread(PLAIN, "zstd", 2).out),
    "five CPUs, zlib": lambda path: path.write_bytes(Spread(PLAIN, "zlib", 5).out),
    "three CPUs": lambda path: path.write_bytes(Spread(PLAIN, "zstd", 3).out),
    "three CPUs, unpacked": lambda path: converted(path, "three CPUs", "7", "--compression", "none"),
    "a part": lambda path: part(path, "version 7", 300),
}


def converted(path, source, version, *more):
    MAKERS[source](path.with_suffix(".source"))
    trace_cmd("convert", "-i", path.with_suffix(".source"), "-o", path, "--file-version", version, *more)


def part(path, source, count):
    """Write the first events of a file."""
    MAKERS[source](path.with_suffix(".source"))
    trace_cmd("split", "-i", path.with_suffix(".source"), "-o", path, "-e", str(count))
    path.with_suffix(".dat.1").rename(path)


@pytest.mark.parametrize("kind", MAKERS)
def test_every_event_is_what_trace_cmd_reports(kind, tmp_path):
    if "zlib" in kind and b"zlib" not in trace_cmd("list", "-c"):
        pytest.skip("this trace-cmd knows no zlib")
    path, report = tmp_path / "trace.dat", tmp_path / "report"
    MAKERS[kind](path)
    report.write_bytes(trace_cmd("report", "-i", path))
    binary, text = Reader(), Reader()
    ours = [like_text(event) for event in _events(path, binary)[1]]
    theirs = [like_text(event) for event in _events(report, text)[1]]
    assert len(theirs) > 100
    assert [event[:5] for event in ours] == [event[:5] for event in theirs]
    for mine, other in zip(ours, theirs, strict=True):
        assert {key: mine[5].get(key) for key in other[5]} == other[5]
    assert binary.foreign == text.foreign > 50
    assert binary.unread == text.unread == []
