# SPDX-License-Identifier: GPL-2.0-only
"""Files that are read within bounds, and written whole or not at all."""

from __future__ import annotations

import errno
import gzip
import io
import os
import secrets
import shutil
import stat
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from kvm_pf.common.errors import InputError

T = TypeVar("T")

LIMIT = 1 << 28
"""How many bytes `read` takes at most, unpacked: 256 MiB, unless it is told otherwise."""

_unfinished: set[str] = set()
_made: list[str] = []
_scratch: list[str] = []


def as_path(path: object, what: str) -> Path:
    """Return a path that was given as text or as such.  Raises InputError, saying `what` is wanted, for all else."""
    if not isinstance(path, str | Path) or not str(path):
        raise InputError(f"{path!r}: the path of {what} is wanted")
    if str(path).endswith(os.sep) and not os.path.isdir(path):
        raise InputError(f"{path}: there is no such folder")
    return Path(path)


def read(path: str | Path, limit: int = LIMIT) -> bytes:
    """Return what is in a regular file, unpacked if its name ends in .gz.

    Raises InputError, naming `path`, if that is more than `limit` bytes, for anything but a regular file, and if it
    cannot be read: no such file, no permission, a damaged or shortened .gz.
    """
    if regular(path) is None:
        raise InputError(f"{path}: cannot be read: there is no such file")
    content = _named(path, _read, path, limit + 1)
    if len(content) > limit:
        raise InputError(
            f"{path}: there are more than {limit:,} bytes in it; a higher limit would let it be read"
        )
    return content


def _read(path: str | Path, most: int) -> bytes:
    with open(path, "rb") as file:
        if not str(path).endswith(".gz"):
            return file.read(most)
        try:
            with gzip.GzipFile(fileobj=file) as unpacked:
                return unpacked.read(most)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise InputError(f"{path}: cannot be read: this is no whole .gz file ({error})") from None


_ARCHIVES = {b"PK\x03\x04": "a zip archive", b"7z\xbc\xaf": "a 7z archive"}
_TAR = 257, b"ustar"
"""Where a tar archive has its mark, and which."""


def archive_of(raw: bytes) -> str:
    """Say what archive of files some bytes begin, "" if none: 262 are enough."""
    if raw[_TAR[0] : _TAR[0] + len(_TAR[1])] == _TAR[1]:
        return "a tar archive"
    return next((what for start, what in _ARCHIVES.items() if raw.startswith(start)), "")


@contextmanager
def write(path: str | Path) -> Iterator[BinaryIO]:
    """Open a file to be written, and put it in place when the block has ended well.

    Until then it stands beside `path` under a name of its own (hidden, ending in ".part"), so that two may write at
    once: whoever ends last stays.  After an exception, an interruption too, nothing is left of it, and what stood
    at `path` is untouched.  A file that is replaced keeps its mode and, as far as that is allowed, its owner; where
    `path` is a symbolic link, the file that it names is replaced and the link stays.

    Raises InputError, naming `path`, if something other than a regular file stands there, or if it cannot be
    written: no such folder, no permission, a full disk.
    """
    target, old = _named(path, _target, path)
    folder, name = os.path.split(target)
    # A name has 255 bytes at most, and a character up to four.
    unfinished = os.path.join(folder, f".{name[:50]}.{secrets.token_hex(8)}.part")
    _unfinished.add(unfinished)
    try:
        raw = _named(path, _Output, path, unfinished, stat.S_IMODE(old.st_mode) & 0o777 if old else 0o666)
        with io.BufferedWriter(raw) as file:
            if old:
                _named(path, _keep, file.fileno(), old)
            yield file
            file.flush()
            _named(path, os.fsync, file.fileno())
        _named(path, os.replace, unfinished, target)
    finally:
        with suppress(OSError):
            os.unlink(unfinished)
        _unfinished.discard(unfinished)


@contextmanager
def folder(path: str | Path) -> Iterator[Path]:
    """Make a folder, and those above it, if they are absent; if the block does not end well, they go again.

    Raises InputError, naming `path`, if that cannot be done.
    """
    if not isinstance(path, str | Path) or not os.fspath(path):
        raise InputError(f"{path!r}: this is no name of a folder")
    _not_standard_output(path)
    path = Path(path)
    try:
        made = [str(parent) for parent in (path, *path.parents) if not parent.exists()]
        _made.extend(made)
        path.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: no folder can be made here ({getattr(error, 'strerror', error)})"
        ) from None
    try:
        yield path
    finally:
        _leave(made)


