"""Torch-TensorRT where it is not installed: options, programs, rules, and words for what is absent.

What its own code does with these is in `test_torch_tensorrt_real`.
"""

from __future__ import annotations

import importlib.util
import re
import zipfile
from collections.abc import Callable
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import quantkit
import small_models
from quantkit.errors import ExportError, MissingDependencyError, ModelFileError, TargetError
from quantkit.interfaces import Inspection
from quantkit.model import QuantizedModel
from quantkit.numerics import sqnr
from quantkit.operators import Call, is_call
from quantkit.program.writing import export_pt2, to_program
from quantkit.recipe import parse_recipe
from quantkit.spec import QuantSpec, Scheme
from quantkit.targets import _torch_tensorrt_files as files
from quantkit.targets import _torch_tensorrt_sdk as sdk
from quantkit.targets._torch_tensorrt_converter import is_on_a_grid_of_tensorrt, pack_int4
from quantkit.targets._torch_tensorrt_partition import Partition, Step
from quantkit.targets._torch_tensorrt_program import program_of, with_operators
from quantkit.targets._torch_tensorrt_rules import share_out
from quantkit.targets.torch_tensorrt import TorchTensorRT


@cache
def quantized(name: str, weights: str = "int8", activations: str | None = "int8") -> QuantizedModel:
    """A small model, quantized per tensor, channel or group as ``dtype/per`` says."""
    model = getattr(small_models, name)()
    told = {"weights": weights, "activations": activations}
    scheme = "\n".join(f"  {part}: {_choice(choice)}" for part, choice in told.items())
    recipe = parse_recipe(f"scheme:\n{scheme}\n", name="test")
    return quantkit.quantize(model, recipe, calibration=[model.inputs(4)[0]])


def _choice(text: str | None) -> str:
    if text is None:
        return "null"
    dtype, _, per = text.partition("/")
    group = ", group_size: 16" if per == "group" else ""
    return f"{{dtype: {dtype}, per: {per or 'tensor'}{group}}}"


def outputs(program: torch.export.ExportedProgram, x: Tensor) -> Tensor:
    y: Tensor = program.module(check_guards=False)(x)
    return y


