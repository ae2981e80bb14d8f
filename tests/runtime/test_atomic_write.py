"""A file is replaced as a whole or not at all."""

import pytest

from sdpo.runtime.atomic_write import replacing, write_atomically


def test_a_text_replaces_what_was_there(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("old")
    write_atomically(path, "größer\r\n")
    assert path.read_bytes() == "größer\r\n".encode()
    assert list(tmp_path.iterdir()) == [path]


def test_the_old_content_stays_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "model.bin"
    write_atomically(path, b"old")
    with replacing(path) as partial:
        partial.write_bytes(b"ne")
        assert path.read_bytes() == b"old"
        partial.write_bytes(b"new")
    assert path.read_bytes() == b"new"


def test_a_failure_leaves_the_old_content_and_nothing_else(tmp_path):
    path = tmp_path / "model.bin"
    write_atomically(path, b"old")
    with pytest.raises(TypeError), replacing(path) as partial:
        partial.write_bytes("no bytes")  # type: ignore[arg-type]
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_block_that_writes_nothing_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "empty"):
        pass