@contextmanager
def scratch(path: str | Path) -> Iterator[Path]:
    """Make a hidden folder in a folder, for what is not finished; it goes, with all in it, however the block ends."""
    made = _named(path, tempfile.mkdtemp, None, ".", path)
    _scratch.append(made)
    try:
        yield Path(made)
    finally:
        shutil.rmtree(made, ignore_errors=True)
        _scratch.remove(made)


def check_target(path: str | Path, sources: Iterable[str | Path]) -> None:
    """Raise InputError unless `path` can be written, and is none of the files that are read (`sources`)."""
    _, old = _named(path, _target, path)
    for source in sources if old else ():
        if os.path.exists(source) and os.path.samefile(source, path):
            raise InputError(f"{path}: this is what is read; give the output another name")


def discard_unfinished() -> None:
    """Remove what is begun and not finished here, in all threads: for a process that ends at once."""
    for name in list(_unfinished):
        with suppress(OSError):
            os.unlink(name)
    for name in list(_scratch):
        shutil.rmtree(name, ignore_errors=True)
    _leave(list(_made))


def _leave(made: list[str]) -> None:
    """Remove the folders of `made`, innermost first, that are empty."""
    for name in made:
        with suppress(OSError):
            os.rmdir(name)
        with suppress(ValueError):
            _made.remove(name)


def regular(path: str | Path) -> os.stat_result | None:
    """Say what regular file stands at `path`, links followed; None if nothing does.

    Raises InputError, naming `path`, for a folder, a device, a FIFO or a socket, and if it cannot be looked at.
    """
    return _named(path, _regular, path)


class _Output(io.FileIO):
    """A new file, whose errors name the file that it will become."""

    def __init__(self, path: str | Path, unfinished: str, mode: int) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0)
        super().__init__(os.open(unfinished, flags, mode), "wb")
        self._path = path

    def write(self, data: Any) -> int:
        return _named(self._path, super().write, data)


def _target(path: str | Path) -> tuple[str, os.stat_result | None]:
    """Follow the links of `path`; return where it is to be written, and what file stands there now."""
    _not_standard_output(path)
    old, target = _regular(path), os.path.realpath(path)
    if old and _is_standard_output(old):
        raise InputError(f"{path}: standard output goes there; give the output another name")
    if old and not os.access(target, os.W_OK):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))
    folder = target if os.fspath(path).endswith(os.sep) else os.path.dirname(target)
    if not os.path.isdir(folder):
        raise OSError(errno.ENOENT, f"there is no folder {folder}")
    return target, old


def _not_standard_output(path: str | Path) -> None:
    """Raise InputError for "-", which would become a file of that name."""
    if str(path) == "-":
        raise InputError("-: this is not written to standard output; give it a name")


def _is_standard_output(file: os.stat_result) -> bool:
    with suppress(OSError):  # closed
        return os.path.samestat(file, os.fstat(1))
    return False


def _regular(path: str | Path) -> os.stat_result | None:
    if not isinstance(path, str | Path) or not os.fspath(path):
        raise InputError(f"{path!r}: this is no name of a file")
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise InputError(f"{path!r}: this is no name of a file ({error})") from None
    if not stat.S_ISREG(found.st_mode):
        raise InputError(
            f"{path}: this is {_KINDS.get(stat.S_IFMT(found.st_mode), 'special')}, no regular file"
        )
    return found


_KINDS = {
    stat.S_IFDIR: "a folder", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
}  # fmt: skip


def _keep(file: int, old: os.stat_result) -> None:
    """Give a file the owner, if that is allowed, and the mode of another."""
    with suppress(OSError):
        os.fchown(file, old.st_uid, old.st_gid)
    os.fchmod(file, stat.S_IMODE(old.st_mode))


def _named(path: object, function: Callable[..., T], *args: Any) -> T:
    """Call a function; what the system says of it names `path`."""
    try:
        return function(*args)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
