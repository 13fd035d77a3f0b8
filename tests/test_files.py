"""Writes that fail: one line, and what was there before is untouched."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from opdbench.errors import UserError
from opdbench.files import of_the_disk, write_bytes

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE)


@pytest.mark.parametrize("number", FULL, ids=errno.errorcode.get)
def test_an_error_of_the_disk_is_one_line_that_keeps_everything(number):
    line = str(of_the_disk(OSError(number, os.strerror(number), "runs/record.json")))
    assert "cannot write 'runs/record.json'" in line
    assert os.strerror(number) in line
    assert "the same command again" in line
    assert "\n" not in line


def test_an_error_of_the_program_is_not_taken_for_one_of_the_disk():
    assert of_the_disk(OSError(errno.EBADF, "bad file descriptor")) is None


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_file_survives_a_write_that_fails(tmp_path, monkeypatch, number):
    path = tmp_path / "record.json"
    write_bytes(path, b"old")

    def fail(self, target):
        raise OSError(number, os.strerror(number), str(self))

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(UserError, match="cannot write"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_became_a_file_is_one_line(tmp_path):
    (tmp_path / "runs").write_text("a file of the user's")
    with pytest.raises(UserError, match="cannot write"):
        write_bytes(tmp_path / "runs" / "record.json", b"new")
    assert (tmp_path / "runs").read_text() == "a file of the user's"
