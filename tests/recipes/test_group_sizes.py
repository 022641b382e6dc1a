"""Int4 weights in groups of every usual size, from the recipe to a file that engines take."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from exported_models import Exported, assert_same
from torch import Tensor, nn

from quantkit.recipe import Recipe
from quantkit.targets.tensorrt_rtx import TensorRTRTX
from quantkit.workflow import quantize, resolve_recipe

SIZES = (16, 32, 64, 128)
Get = Callable[[int], Exported]


def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(256, 128), nn.GELU(), nn.Linear(128, 64)).eval()


def inputs(seed: int = 0) -> Tensor:
    return torch.randn(8, 256, generator=torch.Generator().manual_seed(seed))


def recipe(size: int) -> Recipe:
    found = resolve_recipe("int4_weight_only")
    weights = found.scheme.weights
    assert weights is not None
    grouped = weights.model_copy(update={"group_size": size})
    scheme = found.scheme.model_copy(update={"weights": grouped})
    return Recipe.model_validate(found.model_copy(update={"scheme": scheme}).model_dump())


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Get:
    made: dict[int, Exported] = {}

    def get(size: int) -> Exported:
        if size not in made:
            model = quantize(network(), recipe(size), calibration=[inputs(1), inputs(2)])
            made[size] = Exported(model, tmp_path_factory.mktemp(str(size)), ("tensorrt",))
        return made[size]

    return get


@pytest.mark.parametrize("size", SIZES)
def test_the_file_holds_four_bits_a_weight_and_a_scale_a_group(exported: Get, size: int) -> None:
    proto = exported(size).protos["tensorrt"]
    nodes = [n for n in proto.graph.node if n.op_type == "DequantizeLinear"]
    stored = {i.name: i for i in proto.graph.initializer}
    weights = [stored[n.input[0]] for n in nodes]
    assert {w.data_type for w in weights} == {onnx.TensorProto.INT4}
    bits = {int(np.prod(w.dims)): len(w.raw_data) * 8 for w in weights}
    layers = {256 * 128: 4 * 256 * 128}
    if size < 128:  # else the second layer has one group, and stays in float
        layers[128 * 64] = 4 * 128 * 64
    assert bits == layers
    blocks = [a.i for n in nodes for a in n.attribute if a.name == "block_size"]
    assert blocks == [size] * len(layers)


@pytest.mark.parametrize("size", SIZES)
def test_onnx_runtime_makes_of_it_what_was_simulated(exported: Get, size: int) -> None:
    files, x = exported(size), inputs(5)
    (expected,) = files.simulated(x)
    (found,) = files.run("tensorrt", x, optimized=False)
    assert_same(expected, found)


@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason='TensorRT-RTX is not installed: pip install "quantkit[rtx]"',
)
@pytest.mark.parametrize("size", SIZES)
def test_an_ampere_gpu_runs_every_planned_layer_with_it(exported: Get, size: int) -> None:
    files = exported(size)
    target = TensorRTRTX(compute_capability="8.6", progress=False)
    inspection = target.inspect(Path(files.paths["tensorrt"]))
    assert inspection.ok, inspection.findings
    planned = len(files.model.plan.quantized)
    assert inspection.covered == inspection.planned == planned == (1 if size == 128 else 2)
