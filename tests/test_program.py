"""A quantized model as a program of torch.export with standard Q/DQ."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch

import quantkit as qk
import small_models
from quantkit.cli import main
from quantkit.errors import ExportError, ModelFileError
from quantkit.loading import load_model
from quantkit.model import QuantizedModel
from quantkit.program.reading import read_facts, read_program
from quantkit.program.writing import export_pt2, to_program
from quantkit.recipe import parse_recipe

GROUPS = """
description: int4 in groups
target: tensorrt
scheme:
  weights: {dtype: int4, symmetric: true, per: group, group_size: 32}
calibrator: minmax
"""


def quantized(recipe: str = "int8_ptq", *, tokens: bool = False) -> QuantizedModel:
    model = small_models.encoder() if tokens else small_models.resnet()
    x = torch.randn((4, 24, 64) if tokens else (8, 3, 16, 16), generator=seeded())
    chosen = parse_recipe(GROUPS, name="groups") if recipe == "groups" else recipe
    return qk.quantize(model.eval(), chosen, calibration=[x], cpu="vnni")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def qmodel() -> QuantizedModel:
    return quantized()


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", ["onnxruntime", "tensorrt"])
def test_the_program_has_the_simulations_values_at_any_batch(
    form: str, qmodel: QuantizedModel
) -> None:
    run = to_program(qmodel, form).module(check_guards=False)  # type: ignore[arg-type]
    with torch.no_grad():
        for batch in (1, 5):
            x = torch.randn(batch, 3, 16, 16, generator=seeded(batch))
            assert same(run(x), qmodel(x))


@pytest.mark.parametrize("recipe", ["int8_weight_only", "groups", "w4a8_qat"])
def test_other_schemes_have_the_simulations_values(recipe: str) -> None:
    model = quantized(recipe, tokens=True)
    x = torch.randn(3, 24, 64, generator=seeded(1))
    with torch.no_grad():
        assert same(to_program(model).module(check_guards=False)(x), model(x))


def test_weights_are_stored_as_integers_and_no_float_one_is_left(qmodel: QuantizedModel) -> None:
    program = to_program(qmodel)
    stored = [value for value in program.state_dict.values() if value.dim() > 1]
    assert stored
    assert {value.dtype for value in stored} == {torch.int8}


def test_activations_are_uint8_in_one_form_and_int8_without_zero_point_in_the_other(
    qmodel: QuantizedModel,
) -> None:
    def grids(form: str) -> set[tuple[object, object]]:
        nodes = to_program(qmodel, form).graph.nodes  # type: ignore[arg-type]
        found = [node for node in nodes if "quantize_per_tensor" in str(node.target)]
        return {(node.args[2], node.args[5]) for node in found}

    assert grids("onnxruntime") == {(128, torch.uint8)}
    assert grids("tensorrt") == {(0, torch.int8)}


def test_the_file_keeps_recipe_plan_and_layer_names(qmodel: QuantizedModel, tmp_path: Path) -> None:
    path = export_pt2(qmodel, tmp_path / "net.pt2")
    facts = read_facts(path)
    assert facts.recipe == "int8_ptq"
    assert facts.plan == qmodel.plan
    x = torch.randn(2, 3, 16, 16, generator=seeded())
    with torch.no_grad():
        assert same(read_program(path).program.module(check_guards=False)(x), qmodel(x))


def test_the_model_is_as_it_was(qmodel: QuantizedModel) -> None:
    before = {name: value.clone() for name, value in qmodel.state_dict().items()}
    to_program(qmodel)
    assert all(torch.equal(before[name], value) for name, value in qmodel.state_dict().items())


def test_an_asymmetric_grid_has_no_form_for_tensorrt() -> None:
    with pytest.raises(ExportError, match="has no form that TensorRT takes"):
        to_program(quantized("int8_asymmetric"), "tensorrt")


def test_what_is_not_calibrated_is_refused() -> None:
    net = small_models.resnet().eval()
    x = torch.zeros(2, 3, 16, 16)
    with pytest.raises(ExportError, match="not calibrated"):
        to_program(qk.prepare(net, "int8_ptq", example_inputs=(x,)))


def test_another_suffix_is_refused(qmodel: QuantizedModel, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"name it so"):
        export_pt2(qmodel, tmp_path / "net.onnx")


def test_a_quantized_program_is_no_float_model(qmodel: QuantizedModel, tmp_path: Path) -> None:
    path = export_pt2(qmodel, tmp_path / "net.pt2")
    with pytest.raises(ModelFileError, match="quantized already, with the recipe int8_ptq"):
        load_model(str(path))


def test_a_program_that_brings_a_pickle_is_not_loaded(
    qmodel: QuantizedModel, tmp_path: Path
) -> None:
    path = export_pt2(qmodel, tmp_path / "net.pt2")
    evil = tmp_path / "evil.pt2"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(evil, "w") as new:
        for item in old.infolist():
            data = old.read(item)
            if "/weights/" in item.filename and not item.filename.endswith(".json"):
                data = b"\x80\x04cos\nsystem\n(S'true'\ntR."
            name = item.filename
            new.writestr(name, data.replace(b'"use_pickle": false', b'"use_pickle": true'))
    with pytest.raises(ModelFileError, match=r"brings|holds"):
        read_program(evil)


def test_the_commands_write_and_refuse_programs_by_their_suffix(
    qmodel: QuantizedModel,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    net = small_models.encoder().eval()
    torch.export.save(torch.export.export(net, (torch.randn(2, 24, 64),)), "net.pt2")
    quantize = ["quantize", "--recipe", "int8_weight_only"]
    assert main([*quantize, "net.pt2", "-o", "q.pt2"]) == 0
    assert "quantkit check q.pt2 --target inductor" in capsys.readouterr().out
    assert read_facts(Path("q.pt2")).recipe == "int8_weight_only"
    for arguments, words in (
        (["check", "q.pt2"], "reads ONNX files"),
        ([*quantize, "q.pt2", "-o", "again.onnx"], "quantized already"),
        ([*quantize, "net.pt2", "--target", "inductor", "-o", "q.onnx"], "reads pt2 files"),
    ):
        assert main(arguments) != 0
        assert words in capsys.readouterr().err
