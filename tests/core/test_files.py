import os
import stat

import pytest

from jaxseg.core.files import replacing, write_bytes, write_text


def test_the_file_is_replaced_whole(tmp_path):
    path = tmp_path / "a" / "b.txt"
    write_text(path, "one·")
    write_text(path, "two·")
    assert path.read_bytes() == "two·".encode()
    assert [p.name for p in path.parent.iterdir()] == ["b.txt"]


def test_others_may_read_it_as_the_umask_says(tmp_path):
    before = os.umask(0o022)
    try:
        write_bytes(tmp_path / "a", b"x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o644


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a"
    write_bytes(path, b"old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_block_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a"
    write_bytes(path, b"old")
    with pytest.raises(KeyError), replacing(path) as file:
        file.write(b"half")
        raise KeyError
    assert path.read_bytes() == b"old"
    with replacing(path) as file:
        file.write(b"one")
        file.write(b"two")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"onetwo"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
