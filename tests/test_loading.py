"""Weights that training broke are refused by name, wherever they come from."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from quantkit.errors import ModelFileError
from quantkit.loading import load_model, require_finite

FACTORY = "import torch\ndef make():\n    return torch.nn.Linear(3, 2)\n"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_of_a_file_that_are_not_finite_are_named(
    value: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "finite_factory.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(str(tmp_path))
    state = nn.Linear(3, 2).state_dict()
    save_file(state, tmp_path / "good.safetensors")
    state["bias"][1] = value
    save_file(state, tmp_path / "bad.safetensors")
    assert isinstance(load_model("finite_factory:make", tmp_path / "good.safetensors"), nn.Linear)
    words = r"bad\.safetensors: parameter bias holds NaN or infinity in 1 of 2 values; give"
    with pytest.raises(ModelFileError, match=words):
        load_model("finite_factory:make", tmp_path / "bad.safetensors")


def test_a_programs_weights_that_are_not_finite_are_named(tmp_path: Path) -> None:
    net = nn.Linear(3, 2)
    with torch.no_grad():
        net.weight[0, 0] = math.nan
    path = tmp_path / "net.pt2"
    torch.export.save(torch.export.export(net, (torch.zeros(2, 3),)), path)
    with pytest.raises(ModelFileError, match=r"net\.pt2: parameter weight holds NaN"):
        load_model(str(path))


class Masked(nn.Module):
    """Infinity in a buffer, as masks of attention have it."""

    mask: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.full((2, 2), -math.inf))


def test_statistics_of_batch_norm_are_checked_and_masks_are_not() -> None:
    require_finite(Masked(), "net:make")
    norm = nn.BatchNorm2d(4)
    require_finite(norm, "net:make")
    assert isinstance(norm.running_var, Tensor)
    norm.running_var[2] = math.nan
    with pytest.raises(ModelFileError, match="net:make: buffer running_var holds NaN"):
        require_finite(norm, "net:make")


def test_weights_that_are_not_there_yet_are_not_checked() -> None:
    require_finite(nn.LazyLinear(4), "net:make")
    require_finite(nn.Linear(3, 2, device="meta"), "net:make")
