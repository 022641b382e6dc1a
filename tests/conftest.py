"""Fixtures and rules of every test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]

# Small tensors only: more threads cost more than they give, and make sums differ by machine.
torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none."""
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device; torch.cuda.is_available() is false")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


@pytest.fixture(scope="session", autouse=True)
def own_state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Engines that tests build are not remembered among the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QUANTKIT_STATE", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(scope="session", autouse=True)
def one_table_of_operators() -> Iterator[None]:
    """PyTorch's exporter makes its table of operators once, and not for a second in each export."""
    from torch.onnx._internal.exporter import _registration

    registry: Any = _registration.ONNXRegistry
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "from_torchlib", staticmethod(cache(registry.from_torchlib)))
        yield


@pytest.fixture(scope="session")
def root() -> Path:
    """The root of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def assets() -> Path:
    """The folder of trained models and data that lies outside the repository."""
    folder = Path(os.environ.get("QUANTKIT_ASSETS", ROOT.parent / "shared" / "assets"))
    if not folder.is_dir():
        pytest.skip(
            f"needs real models and data, and {folder} is not there; "
            "set QUANTKIT_ASSETS to the folder that holds them"
        )
    return folder


@pytest.fixture
def one_thread() -> Iterator[None]:
    """One thread in PyTorch: many small operations, whose sums are then of one order as well."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
