# SPDX-License-Identifier: GPL-2.0-only
"""Compressed trace.dat, version 7: a recorded file is written anew with compressed sections, as its manual says.

Source: the manual page trace-cmd.dat.v7(5): sections have a header of id, flags (bit 0: compressed), description and
size; a compressed one has its packed size, its whole size, and its bytes; CPU data is cut into chunks of pages, their
number first.
"""

import lzma
import struct
import zlib
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest

from kvm_pf.common.errors import InputError
from kvm_pf.trace import load
from kvm_pf.trace.dat import TraceDat

DATA = Path(__file__).parent / "data"
PLAIN = (DATA / "2-swprot.v7.dat").read_bytes()

PACKERS = {
    "zlib": lambda data: zlib.compress(data, 6),
    "zstd": lambda data: pa.Codec("zstd").compress(data, asbytes=True),
}
UNPACKERS = {
    b"zlib": lambda data, size: zlib.decompress(data),
    b"zstd": lambda data, size: pa.Codec("zstd").decompress(data, size, asbytes=True),
}
BUFFER, DONE, CPU_COUNT, OPTIONS = 3, 0, 8, 0
IN_OPTIONS = (
    16,
    17,
    18,
    19,
    20,
    21,
)  # header info, ftrace formats, event formats, kallsyms, printk, cmdlines


def u16(data, at):
    return struct.unpack_from("<H", data, at)[0]


def u32(data, at):
    return struct.unpack_from("<I", data, at)[0]


def u64(data, at):
    return struct.unpack_from("<Q", data, at)[0]


def text_end(data, at):
    return data.index(b"\0", at) + 1


class Packed:
    """A version 7 file written anew, its sections compressed in another way."""

    def __init__(self, plain, packing, chunk_pages=3):
        self.plain, self.pack, self.chunk_pages = plain, PACKERS[packing], chunk_pages
        at = text_end(plain, 10)  # behind the magic: the version
        self.page_size = u32(plain, at + 2)
        algorithm = at + 6
        version = text_end(plain, algorithm)
        self.unpack = UNPACKERS.get(plain[algorithm : version - 1])
        first = text_end(plain, version)
        head = plain[:algorithm] + packing.encode() + b"\0" + b"1.0\0"
        self.out = bytearray(head + b"\0" * 8)
        options = self.options(u64(plain, first))
        struct.pack_into("<Q", self.out, len(head), options)

    def packed(self, data):
        small = self.pack(data)
        return struct.pack("<II", len(small), len(data)) + small

    def section(self, kind, flags, body):
        at = len(self.out)
        self.out += struct.pack("<HHIQ", kind, flags | 1, 0, len(body)) + body
        return at

    def body(self, offset):
        """The body of a section, unpacked."""
        flags, size = u16(self.plain, offset + 2), u64(self.plain, offset + 8)
        body = self.plain[offset + 16 : offset + 16 + size]
        return self.unpack(body[8 : 8 + u32(body, 0)], u32(body, 4)) if flags & 1 else body

    def moved(self, offset):
        """Write a section anew, compressed; return where it stands."""
        return self.section(u16(self.plain, offset), 0, self.packed(self.body(offset)))

    def options(self, offset):
        plain, at, body = self.body(offset), 0, b""
        while at < len(plain):
            kind, length = u16(plain, at), u32(plain, at + 2)
            value = plain[at + 6 : at + 6 + length]
            if kind == BUFFER:
                value = self.buffer(value)
            elif kind in IN_OPTIONS:
                value = struct.pack("<Q", self.moved(u64(value, 0)))
            elif kind == DONE:
                following = u64(value, 0)
                value = struct.pack("<Q", self.options(following) if following else 0)
            body += struct.pack("<HI", kind, len(value)) + value
            at += 6 + length
            if kind == DONE:
                break
        return self.section(OPTIONS, 0, self.packed(body))

    def pages(self, start, size, packed):
        """The pages of a CPU, unpacked."""
        if not packed or not size:
            return self.plain[start : start + size]
        at, pages = start + 4, b""
        for _ in range(u32(self.plain, start)):
            small, large = u32(self.plain, at), u32(self.plain, at + 4)
            pages += self.unpack(self.plain[at + 8 : at + 8 + small], large)
            at += 8 + small
        return pages

    def buffer(self, option):
        """Write a buffer's section anew; return its option, which says where the data of each CPU are."""
        is_packed = u16(self.plain, u64(option, 0) + 2) & 1
        count_at = text_end(option, text_end(option, 8)) + 4  # behind name, clock and page size
        made = bytearray(option)
        struct.pack_into("<Q", made, 0, self.section(BUFFER, 0, b""))
        step = self.chunk_pages * self.page_size
        for n in range(u32(option, count_at)):
            at = count_at + 4 + 20 * n
            pages = self.pages(u64(option, at + 4), u64(option, at + 12), is_packed)
            if pages:
                chunks = [self.packed(pages[part : part + step]) for part in range(0, len(pages), step)]
                data = struct.pack("<I", len(chunks)) + b"".join(chunks)
                struct.pack_into("<QQ", made, at + 4, len(self.out), len(data))
                self.first_chunk = (
                    len(self.out) + 12
                )  # behind the number of chunks, and the chunk's two sizes
                self.out += data
        return bytes(made)


