"""A quantized model as a program of torch.export with standard Q/DQ."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Callable
from contextlib import suppress
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
SCHEMES = {
    "int4 in short groups": {
        "weights": {"dtype": "int4", "per": "group", "group_size": 12},
        "activations": {"dtype": "int8"},
    },
    "fp8": {
        "weights": {"dtype": "fp8_e4m3", "per": "channel"},
        "activations": {"dtype": "fp8_e4m3"},
    },
    "fp8 per channel": {
        "weights": {"dtype": "fp8_e4m3"},
        "activations": {"dtype": "fp8_e4m3", "per": "channel"},
    },
    "zero-points everywhere": {
        "weights": {"dtype": "uint8", "symmetric": False, "per": "channel"},
        "activations": {"dtype": "uint8", "symmetric": False, "per": "channel"},
    },
    "four bits": {
        "weights": {"dtype": "int4", "per": "tensor"},
        "activations": {"dtype": "int4"},
    },
}


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
    """To the bit: the operators compute what the simulation does, in the same order."""
    return torch.equal(a, b)


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


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_has_operators_of_its_own_values(scheme: str, tmp_path: Path) -> None:
    recipe = qk.Recipe.model_validate(
        {"name": "mine", "scheme": SCHEMES[scheme], "target": "onnxruntime"}
    )
    net = small_models.unet_transposed()
    (x,) = net.inputs(4)
    model = qk.quantize(net, recipe, calibration=[x])
    assert model.plan.quantized
    path = export_pt2(model, tmp_path / "net.pt2")
    with torch.no_grad():
        assert same(read_program(path).program.module(check_guards=False)(x), model(x))


def test_learned_grids_are_written_and_go_on_learning_in_the_model() -> None:
    model = quantized("int8_qat")
    qk.train_quantizers(model)
    quantizer = next(model.of_role("activation"))
    with torch.no_grad():
        quantizer.scale.mul_(1.5)
    program = to_program(model)
    assert quantizer.learning
    scales = [node.args[1] for node in program.graph.nodes if "quantize_per_t" in str(node.target)]
    assert float(quantizer.scale.detach()) in scales


def test_a_file_tells_nothing_of_the_machine_that_wrote_it(
    qmodel: QuantizedModel, tmp_path: Path
) -> None:
    with zipfile.ZipFile(export_pt2(qmodel, tmp_path / "net.pt2")) as file:
        (model,) = (name for name in file.namelist() if "/models/" in name)
        text = file.read(model).decode()
    assert "stack_trace" not in text
    assert str(Path.cwd()) not in text
    assert '"quantkit.layer' in text.replace("\\", "")


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


# A file that brings code


class Touching:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.path,))


def changed(path: Path, change: Callable[[str, bytes], bytes], **more: bytes) -> Path:
    """A copy of an archive, with other contents and more entries."""
    copy = path.with_name("changed.pt2")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(copy, "w") as new:
        root = old.namelist()[0].partition("/")[0]
        for name in old.namelist():
            new.writestr(name, change(name.partition("/")[2], old.read(name)))
        for name, data in more.items():
            new.writestr(f"{root}/{name}", data)
    return copy


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A small float program, whose batch is dynamic."""
    batch = {0: torch.export.Dim.DYNAMIC}
    net, x = torch.nn.Linear(3, 2), torch.zeros(4, 3)
    torch.export.save(torch.export.export(net, (x,), dynamic_shapes=(batch,)), tmp_path / "a.pt2")
    return tmp_path / "a.pt2"


@pytest.mark.parametrize("part", ["weights/weight_0", "sample_inputs/model.pt"])
def test_a_pickle_in_a_program_is_never_loaded(part: str, saved: Path) -> None:
    touched = saved.with_name("touched")
    buffer = io.BytesIO()
    torch.save(Touching(touched), buffer)

    def change(name: str, data: bytes) -> bytes:
        if name.endswith("weights_config.json"):
            first = 1 if "weights" in part else 0
            return data.replace(b'"use_pickle": false', b'"use_pickle": true', first)
        return buffer.getvalue() if name.endswith(part) else data

    bad = changed(saved, change)
    for load in (lambda: read_program(bad), lambda: load_model(str(bad))):
        with pytest.raises(ModelFileError, match=r"brings a pickle"):
            load()
    assert not touched.exists()
    # The same file in torch's own hands: what is refused here is no harmless thing.
    with suppress(Exception):
        torch.export.load(bad)
    assert touched.exists()


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("torch.ops.aten.linear.default", "torch.os.system", r"a call of 'torch\.os\.system'"),
        ("torch.ops.aten.linear.default", "builtins.eval", "a call of 'builtins.eval'"),
        (r"Symbol\('", r"__import__('os').getcwd() or Symbol('", "is no arithmetic"),
        (r"Symbol\('\w+', positive=True, integer=True\)", "exec(chr(49))", "is no arithmetic"),
        (r"Symbol\('\w+', positive=True, integer=True\)", "Max.mro()", "is no arithmetic"),
    ],
)
def test_a_call_or_an_expression_that_is_none_of_a_program_is_refused(
    old: str, new: str, words: str, saved: Path
) -> None:
    def change(name: str, data: bytes) -> bytes:
        if not name.startswith("models/"):
            return data
        text, count = re.subn(old, new, data.decode())
        assert count
        return text.encode()

    with pytest.raises(ModelFileError, match=f"brings .*{words}"):
        read_program(changed(saved, change))


def test_sizes_that_are_computed_are_arithmetic(tmp_path: Path) -> None:
    class Halves(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([x[: x.shape[0] // 2], x.repeat(x.shape[0] % 3 + 1, 1)])

    dynamic = ({0: torch.export.Dim.DYNAMIC},)
    program = torch.export.export(Halves(), (torch.zeros(7, 3),), dynamic_shapes=dynamic)
    torch.export.save(program, tmp_path / "sizes.pt2")
    assert read_program(tmp_path / "sizes.pt2").plan is None


def test_native_code_beside_a_program_is_refused(saved: Path) -> None:
    bad = changed(saved, lambda name, data: data, **{"data/aotinductor/model/a.so": b"ELF"})
    with pytest.raises(ModelFileError, match=r"brings native code \(data/aotinductor/model/a.so\)"):
        read_program(bad)


@pytest.mark.parametrize("content", [b"", b"junk", b"PK\x05\x06" + bytes(18)])
def test_what_is_no_program_is_told(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "net.pt2").write_bytes(content)
    with pytest.raises(ModelFileError, match="not a program that torch can read"):
        read_program(tmp_path / "net.pt2")
    with pytest.raises(ModelFileError, match="no such file"):
        read_program(tmp_path / "none.pt2")


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
