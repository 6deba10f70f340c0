# SPDX-License-Identifier: GPL-2.0-only
"""Files are written whole or not at all, and only where a file may stand."""

import os
import socket
import stat
import subprocess
import sys
import threading

import pytest

from kvm_pf.common.errors import InputError
from kvm_pf.common.files import discard_unfinished, folder, write


def put(path, content=b"new"):
    with write(path) as file:
        file.write(content)


def test_a_new_file_has_the_mode_that_any_new_file_has(tmp_path):
    put(tmp_path / "a")
    (tmp_path / "b").touch()
    assert (tmp_path / "a").read_bytes() == b"new"
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o664, 0o755, 0o4755])
def test_a_file_that_is_replaced_keeps_its_mode(tmp_path, mode):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    path.chmod(mode)
    put(path)
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (b"new", mode)


def test_a_link_stays_and_what_it_names_is_written(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there/file")
    (tmp_path / "far").symlink_to(tmp_path / "link")
    for content in (b"1", b"2"):  # first where nothing stands yet
        put(tmp_path / "far", content)
        assert (tmp_path / "there" / "file").read_bytes() == content
    assert os.readlink(tmp_path / "far") == str(tmp_path / "link")
    assert os.readlink(tmp_path / "link") == "there/file"


@pytest.mark.parametrize("kind", ["folder", "device", "FIFO", "socket"])
def test_nothing_but_a_file_is_written_over(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)  # a socket's name must be short
    path = tmp_path / "it"
    if kind == "folder":
        path.mkdir()
    elif kind == "device":
        path.symlink_to(os.devnull)
    elif kind == "FIFO":
        os.mkfifo(path)
    else:
        socket.socket(socket.AF_UNIX).bind("it")
    before = os.lstat(path)
    with pytest.raises(InputError, match=rf"it: this is a {kind}, no regular file"):
        put(path)
    assert os.lstat(path) == before
    assert os.listdir(tmp_path) == ["it"]


@pytest.mark.parametrize(
    ("name", "right"),
    [("", "no name of a file"), ("no/such", "there is no folder"), ("new/", "there is no folder .*new"),
     ("a\0b", "null"), ("x" * 300, "too long"), ("loop", "symbolic links"), ("file/x", "Not a directory")],
)  # fmt: skip
def test_a_place_where_no_file_can_stand_is_named(tmp_path, monkeypatch, name, right):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=right):
        put(name)
    assert sorted(os.listdir(tmp_path)) == ["file", "loop"]


@pytest.mark.parametrize("wrong", [None, 3, b"bytes", ["a"]])
def test_what_is_no_name_is_refused(wrong):
    with pytest.raises(InputError, match="no name of a file"):
        put(wrong)


def test_a_long_name_leaves_room_for_the_name_beside(tmp_path):
    for name in ("x" * 255, "é" * 127, "🙂" * 63):
        put(tmp_path / name)
        assert (tmp_path / name).read_bytes() == b"new"


@pytest.mark.parametrize("problem", [ValueError, KeyboardInterrupt, SystemExit, OSError])
def test_what_is_broken_off_leaves_nothing(tmp_path, problem):
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(problem), write(tmp_path / "a") as file:  # noqa: PT012
        file.write(b"half")
        raise problem("broken off")
    assert (tmp_path / "a").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_a_users_own_part_file_stays(tmp_path):
    (tmp_path / "a.part").write_bytes(b"mine")
    put(tmp_path / "a")
    assert (tmp_path / "a.part").read_bytes() == b"mine"


def test_many_at_once_each_write_a_whole_file(tmp_path):
    contents = [bytes([n]) * 100_000 for n in range(8)]
    threads = [threading.Thread(target=put, args=(tmp_path / "a", content)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "a").read_bytes() in contents
    assert os.listdir(tmp_path) == ["a"]


def test_a_process_that_ends_at_once_can_take_them_away(tmp_path):
    with pytest.raises(InputError, match="a: No such file"), write(tmp_path / "a") as file:  # noqa: PT012
        file.write(b"half")
        assert len(os.listdir(tmp_path)) == 1
        discard_unfinished()
        assert not os.listdir(tmp_path)


FULL = """
import resource, sys
from kvm_pf.common.files import write
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))
with write(sys.argv[1]) as file:
    for _ in range(1000):
        file.write(b"x" * 1000)
"""


def test_where_there_is_no_more_room_the_file_is_named_and_nothing_is_left(tmp_path):
    (tmp_path / "a").write_bytes(b"old")
    done = subprocess.run([sys.executable, "-c", FULL, tmp_path / "a"], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == f"kvm_pf.common.errors.InputError: {tmp_path}/a: File too large"
    assert (tmp_path / "a").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_a_folder_that_was_made_goes_again_if_nothing_came_into_it(tmp_path):
    with pytest.raises(KeyboardInterrupt), folder(tmp_path / "a" / "b" / "c"):
        raise KeyboardInterrupt
    assert not os.listdir(tmp_path)
    with folder(tmp_path / "a" / "b") as where:
        put(where / "file")
    assert os.listdir(tmp_path / "a" / "b") == ["file"]
    with (
        pytest.raises(InputError, match="file: no folder can be made here"),
        folder(tmp_path / "a" / "b" / "file"),
    ):
        pass
    with pytest.raises(InputError, match="no name of a folder"), folder(""):
        pass
