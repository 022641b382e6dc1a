"""What ONNX Runtime's optimizer must not make of a right file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import quantkit
from quantkit import numerics
from quantkit.recipe import Override
from quantkit.targets.onnxruntime import OnnxRuntime
from quantkit.workflow import resolve_recipe


class Chain(nn.Module):
    """Three convolutions, of which a test leaves the middle one in float."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(16, 32, 3, padding=1)
        self.middle = nn.Conv2d(32, 32, 3, padding=1)
        self.last = nn.Conv2d(32, 32, 3, padding=1)
        self.head = nn.Conv2d(32, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.middle(torch.relu(self.first(x))))
        out: Tensor = self.head(torch.relu(self.last(torch.relu(x))))
        return out


class Twice(nn.Module):
    """One layer called twice, and so with two grids for what it reads and one weight."""

    def __init__(self, layer: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.layer, self.head = layer, head

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.layer(torch.relu(self.layer(x))))
        return out


def parity(model: nn.Module, recipe: str, batch: Tensor, path: Path, form: str) -> float:
    """SQNR in dB between simulation and ONNX Runtime in exact mode."""
    torch.manual_seed(0)
    qmodel = quantkit.quantize(model.eval(), recipe, calibration=[batch])
    quantkit.export_onnx(qmodel, path, form=form)  # type: ignore[arg-type]
    (name,) = qmodel.capture.input_names
    (got,) = OnnxRuntime(exact=True, threads=1).run(path, [{name: batch.numpy()}])[0]
    with torch.no_grad():
        return numerics.sqnr(qmodel(batch), torch.from_numpy(got))


def test_a_layer_that_the_plan_leaves_in_float_runs_in_float(tmp_path: Path) -> None:
    torch.manual_seed(0)
    recipe = resolve_recipe("int8_cpu", cpu="vnni")
    recipe = recipe.model_copy(update={"overrides": (Override(module="middle", scheme=None),)})
    batch = torch.randn(8, 16, 8, 8)
    qmodel = quantkit.quantize(Chain().eval(), recipe, calibration=[batch])
    path = quantkit.export_onnx(qmodel, tmp_path / "chain.onnx")
    layers = {layer.node: layer for layer in OnnxRuntime().inspect(path).layers}
    assert layers["middle"].precision == "float32"
    assert not layers["middle"].quantized
    assert layers["middle"].reason == "override module=middle: left in float"
    assert layers["first"].precision == layers["last"].precision == "int8"
    (got,) = OnnxRuntime(exact=True, threads=1).run(path, [{"x": batch.numpy()}])[0]
    with torch.no_grad():
        # Not exact: "middle" sums floats in another order. In integers it would be below 40 dB.
        assert numerics.sqnr(qmodel(batch), torch.from_numpy(got)) > 60


@pytest.mark.parametrize(
    ("recipe", "form"),
    [("int8_ptq", "tensorrt"), ("int8_ptq", "onnxruntime"), ("int8_cpu", "onnxruntime")],
)
def test_a_layer_called_twice_loads_and_runs_as_simulated(
    tmp_path: Path, recipe: str, form: str
) -> None:
    linear = Twice(nn.Linear(32, 32), nn.Linear(32, 16))
    assert parity(linear, recipe, torch.randn(8, 32), tmp_path / "linear.onnx", form) > 100
    conv = Twice(nn.Conv2d(32, 32, 3, padding=1), nn.Conv2d(32, 16, 1))
    # A bias that two calls share is a multiple of the step of one of them only.
    assert parity(conv, recipe, torch.randn(8, 32, 6, 6), tmp_path / "conv.onnx", form) > 55


def test_guards_leave_files_alone_that_need_none(tmp_path: Path) -> None:
    import onnx

    torch.manual_seed(0)
    qmodel = quantkit.quantize(Chain().eval(), "int8_cpu", calibration=[torch.randn(8, 16, 8, 8)])
    path = quantkit.export_onnx(qmodel, tmp_path / "chain.onnx")
    assert "Max" not in {node.op_type for node in onnx.load(path).graph.node}
