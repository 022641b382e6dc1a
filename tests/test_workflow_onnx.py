"""``quantize_onnx``: from a float file to one with Q/DQ."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import pytest
import torch
from exported_models import opened
from onnx_models import model_of, saved, small_net, weight
from torch import Tensor

from quantkit import numerics
from quantkit.calibrating import Checkpoint
from quantkit.errors import DataError, ExportError, ModelFileError, RecipeError
from quantkit.numerics import QParams
from quantkit.onnx.export import export_onnx
from quantkit.onnx.facts import FileFacts
from quantkit.onnx.folding import apply_passes
from quantkit.onnx.quantized import QuantizedOnnx
from quantkit.recipe import Recipe
from quantkit.workflow_onnx import (
    calibrate_onnx,
    prepare_onnx,
    quantize_onnx,
    round_onnx_weights,
)

RECIPES = ("int8_ptq", "int8_cpu", "int8_weight_only", "int8_activation_only", "int8_asymmetric")


ZERO = torch.tensor(0, dtype=torch.int32)


def images(count: int = 16, seed: int = 0) -> Tensor:
    return torch.randn(count, 16, 8, 8, generator=torch.Generator().manual_seed(seed))


def model() -> ir.Model:
    return ir.from_proto(small_net())


def quantized(recipe: str | Recipe = "int8_ptq", **options: Any) -> QuantizedOnnx:
    return quantize_onnx(model(), recipe, calibration=[images()], cpu="vnni", **options)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_makes_a_file_that_is_near_the_float_one(name: str, tmp_path: Path) -> None:
    source = saved(small_net(), tmp_path / "float.onnx")
    result = quantize_onnx(source, name, calibration=[images()], cpu="vnni")
    path = export_onnx(result, tmp_path / "int8.onnx")
    onnx.checker.check_model(path, full_check=True)
    expected, found = opened(source)(images())[0], opened(path)(images())[0]
    assert numerics.sqnr(expected, found) > 25
    facts = FileFacts.of(path)
    assert (facts.recipe, facts.plan) == (name, result.plan)
    assert set(facts.layer_of.values()) == {"stem.conv", "layer1.0.conv1", "fc"}


def test_nodes_that_are_no_layers_keep_their_names(tmp_path: Path) -> None:
    path = export_onnx(quantized(), tmp_path / "int8.onnx")
    names = {node.name for node in onnx.load(path).graph.node}
    assert {"/layer1/layer1.0/Add", "/pool/GlobalAveragePool", "/Flatten"} <= names


def test_layers_named_with_a_reason_stay_in_float() -> None:
    result = quantized(float_layers={"layer1.0.conv1": "no range in the cache"})
    decision = result.plan.decision("layer1.0.conv1")
    assert (decision.quantized, decision.reason) == (False, "no range in the cache")
    assert "layer1.0.conv1.weight" not in result.plan.grids
    assert result.plan.unused == ()
    assert result.recipe.overrides == ()
    with pytest.raises(RecipeError, match="'layer9', which is no layer of the model; there"):
        quantized(float_layers={"layer9": "why not"})


def test_an_add_named_with_a_reason_loses_its_quantizer() -> None:
    assert quantized().plan.tensor("layer1.0/add", 1) is not None
    result = quantized(float_layers={"layer1.0/add": "no range"})
    assert result.plan.tensor("layer1.0/add", 1) is None
    assert not result.plan.decision("layer1.0/add").quantized
    assert result.plan.decision("layer1.0.conv1").quantized


def test_grids_from_elsewhere_are_those_of_the_file(tmp_path: Path) -> None:
    prepared = prepare_onnx(model(), "int8_ptq")
    for index, grid in enumerate(prepared.missing):
        scale = torch.tensor(0.01 * (index + 1))
        spec = prepared.plan.grids[grid][0].spec
        prepared.set_grid(grid, QParams(scale=scale, zero_point=ZERO, spec=spec))
    assert prepared.missing == ()
    round_onnx_weights(prepared)
    path = export_onnx(prepared, tmp_path / "int8.onnx")
    found = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    for index, grid in enumerate(prepared.observers):
        assert found[f"{grid}_scale"] == torch.tensor(0.01 * (index + 1)).numpy()


def test_a_grid_of_another_form_or_name_is_refused() -> None:
    prepared = prepare_onnx(model(), "int8_ptq")
    grid = prepared.missing[0]
    spec = prepared.plan.grids[grid][0].spec
    good = QParams(scale=torch.tensor(0.1), zero_point=ZERO, spec=spec)
    with pytest.raises(DataError, match="the plan has no grid 'other'; it has: image"):
        prepared.set_grid("other", good)
    with pytest.raises(DataError, match="in the plan, the grid given is uint8"):
        prepared.set_grid(grid, replace(good, spec=replace(good.spec, dtype="uint8")))


def test_what_is_not_calibrated_is_not_exported(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="not calibrated"):
        export_onnx(prepare_onnx(model(), "int8_ptq"), tmp_path / "int8.onnx")
    assert not list(tmp_path.iterdir())


def test_activations_need_data_and_weights_alone_do_not() -> None:
    with pytest.raises(DataError, match="needs calibration data"):
        quantize_onnx(model(), "int8_ptq")
    assert quantize_onnx(model(), "int8_weight_only").missing == ()


def test_a_model_of_other_floats_is_refused_before_data_are_read(tmp_path: Path) -> None:
    make = onnx.helper.make_node
    nodes = [make("Cast", ["x"], ["d"], to=onnx.TensorProto.DOUBLE),
             make("MatMul", ["d", "w"], ["p"]),
             make("Cast", ["p"], ["y"], to=onnx.TensorProto.FLOAT)]  # fmt: skip
    double = model_of(nodes, {"x": ["N", 32]}, {"y": ["N", 32]},
                      {"w": weight(32, 32).astype("float64")})  # fmt: skip
    with pytest.raises(ModelFileError, match="is double in the model"):
        prepare_onnx(saved(double, tmp_path / "double.onnx"), "int8_ptq")


def test_batching_changes_no_grid() -> None:
    one, many = quantized(), quantize_onnx(model(), calibration=list(images().split(3)))
    for grid, qparams in one.grids.items():
        assert torch.equal(qparams.scale, many.grids[grid].scale), grid


def test_a_run_resumes_where_it_was_killed(tmp_path: Path) -> None:
    class KilledError(Exception):
        pass

    def dying() -> Any:
        yield images(16, 0)
        yield images(16, 1)
        raise KilledError

    data = [images(16, 0), images(16, 1), images(16, 2)]
    checkpoint = Checkpoint(path=tmp_path / "seen.safetensors", every=1)
    first = prepare_onnx(model(), "int8_ptq")
    with pytest.raises(KilledError):
        calibrate_onnx(first, dying(), checkpoint=checkpoint)
    second = prepare_onnx(model(), "int8_ptq")
    calibrate_onnx(second, data, checkpoint=replace(checkpoint, resume=True))
    whole = prepare_onnx(model(), "int8_ptq")
    calibrate_onnx(whole, data)
    for grid in whole.observers:
        assert torch.equal(second.grids[grid].scale, whole.grids[grid].scale), grid


def test_a_pass_without_a_form_for_onnx_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"the pass smooth has no form for ONNX files; .*fold_b"):
        apply_passes(model(), ("smooth",))


def test_biases_are_multiples_of_the_step_of_their_sums() -> None:
    result = quantized()
    assert set(result.biases) == {"stem.conv", "layer1.0.conv1", "fc"}
    for layer in result.layers():
        assert layer.activation is not None
        step = (result.grids[layer.activation].scale * result.grids[layer.weight].scale).double()
        count = result.biases[layer.name].double() / step
        torch.testing.assert_close(count, count.round(), rtol=1e-6, atol=1e-6)


def test_a_printed_model_shows_its_plan() -> None:
    result = quantized()
    assert repr(result).startswith("QuantizedOnnx(calibrated)\nPlan of recipe int8_ptq: 3 of 3")
    assert repr(prepare_onnx(model(), "int8_ptq")).startswith("QuantizedOnnx(not calibrated)")