def dealt(plain, cpus):
    """The events of a file, dealt out to CPUs, one after the other: their times and bytes."""
    dat = TraceDat("plain", plain)
    records = [(time, data) for time, _, data in dat._records(*dat.cpus[0])]
    return [records[cpu::cpus] for cpu in range(cpus)]


def paged(records, size):
    """Pages of a CPU's ring buffer.

    Source: Linux `include/linux/ring_buffer.h`, ring_buffer_type: of a record's first word 5 bits are its kind, 1 to 28
    its words, 0 with the size behind, 30 more time, and 27 bits the time since the one before.
    """

    def page(base, data):
        return (struct.pack("<QQ", base, len(data)) + data).ljust(size, b"\0")

    pages, full, base, last = b"", b"", 0, 0
    for time, data in records:
        if not full or len(full) + len(data) + 32 > size:
            pages += page(base, full) if full else b""
            full, base, last = b"", time, time
        delta, words = time - last, len(data) // 4
        if delta >> 27:
            full += struct.pack("<II", 30 | (delta & 0x7FFFFFF) << 5, delta >> 27)
            delta = 0
        head = (words | delta << 5,) if words <= 28 else (delta << 5, len(data) + 4)
        full += struct.pack(f"<{len(head)}I", *head) + data
        last = time
    return pages + page(base, full)


