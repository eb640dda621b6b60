"""Files are replaced whole, and what is no file is not replaced at all."""

import os
from pathlib import Path

import pytest

from lilliput.errors import FailureError, UserError
from lilliput.files import write_atomic


def test_a_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    for content in (b"first", b"second"):
        write_atomic(path, content)
        assert path.read_bytes() == content
    assert [one.name for one in path.parent.iterdir()] == ["file"]  # nothing else is left


@pytest.mark.parametrize("kind", ["folder", "pipe", "device"])
def test_what_is_no_file_stays(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "target"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(os.devnull)
    before = path.stat()
    with pytest.raises(UserError, match=r"^cannot write .*target: it is there and is not a file; give the path of"):
        write_atomic(path, b"data")
    assert (path.stat().st_mode, path.stat().st_ino) == (before.st_mode, before.st_ino)
    assert [one.name for one in tmp_path.iterdir()] == ["target"]


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"before")
    with pytest.raises(FailureError, match=r"cannot write .*what was there before is unchanged$"):
        write_atomic(tmp_path / "file" / "inside", b"data")
    assert (tmp_path / "file").read_bytes() == b"before"