# Options


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"min_blok_size": 1}, r"no option 'min_blok_size' and would ignore it; did you mean"),
        ({"optimisation_levels": 1}, "did you mean 'optimization_level'"),
        ({"xyzzy": 1}, "there are: assume_dynamic_shape_support, "),
        ({"enabled_precisions": {torch.int8}}, "any more: networks are strongly typed.*float16"),
        ({"use_explicit_typing": True}, "any more: networks are always strongly typed"),
        ({"min_block_size": 1}, "is a field of the target; give it as min_block_size="),
        ({"dryrun": True}, "call inspect, which is a dry run"),
        ({"device": "cuda:1"}, "torch.cuda.set_device"),
    ],
)
def test_a_name_that_torch_tensorrt_would_drop_is_refused(
    options: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        TorchTensorRT(options=options)


def test_other_options_are_passed_on_by_their_names() -> None:
    target = TorchTensorRT(
        min_block_size=3,
        torch_executed_ops=("aten.relu.default", "torch.ops.aten.add.Tensor"),
        optimization_level=2,
        options={"disable_tf32": True, "engine_cache_dir": "x"},
    )
    assert target.settings == {
        "min_block_size": 3,
        "torch_executed_ops": {"torch.ops.aten.relu.default", "torch.ops.aten.add.Tensor"},
        "require_full_compilation": False,
        "optimization_level": 2,
        "workspace_size": 0,
        "hardware_compatible": False,
        "version_compatible": False,
        "immutable_weights": True,
        "disable_tf32": True,
        "engine_cache_dir": "x",
    }


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"min_block_size": 0}, "min_block_size must be 1 or more, got 0"),
        ({"optimization_level": 6}, "from 0 to 5, got 6"),
        ({"workspace_size": -1}, "0 or more bytes, got -1"),
        ({"torch_executed_ops": ("aten.rellu",)}, "no operator 'aten.rellu'"),
        ({"torch_executed_ops": ("relu",)}, "write such as aten.relu"),
        ({"torch_executed_ops": ("aten.add.tensor",)}, "no overload 'tensor'; there are: Tensor"),
        ({"shapes": {"x": ((1,), (2,))}}, "three shapes of one length"),
        (
            {"torch_executed_ops": ("aten.relu",), "require_full_compilation": True},
            "which require_full_compilation forbids",
        ),
    ],
)
def test_an_option_that_cannot_be_is_refused_at_once(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        TorchTensorRT(**fields)


def test_it_reads_programs_with_zero_points_of_zero() -> None:
    assert (TorchTensorRT().reads, TorchTensorRT().form) == ("pt2", "tensorrt")


def test_fp8_is_refused_for_a_gpu_that_has_none() -> None:
    fp8 = QuantSpec(dtype="fp8_e4m3")
    scheme = Scheme(weights=fp8, activations=fp8)
    found = TorchTensorRT(compute_capability="8.6").refusals([scheme, scheme])
    assert "fp8-hardware" in {finding.code for finding in found}
    assert len(found) == len(set(found))
    assert TorchTensorRT(compute_capability="8.9").refusals([scheme]) == []
    # Torch-TensorRT builds with TensorRT, which has INT8 convolutions for Turing.
    int8 = Scheme(weights=QuantSpec(axis=0), activations=QuantSpec())
    assert TorchTensorRT(compute_capability="7.5").refusals([int8]) == []


# Programs


@pytest.mark.parametrize(
    ("name", "weights", "activations"),
    [
        ("resnet", "int8/channel", "int8"),
        ("encoder", "int8/channel", "int8"),
        ("mlp", "int4/group", None),
        ("resnet", "fp8_e4m3/channel", "fp8_e4m3"),
    ],
)
def test_a_quantizer_is_one_node_and_the_values_stay_to_the_bit(
    name: str, weights: str, activations: str | None
) -> None:
    model = quantized(name, weights, activations)
    x = model.capture.args[0]
    expected = model(x)

    direct = program_of(model)
    assert sum(map(is_call, direct.graph.nodes)) == len(model.plan.tensors)
    assert torch.equal(outputs(direct, x), expected)

    program = to_program(model, "tensorrt")
    before = outputs(program, x)
    assert with_operators(program) == len(model.plan.tensors)
    assert torch.equal(outputs(program, x), before)
    specs = {Call.of(n.args).spec for n in program.graph.nodes if is_call(n)}
    wanted = {tensor.spec for tensor in model.plan.tensors}
    assert {str(s).replace("(axis -1)", "(axis 1)") for s in specs} == {str(s) for s in wanted}


def test_symmetric_uint8_with_its_zero_in_the_middle_is_int8() -> None:
    model = quantized("resnet", "int8/channel", "int8")
    program = to_program(model, "onnxruntime")
    x = model.capture.args[0]
    before = outputs(program, x)
    with_operators(program)
    calls = [Call.of(node.args).spec for node in program.graph.nodes if is_call(node)]
    assert {spec.dtype for spec in calls} == {"int8"}
    assert torch.equal(outputs(program, x), before)


def test_a_quantized_output_of_the_program_stays_its_output() -> None:
    class Ends(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            ops = torch.ops.quantized_decomposed
            grid = (0.1, 0, -128, 127, torch.int8)
            y: Tensor = ops.dequantize_per_tensor(ops.quantize_per_tensor(x, *grid), *grid)
            return y

    x = torch.randn(3, 4)
    program = torch.export.export(Ends(), (x,))
    before = outputs(program, x)
    assert with_operators(program) == 1
    assert torch.equal(outputs(program.run_decompositions(), x), before)


def test_a_grid_that_no_spec_has_is_left_as_it_is() -> None:
    class Narrow(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            ops = torch.ops.quantized_decomposed
            grid = (0.1, 0, -127, 127, torch.int8)
            y: Tensor = ops.dequantize_per_tensor(ops.quantize_per_tensor(x, *grid), *grid)
            return y.relu()

    assert with_operators(torch.export.export(Narrow(), (torch.randn(3, 4),))) == 0


def test_a_model_without_grids_is_told_to_be_calibrated() -> None:
    model = small_models.mlp()
    prepared = quantkit.prepare(model, "int8_ptq", example_inputs=model.example_inputs)
    with pytest.raises(ExportError, match=r"not calibrated .*; run calibrate\(model, batches\)"):
        program_of(prepared)


def test_exporting_leaves_the_model_in_its_mode() -> None:
    model = quantized("mlp")
    model.train()
    try:
        program_of(model)
        assert model.training
    finally:
        model.eval()


# Sizes


def test_a_dynamic_batch_gets_a_smallest_best_and_largest_size() -> None:
    program = to_program(quantized("mlp"), "tensorrt")
    shapes = {"x": ((1, 32), (3, 32), (5, 32))}
    (value,) = (
        node.meta["val"] for node in files.sized(program, shapes).graph.nodes if node.name == "x"
    )
    size = value.shape[0].node
    allowed = size.shape_env.var_to_range[size.expr]
    # torch.export has no dynamic size below 2; Torch-TensorRT takes that for 1.
    assert (int(allowed.lower), size.hint, int(allowed.upper)) == (2, 3, 5)


def test_sizes_are_kept_within_what_the_program_allows() -> None:
    model, x = small_models.mlp(), small_models.mlp().inputs(6)[0]
    dim = torch.export.Dim("n", min=4, max=9)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: dim},))
    sized = files.sized(program, {})
    (allowed,) = sized.range_constraints.values()
    assert (int(allowed.lower), int(allowed.upper)) == (4, 9)