def spread_6(plain, cpus):
    """A version 6 file, its events dealt out to several CPUs: trace-cmd.dat.v6(5)."""
    dat, out = TraceDat("plain", plain), bytearray(plain)
    at = out.index(b"flyrecord\0") + 10
    options = out.rindex(b"options  \0", 0, at)
    struct.pack_into("<I", out, options - 4, cpus)
    options += 10
    while kind := u16(out, options):
        if kind == CPU_COUNT:
            struct.pack_into("<I", out, options + 6, cpus)
        options += 6 + u32(out, options + 2)
    first = -(-(at + 16 * cpus) // dat.page_size) * dat.page_size
    table, pages = b"", b""
    for records in dealt(plain, cpus):
        data = paged(records, dat.page_size)
        table += struct.pack("<QQ", first + len(pages), len(data))
        pages += data
    return bytes(out[:at] + table).ljust(first, b"\0") + pages


class Spread(Packed):
    """The same, its events dealt out to several CPUs."""

    def __init__(self, plain, packing, cpus):
        self.cpus = cpus
        super().__init__(plain, packing)

    def buffer(self, option):
        count_at = text_end(option, text_end(option, 8)) + 4
        made = bytearray(option[:count_at])
        struct.pack_into("<Q", made, 0, self.section(BUFFER, 0, b""))
        made += struct.pack("<I", self.cpus)
        for cpu, records in enumerate(dealt(self.plain, self.cpus)):
            pages = paged(records, self.page_size)
            chunks = [
                self.packed(pages[at : at + self.page_size]) for at in range(0, len(pages), self.page_size)
            ]
            data = struct.pack("<I", len(chunks)) + b"".join(chunks)
            made += struct.pack("<IQQ", cpu, len(self.out), len(data))
            self.out += data
        return bytes(made)


SPREADERS = {
    "version 6": lambda cpus: spread_6(lzma.decompress((DATA / "2-swprot.v6.dat.xz").read_bytes()), cpus),
    "version 7, zlib": lambda cpus: Spread(PLAIN, "zlib", cpus).out,
    "version 7, zstd": lambda cpus: Spread(PLAIN, "zstd", cpus).out,
}


@pytest.mark.parametrize("kind", SPREADERS)
@pytest.mark.parametrize("cpus", [2, 3, 7])
def test_events_of_several_cpus_come_in_the_order_of_time(kind, cpus, tmp_path):
    path = tmp_path / "spread.dat"
    path.write_bytes(SPREADERS[kind](cpus))
    one, many = load(DATA / "2-swprot.v7.dat").faults, load(path).faults
    assert set(many["cpu"]) == set(range(cpus))
    pd.testing.assert_frame_equal(many.drop(columns="cpu"), one.drop(columns="cpu"))


@pytest.mark.parametrize("packing", PACKERS)
def test_compressed_sections_give_the_same_table(packing, tmp_path):
    path = tmp_path / "packed.dat"
    path.write_bytes(Packed(PLAIN, packing).out)
    pd.testing.assert_frame_equal(load(path).faults, load(DATA / "2-swprot.v7.dat").faults)
    assert packing.encode() in path.read_bytes()[:40]


@pytest.mark.parametrize("packing", PACKERS)
def test_a_damaged_compressed_section_is_refused(packing):
    made = Packed(PLAIN, packing)
    out = made.out
    for end in (len(out) // 3, len(out) // 2, len(out) - 10):
        with pytest.raises(InputError):
            list(TraceDat("cut", bytes(out[:end])).events())
    out[made.first_chunk : made.first_chunk + 4] = b"\xff\xff\xff\xff"
    with pytest.raises(InputError, match="cannot be unpacked"):
        list(TraceDat("damaged", bytes(out)).events())


def test_a_compression_that_is_not_known_is_named():
    out = bytes(Packed(PLAIN, "zlib").out).replace(b"zlib\x001.0\0", b"lzxx\x001.0\0", 1)
    with pytest.raises(InputError, match=r"compression 'lzxx' is not known; zlib and zstd are"):
        TraceDat("other", out)


def test_what_is_unpacked_is_bounded_by_what_is_declared_and_by_the_limit():
    made = Packed(PLAIN, "zlib")
    with pytest.raises(InputError, match="more than 1,000 bytes; --limit raises that"):
        list(TraceDat("large", bytes(made.out), limit=1000).events())
    struct.pack_into("<I", made.out, made.first_chunk - 4, 4096)  # less than is packed
    with pytest.raises(InputError, match="does not hold the 4096 bytes that it declares"):
        list(TraceDat("lying", bytes(made.out)).events())


def test_cpus_have_no_more_than_the_file_together():
    out = bytearray(Packed(PLAIN, "zlib").out)
    count = len(out)
    dat = TraceDat("whole", bytes(out))
    assert sum(size for _, _, size, _ in dat.cpus) <= count
    plain = bytearray(PLAIN)
    cpu = next(each for each in TraceDat("plain", PLAIN).cpus)
    at = plain.index(struct.pack("<QQ", cpu[1], cpu[2]))
    struct.pack_into("<Q", plain, at + 8, 1 << 60)
    with pytest.raises(InputError, match="its CPUs have more bytes than the file"):
        TraceDat("lying", bytes(plain))


def test_a_number_of_more_than_64_bits_is_none(tmp_path):
    plain = lzma.decompress((DATA / "2-swprot.v6.dat.xz").read_bytes())
    path = tmp_path / "wide.dat"
    path.write_bytes(plain.replace(b"size:8;", b"size:9;"))
    assert path.read_bytes() != plain
    assert load(path).faults[["raw_code", "address", "rip"]].isna().all(axis=None)
