"""A file is whole or as it was before."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from quantkit.errors import ExportError
from quantkit.files import replacing


def test_the_file_appears_whole_and_nothing_else_stays(tmp_path: Path) -> None:
    target = tmp_path / "model.onnx"
    with replacing(target) as temporary:
        temporary.write_text("new")
        assert not target.exists()
        assert temporary.parent == target.parent  # a rename is atomic within a folder
    assert target.read_text() == "new"
    assert os.listdir(tmp_path) == ["model.onnx"]


def test_a_failure_keeps_the_old_file_and_the_users_own_error(tmp_path: Path) -> None:
    target = tmp_path / "model.onnx"
    target.write_text("old")
    with pytest.raises(KeyError, match="broken"), replacing(target) as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise KeyError("broken")
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["model.onnx"]


def test_an_interrupt_keeps_the_old_file_too(tmp_path: Path) -> None:
    target = tmp_path / "model.onnx"
    target.write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing(target):
        raise KeyboardInterrupt
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["model.onnx"]


def test_a_missing_folder_is_an_error_that_names_the_path(tmp_path: Path) -> None:
    target = tmp_path / "nowhere" / "model.onnx"
    told = pytest.raises(ExportError, match=r"nowhere/model\.onnx: cannot be written.*folder")
    with told, replacing(target):
        pytest.fail("the block must not run")


def test_a_full_disk_is_an_error_that_names_the_path_and_keeps_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "model.onnx"
    target.write_text("old")
    with (
        pytest.raises(ExportError, match=r"model\.onnx: cannot be written \(No space left"),
        replacing(target),
    ):
        raise OSError(28, "No space left on device")
    assert target.read_text() == "old"


def test_a_folder_of_that_name_is_not_replaced(tmp_path: Path) -> None:
    target = tmp_path / "model.onnx"
    target.mkdir()
    with pytest.raises(ExportError, match="directory"), replacing(target) as temporary:
        temporary.write_text("new")
    assert os.listdir(tmp_path) == ["model.onnx"]


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_the_file_is_shared_as_any_other_file_of_the_user(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        with replacing(tmp_path / "a") as temporary:
            temporary.write_text("x")
        (tmp_path / "b").write_text("x")
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("a", "b")]
    assert modes == [0o666 & ~mask] * 2