def test_inputs_that_share_a_size_share_it_still() -> None:
    class Sum(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x + y

    dim = torch.export.Dim("n", min=2, max=64)
    x = torch.randn(4, 3)
    program = torch.export.export(Sum(), (x, x), dynamic_shapes=({0: dim}, {0: dim}))
    sized = files.sized(program, {})
    left, right = (n.meta["val"].shape[0] for n in sized.graph.nodes if n.op == "placeholder")
    assert str(left) == str(right)


def test_a_program_of_fixed_sizes_stays_as_it_is() -> None:
    program = torch.export.export(nn.Linear(3, 3), (torch.randn(2, 3),))
    assert files.sized(program, {}) is program


# Rules


def test_smaller_blocks_are_left_to_pytorch_as_min_block_size_says() -> None:
    program = program_of(quantized("mlp"))
    whole = share_out(program, smallest=1)
    (size,) = whole.blocks
    assert whole.engines == (size,)
    assert whole.kept(size).engines == (size,)
    none = whole.kept(size + 1)
    assert none.engines == ()
    assert [finding.code for finding in none.findings()] == ["no-engine"]
    assert f"Set min_block_size to {size} or less." in none.findings()[0].fix


def test_an_operator_that_pytorch_is_to_run_splits_the_graph() -> None:
    program = program_of(quantized("mlp"))
    shared = share_out(program, smallest=1, executed={"torch.ops.aten.native_layer_norm.default"})
    assert len(shared.engines) == 2
    assert shared.unsupported == {
        "aten.native_layer_norm.default": 1,
        "_operator.getitem": 1,
    }
    assert {finding.code for finding in shared.findings()} == {"no-converter", "many-engines"}


def test_what_crosses_borders_is_counted_once_with_its_bytes() -> None:
    def step(name: str, inputs: tuple[str, ...], engine: int | None) -> Step:
        return Step(
            name=name,
            operator="aten.relu.default",
            module="",
            inputs=inputs,
            bytes=8,
            engine=engine,
            supported=True,
        )

    steps = (step("a", ("x",), 0), step("b", ("a",), None), step("c", ("a", "b"), 1))
    shared = Partition(steps=steps, smallest=1, blocks=(1, 1))
    assert shared.crossing == (2, 16)
    assert [shared.engines_at(size) for size in (1, 5)] == [2, 0]


@pytest.mark.parametrize(
    ("spec", "constant", "has"),
    [
        (QuantSpec(), False, True),
        (QuantSpec(axis=1), False, True),
        (QuantSpec(bits=4), False, True),
        (QuantSpec(bits=4, axis=1), False, False),
        (QuantSpec(dtype="int4"), False, True),
        (QuantSpec(dtype="fp8_e4m3"), False, True),
        (QuantSpec(symmetric=False), False, False),
        (QuantSpec(symmetric=False), True, False),
        (QuantSpec(dtype="uint8"), False, False),
        (QuantSpec(axis=0, bits=7), True, True),
        (QuantSpec(axis=1, group_size=2), False, False),
    ],
    ids=str,
)
def test_a_grid_is_convertible_where_tensorrt_has_it(
    spec: QuantSpec, constant: bool, has: bool
) -> None:
    assert is_on_a_grid_of_tensorrt(Call(None, None, None, spec), constant) is has


@given(st.lists(st.integers(-8, 7), min_size=1, max_size=9))
def test_two_4_bit_codes_lie_in_a_byte_the_first_low(values: list[int]) -> None:
    packed = pack_int4(torch.tensor(values, dtype=torch.int8)).tolist()
    nibbles = [nibble for byte in packed for nibble in (byte & 15, byte >> 4)]
    assert [n - 16 if n > 7 else n for n in nibbles[: len(values)]] == values
    assert nibbles[len(values) :] in ([], [0])


# Inspection


@pytest.fixture(scope="module")
def inspected(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Inspection]:
    if torch.cuda.is_available() and importlib.util.find_spec("torch_tensorrt"):
        pytest.skip("its own dry run speaks here")
    folder = tmp_path_factory.mktemp("programs")

    def inspect(model: QuantizedModel | nn.Module, x: Tensor, **options: Any) -> Inspection:
        file = folder / "model.pt2"
        if isinstance(model, QuantizedModel):
            export_pt2(model, file, form="onnxruntime")
        else:
            torch.export.save(torch.export.export(model.eval(), (x,)), file)
        return TorchTensorRT(**options).inspect(file)

    return inspect


def test_without_it_rules_speak_and_say_so(inspected: Callable[..., Inspection]) -> None:
    model = quantized("resnet", "int8/channel", "int8")
    report = inspected(model, model.capture.args[0])
    assert report.target == "torch_tensorrt (quantkit's rules of 2.13.0, no dry run)"
    assert report.ok
    assert [finding.code for finding in report.findings] == ["no-dry-run"]
    assert (report.planned, report.covered) == (7, 7)
    assert {layer.kernel for layer in report.layers} == {"engine 1"}
    assert [layer.node for layer in report.layers] == [layer.name for layer in model.layers()]


def test_pytorchs_own_fake_quantize_is_told_to_split_the_graph(
    inspected: Callable[..., Inspection],
) -> None:
    class Fake(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(32, 32), nn.Linear(32, 32)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.fake_quantize_per_tensor_affine(self.first(x).relu(), 0.05, 0, -128, 127)
            return self.second(x).relu()

    report = inspected(Fake(), torch.randn(2, 32), min_block_size=1)
    found = {finding.code: finding for finding in report.findings}
    assert set(found) == {"no-dry-run", "no-converter", "many-engines"}
    assert found["no-converter"].where.startswith("aten.fake_quantize_per_tensor_affine")
    assert "splits the graph" in found["no-converter"].why
    assert "2 engines with min_block_size 1 (2 at 1, 0 at 5, 0 at 10)" in found["many-engines"].why


def test_a_grid_with_a_zero_point_is_told_to_run_in_pytorch(
    inspected: Callable[..., Inspection],
) -> None:
    model = small_models.mlp()
    asymmetric = quantkit.quantize(model, "int8_cpu", calibration=[model.inputs(4)[0]])
    report = inspected(asymmetric, model.inputs(4)[0])
    (finding,) = (f for f in report.findings if f.code == "no-converter")
    assert finding.where == "quantkit.fake_quantize.default"
    assert "it takes zero-point 0" in finding.why
    assert "int8_ptq" in finding.fix


def test_layers_left_to_pytorch_say_why(inspected: Callable[..., Inspection]) -> None:
    model = quantized("mlp")
    report = inspected(model, model.capture.args[0], min_block_size=99)
    assert {layer.precision for layer in report.layers} == {"float32"}
    assert {layer.reason for layer in report.layers} == {
        "runs in PyTorch: its block has fewer than 99 operators"
    }
    assert report.covered == 0


# What is absent


def _absent(monkeypatch: pytest.MonkeyPatch, **here: Any) -> str:
    """The error where PyTorch, package and GPU are as told."""
    monkeypatch.setattr(torch.version, "cuda", here.get("cuda", "13.0"))
    monkeypatch.setattr(torch, "__version__", "2.13.0+cu130")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: here.get("gpu", True))
    found = object() if here.get("package", True) else None
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found)

    def version(name: str) -> str:
        if name != here.get("name", "torch-tensorrt"):
            raise metadata.PackageNotFoundError(name)
        return str(here.get("version", "2.13.0"))

    monkeypatch.setattr(metadata, "version", version)
    error = sdk.absence()
    return f"{type(error).__name__}: {error}"


