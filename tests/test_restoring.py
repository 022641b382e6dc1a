"""A saved model made again of one that is only prepared."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import quantkit as qk
import small_models
from quantkit.errors import ModelFileError
from quantkit.restoring import restore


@pytest.mark.parametrize("recipe", ["int8_ptq", "int8_centered", "int8_accurate"])
@pytest.mark.parametrize("make", [small_models.inverted_residual, small_models.encoder])
def test_a_restored_model_computes_the_same_bits(
    make: Callable[[], small_models.SmallModel], recipe: str, tmp_path: Path
) -> None:
    net = make()
    batches = [net.inputs(8, seed=seed) for seed in range(4)]
    saved = qk.quantize(net, recipe, calibration=batches)
    saved.save(tmp_path / "net.qk")
    fresh = qk.prepare(net, recipe, example_inputs=batches[0], calibration=batches)
    restore(fresh, tmp_path / "net.qk")
    with torch.no_grad():
        for batch in batches:
            assert torch.equal(fresh(*batch), saved(*batch))
    assert fresh.plan == saved.plan


def test_a_bias_that_a_correction_gave_is_restored(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(32, 32, bias=False), nn.ReLU(), nn.Linear(32, 32, bias=False))
    batches = [torch.randn(16, 32).abs() for _ in range(8)]
    plain = {"weights": {"per": "tensor", "bits": 4}, "activations": {}}
    recipe = qk.Recipe.model_validate(
        {"name": "mine", "scheme": plain, "passes": ["correct_bias"], "placement": {"small": True}}
    )
    saved = qk.quantize(net, recipe, calibration=batches)
    assert sum(name.endswith("bias") for name in saved.state_dict())
    saved.save(tmp_path / "net.qk")
    fresh = qk.prepare(net, recipe, example_inputs=(batches[0],))
    restore(fresh, tmp_path / "net.qk")
    assert torch.equal(fresh(batches[0]), saved(batches[0]))


def test_a_state_of_another_model_is_refused(tmp_path: Path) -> None:
    x = torch.randn(8, 32)
    qk.quantize(nn.Sequential(nn.Linear(32, 64)), "int8_ptq", calibration=[x]).save(
        tmp_path / "net.qk"
    )
    other = qk.prepare(nn.Sequential(nn.Linear(32, 32)), "int8_ptq", example_inputs=(x,))
    with pytest.raises(ModelFileError, match="another model or recipe"):
        restore(other, tmp_path / "net.qk")


def test_a_file_that_is_no_state_is_refused(tmp_path: Path) -> None:
    (tmp_path / "junk").write_text("junk")
    model = qk.prepare(nn.Linear(32, 32), "int8_ptq", example_inputs=(torch.randn(8, 32),))
    with pytest.raises(ModelFileError, match="not a safetensors file"):
        restore(model, tmp_path / "junk")
