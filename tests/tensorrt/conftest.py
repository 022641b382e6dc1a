"""NVIDIA's bindings of TensorRT 10 and 11, for the tests of this folder."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import real_tensorrt


@pytest.fixture(scope="session")
def bindings(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """A folder in which child processes find the bindings of a version; skips without them."""

    @cache
    def made(major: int) -> Path:
        folder = tmp_path_factory.mktemp(f"tensorrt-{major}")
        real_tensorrt.make(folder, major)
        return folder

    def find(major: int) -> Path:
        if why := real_tensorrt.missing(major):
            pytest.skip(why)
        return made(major)

    return find