def test_a_cpu_build_of_pytorch_is_named_as_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _absent(monkeypatch, cuda=None) == (
        "MissingDependencyError: Torch-TensorRT does not import with a CPU build of PyTorch, as "
        "2.13.0+cu130 is: install a CUDA build of the same version (pytorch.org gives the "
        "command), then `pip install torch-tensorrt==2.13.*`"
    )


@pytest.mark.parametrize(
    ("here", "said"),
    [
        ({"package": False}, "MissingDependencyError: .*`pip install torch-tensorrt==2.13.*`"),
        ({"version": "2.12.1"}, "torch-tensorrt 2.12.1 is for PyTorch 2.12, and this is 2.13.0"),
        (
            {"name": "torch-tensorrt-rtx", "version": "2.11.0"},
            r"run `pip install torch-tensorrt-rtx==2.13.\*`",
        ),
        ({"gpu": False}, "TargetError: .*needs an NVIDIA GPU.*--target tensorrt_rtx"),
        ({}, "NoneType"),
    ],
)
def test_each_reason_why_it_is_absent_has_a_way_out(
    monkeypatch: pytest.MonkeyPatch, here: dict[str, Any], said: str
) -> None:
    assert re.match(f".*{said}", _absent(monkeypatch, **here))


def test_an_import_that_fails_names_the_tensorrt_that_it_needs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package = tmp_path / "torch_tensorrt"
    package.mkdir()
    source = "print('noise')\nraise Exception('Could not find libnvinfer.so.11\\n  Search paths')\n"
    (package / "__init__.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sdk, "absence", lambda: None)
    monkeypatch.setattr(sdk, "_package", lambda: ("torch-tensorrt", "2.13.0"))
    with pytest.raises(MissingDependencyError, match=r"libnvinfer.so.11\).*tensorrt 11.0") as told:
        sdk.load()
    assert "\n" not in str(told.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_building_and_running_without_it_name_the_way_out(tmp_path: Path) -> None:
    file, output = tmp_path / "model.pt2", tmp_path / "compiled.pt2"
    model = quantized("mlp")
    export_pt2(model, file, form="tensorrt")
    target = TorchTensorRT()
    output.write_bytes(b"good")
    calls: list[Callable[[], object]] = [
        lambda: target.build(file, output),
        lambda: target.run(file, [{"x": np.zeros((2, 32), np.float32)}]),
        lambda: target.compiled(model),
        lambda: target.compiled_ahead(model),
    ]
    for call in calls:
        with pytest.raises((MissingDependencyError, TargetError), match="Torch-TensorRT"):
            call()
    assert output.read_bytes() == b"good"


@pytest.mark.parametrize("fields", [{"require_full_compilation": True}, {"shapes": {}}])
def test_what_torch_compile_would_ignore_is_refused(fields: dict[str, Any]) -> None:
    if fields == {"shapes": {}}:
        fields = {"shapes": {"x": ((1, 32), (2, 32), (3, 32))}}
    with pytest.raises(TargetError, match=r"torch.compile would ignore .*; use compiled_ahead"):
        TorchTensorRT(**fields).compiled(quantized("mlp"))


def test_a_file_that_is_no_program_is_told(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="no such file"):
        TorchTensorRT().inspect(tmp_path / "none.pt2")


def _with_engines(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/models/model.json", '{"target": "torch.ops.tensorrt.execute_engine"}')
    return path


def test_a_file_with_engines_is_known_and_not_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUANTKIT_STATE", str(tmp_path / "state"))
    compiled = _with_engines(tmp_path / "compiled.pt2")
    assert files.holds_engines(compiled)
    with pytest.raises(ModelFileError, match="holds engines already"):
        TorchTensorRT().inspect(compiled)
    with pytest.raises(TargetError, match=r"not loaded: no record .*trust_engine=True"):
        files.load_compiled(compiled, trusted=False)
    with pytest.raises(TargetError, match="does not load here"):
        files.load_compiled(compiled, trusted=True)
    assert not files.holds_engines(tmp_path / "none.pt2")


def test_a_folder_that_cannot_be_written_costs_nothing(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="choose a folder that exists"):
        files.save(None, None, tmp_path / "none" / "compiled.pt2")


def test_a_batch_with_other_inputs_is_told_which_there_are() -> None:
    with pytest.raises(TargetError, match="a batch has y, but the program takes x; name each"):
        files.run_batches(None, ["x"], [{"y": np.zeros(1)}], None)


# On a GPU: nothing of this has been run yet


@pytest.fixture
def needs_it() -> None:
    pytest.importorskip("torch_tensorrt", reason="needs torch-tensorrt")


@pytest.mark.gpu
@pytest.mark.usefixtures("needs_it")
@pytest.mark.parametrize("way", ["compiled", "compiled_ahead"])
def test_a_compiled_model_computes_what_the_simulation_does(way: str) -> None:
    model = quantized("resnet", "int8/channel", "int8")
    x = model.capture.args[0]
    result = getattr(TorchTensorRT(), way)(model)(x.cuda())
    assert sqnr(model(x), result.cpu()) >= 40.0


@pytest.mark.gpu
@pytest.mark.usefixtures("needs_it")
def test_a_file_is_built_with_one_engine_and_runs(tmp_path: Path) -> None:
    model = quantized("resnet", "int8/channel", "int8")
    file, output = tmp_path / "model.pt2", tmp_path / "compiled.pt2"
    export_pt2(model, file, form="tensorrt")
    target = TorchTensorRT(min_block_size=1)
    assert len(target.partition(file).engines) == 1
    report = target.build(file, output)
    assert (report.planned, report.covered) == (7, 7)
    batches = [{"x": small_models.resnet().inputs(size)[0].numpy()} for size in (1, 4)]
    for batch, (result,) in zip(batches, target.run(output, batches), strict=True):
        assert sqnr(model(torch.as_tensor(batch["x"])), torch.as_tensor(result)) >= 40.0
