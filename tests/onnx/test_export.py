"""The exported file: valid, small, named after the model, and equal to the simulation."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from exported_models import Exported, assert_same, constants, dimensions, opened
from onnx import TensorProto

import small_models
from quantkit import __version__
from quantkit.errors import ExportError
from quantkit.graph.abstract import Kind
from quantkit.graph.plan import Placement
from quantkit.interfaces import ExportForm, Severity
from quantkit.onnx.export import export_onnx, to_ir
from quantkit.onnx.facts import FileFacts
from quantkit.onnx.lint import lint
from quantkit.recipe import parse_recipe
from quantkit.workflow import prepare, quantize

Make = Callable[[], small_models.SmallModel]
Get = Callable[[Make], Exported]

FORMS: tuple[ExportForm, ...] = ("tensorrt", "onnxruntime")
#: Bytes of a file that are neither weights nor activations: the plan, the recipe and the names.
NOTES = 12_000

every_model = pytest.mark.parametrize("make", small_models.ALL)
both_forms = pytest.mark.parametrize("form", FORMS)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Get:
    """Each small model with recipe int8_ptq in both forms, made when it is first asked for."""
    made: dict[str, Exported] = {}

    def get(make: Make) -> Exported:
        name = make.__name__
        if name not in made:
            model = make()
            data = [model.inputs(8, seed=seed) for seed in (1, 2)]
            quantized = quantize(model, example_inputs=model.example_inputs, calibration=data)
            made[name] = Exported(quantized, tmp_path_factory.mktemp(name), FORMS)
        return made[name]

    return get


def weight_bytes(model: torch.nn.Module) -> int:
    return sum(p.numel() * 4 for p in model.parameters())


# What ONNX Runtime makes of it.


@every_model
def test_onnx_runtime_equals_the_simulation_at_any_batch_with_its_optimizations_and_without(
    exported: Get, make: Make
) -> None:
    files = exported(make)
    for rows in (1, 6):
        inputs = make().inputs(rows, seed=50 + rows)
        (expected,) = files.simulated(*inputs)
        for form in FORMS:
            for optimized in (False, True):
                (found,) = files.run(form, *inputs, optimized=optimized)
                assert_same(expected, found, (form, optimized))


@every_model
def test_both_forms_hold_the_same_grids(exported: Get, make: Make) -> None:
    files = exported(make)
    inputs = make().inputs(4, seed=60)
    results = [files.run(form, *inputs, optimized=False)[0] for form in FORMS]
    assert_same(*results)
    tensorrt, onnxruntime = (constants(files.protos[form]) for form in FORMS)
    for grid, quantizer in files.model.quantizers.items():
        scale = tensorrt[f"{grid}_scale"]
        np.testing.assert_array_equal(scale, onnxruntime[f"{grid}_scale"])
        np.testing.assert_array_equal(scale, quantizer.scale.numpy())


# What the file says.


@every_model
@both_forms
def test_the_file_is_valid_onnx(exported: Get, make: Make, form: ExportForm) -> None:
    proto = exported(make).protos[form]
    onnx.checker.check_model(proto, full_check=True)
    assert [(o.domain, o.version) for o in proto.opset_import] == [("", 18)]
    assert not proto.functions
    names = [node.name for node in proto.graph.node]
    assert all(names)
    assert len(set(names)) == len(names)


@every_model
@both_forms
def test_the_linter_finds_nothing_wrong(exported: Get, make: Make, form: ExportForm) -> None:
    found = lint(exported(make).paths[form], form)
    assert [str(f) for f in found if f.severity is not Severity.INFO] == []


@every_model
def test_a_planned_layers_node_has_the_plans_name_and_a_float_one_its_reason(
    exported: Get, make: Make
) -> None:
    files = exported(make)
    layers = {d.op: d for d in files.model.plan.decisions if d.kind is not Kind.ADD}
    for proto in files.protos.values():
        named = {
            node.name: {p.key: p.value for p in node.metadata_props}
            for node in proto.graph.node
            if node.op_type in {"Conv", "ConvTranspose", "Gemm", "MatMul"}
        }
        assert named.keys() == layers.keys()
        for name, notes in named.items():
            assert notes.pop("quantkit.layer") == name
            reason = {} if layers[name].quantized else {"quantkit.reason": layers[name].reason}
            assert notes == reason
        others = {node.name for node in proto.graph.node} - named.keys()
        assert all(name.rpartition("/")[2].split("_")[0].isalpha() for name in others)


@every_model
@both_forms
def test_weights_are_int8_in_the_file_and_their_zero_points_are_written(
    exported: Get, make: Make, form: ExportForm
) -> None:
    files = exported(make)
    stored = constants(files.protos[form])
    middle = (np.int8, 0) if form == "tensorrt" else (np.uint8, 128)
    for grid, members in files.model.plan.grids.items():
        zero = stored[f"{grid}_zero_point"]
        if members[0].role == "weight":
            weight = stored[f"{grid}_quantized"]
            assert weight.dtype == zero.dtype == np.int8
            assert not zero.any()
            assert np.abs(weight.astype(int)).max() in (127, 128)
            assert f"{members[0].tensor}" not in stored  # no float copy beside it
        else:
            assert zero.shape == ()
            assert (zero.dtype, int(zero)) == middle
    for node in files.protos[form].graph.node:
        if node.op_type in {"QuantizeLinear", "DequantizeLinear"}:
            assert len(node.input) == 3
            assert all(name in stored for name in node.input[1:])


@pytest.mark.parametrize("make", [small_models.resnet, small_models.encoder, small_models.mlp])
@both_forms
def test_the_file_is_about_a_quarter_of_the_float_weights(
    exported: Get, make: Make, form: ExportForm
) -> None:
    proto = exported(make).protos[form]
    tensors = sum(array.nbytes for array in constants(proto).values())
    assert tensors < 0.36 * weight_bytes(make())  # small layers: scales and biases count
    assert exported(make).paths[form].stat().st_size < tensors + 2.5 * NOTES


@every_model
def test_a_dimension_that_varies_is_called_batch(exported: Get, make: Make) -> None:
    files = exported(make)
    proto = files.protos["tensorrt"]
    shapes = dimensions(proto)
    assert next(iter(shapes)) == "x"
    (inputs,) = make().example_inputs
    assert shapes["x"] == ["batch", *inputs.shape[1:]]
    (output,) = files.simulated(inputs)
    assert list(shapes.values())[1] == ["batch", *output.shape[1:]]
    symbols = {
        d.dim_param
        for value in proto.graph.value_info
        for d in value.type.tensor_type.shape.dim
        if d.dim_param
    }
    assert all("batch" in symbol for symbol in symbols)


@both_forms
def test_the_file_tells_who_made_it_and_how(exported: Get, form: ExportForm) -> None:
    files = exported(small_models.resnet)
    proto, model = files.protos[form], files.model
    notes = {p.key: p.value for p in proto.metadata_props}
    assert (proto.producer_name, proto.producer_version) == ("quantkit", __version__)
    assert notes["quantkit.version"] == __version__
    assert notes["quantkit.recipe"] == "int8_ptq"
    assert notes["quantkit.form"] == form
    assert parse_recipe(notes["quantkit.recipe.yaml"], name="int8_ptq") == model.recipe
    assert Placement.from_json(notes["quantkit.plan"]) == model.plan
    facts = FileFacts.of(files.paths[form])
    assert facts.plan == model.plan
    assert set(facts.layer_of.values()) == set(model.plan.quantized)
    assert facts.inputs == ("x",)


@every_model
@both_forms
def test_no_path_of_this_machine_is_in_the_file(
    exported: Get, make: Make, form: ExportForm, root: Path
) -> None:
    data = exported(make).paths[form].read_bytes()
    for path in (str(root), str(Path.home()), os.path.dirname(torch.__file__), "small_models.py"):
        assert path.encode() not in data
    assert b"pkg.torch" not in data
    assert b"forward" not in data


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    model = small_models.mlp()
    quantized = quantize(model, calibration=[model.inputs(8)])
    first, second = (export_onnx(quantized, tmp_path / f"{i}.onnx").read_bytes() for i in "ab")
    assert first == second


# What is refused, and what a failure leaves.


def test_export_does_not_change_the_model(exported: Get) -> None:
    model = exported(small_models.mlp).model
    x = small_models.mlp().inputs(3, seed=4)
    before, graph = model(*x), str(model.graph.graph)
    model.train()
    to_ir(model, form="tensorrt")
    assert model.training
    model.eval()
    assert torch.equal(model(*x), before)
    assert str(model.graph.graph) == graph


def test_a_model_that_was_not_calibrated_is_refused(tmp_path: Path) -> None:
    model = small_models.mlp()
    prepared = prepare(model, "int8_ptq", example_inputs=model.example_inputs)
    with pytest.raises(ExportError, match=r"not calibrated \(x and 2 more have no grid\); run cal"):
        export_onnx(prepared, tmp_path / "model.onnx")
    assert os.listdir(tmp_path) == []


def test_an_asymmetric_grid_is_refused_in_tensorrts_form_with_the_way_out(tmp_path: Path) -> None:
    model = small_models.mlp()
    quantized = quantize(model, "int8_asymmetric", calibration=[model.inputs(8)])
    with pytest.raises(ExportError, match=r"zero-point 0.*form='onnxruntime'.*int8_ptq"):
        export_onnx(quantized, tmp_path / "model.onnx", form="tensorrt")
    assert os.listdir(tmp_path) == []


def test_an_unknown_form_is_refused(exported: Get, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="no form 'onnx'; there are: tensorrt, onnxruntime"):
        exported(small_models.mlp).write(tmp_path / "a.onnx", form="onnx")


def test_a_file_that_cannot_be_written_is_an_error_that_names_it(
    exported: Get, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=r"nowhere/model\.onnx: cannot be written"):
        exported(small_models.mlp).write(tmp_path / "nowhere" / "model.onnx")


def test_a_failure_while_writing_keeps_the_old_file(
    exported: Get, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object, path: Path, **__: object) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    path = tmp_path / "model.onnx"
    path.write_bytes(b"old")
    monkeypatch.setattr("quantkit.onnx.export.ir.save", fail)
    for external in (False, True):
        with pytest.raises(
            ExportError, match=r"model\.onnx(\.data)?: cannot be written \(No space"
        ):
            exported(small_models.mlp).write(path, external_data=external)
        assert path.read_bytes() == b"old"
        assert os.listdir(tmp_path) == ["model.onnx"]


def test_weights_can_lie_in_a_file_of_their_own(exported: Get, tmp_path: Path) -> None:
    files = exported(small_models.resnet)
    path = files.write(tmp_path / "model.onnx", external_data=True)
    assert sorted(os.listdir(tmp_path)) == ["model.onnx", "model.onnx.data"]
    proto = onnx.load(path, load_external_data=False)
    outside = [t for t in proto.graph.initializer if t.data_location == TensorProto.EXTERNAL]
    assert {e.value for t in outside for e in t.external_data if e.key == "location"} == {
        "model.onnx.data"
    }
    assert "layer" not in {t.name for t in outside}
    assert any(t.name.endswith("weight_quantized") for t in outside)
    (tmp_path / "model.onnx.data").rename(tmp_path / "kept")
    (tmp_path / "kept").rename(tmp_path / "model.onnx.data")
    onnx.checker.check_model(str(path), full_check=True)
    inputs = small_models.resnet().inputs(3, seed=8)
    (whole,) = files.run("tensorrt", *inputs, optimized=True)
    (apart,) = opened(path)(*inputs)
    assert torch.equal(apart, whole)
    assert [str(f) for f in lint(path) if f.severity is not Severity.INFO] == []


def test_a_large_model_gets_such_a_file_of_itself(
    exported: Get, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quantkit.onnx.export.LARGEST_FILE", 1000)
    exported(small_models.mlp).write(tmp_path / "model.onnx")
    assert sorted(os.listdir(tmp_path)) == ["model.onnx", "model.onnx.data"]
