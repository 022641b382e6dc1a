"""Inductor runs Q/DQ in integers where it can, and tells where it cannot."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import quantkit as qk
from quantkit.errors import MissingDependencyError, ModelFileError, TargetError
from quantkit.interfaces import Inspection
from quantkit.model import QuantizedModel
from quantkit.numerics import sqnr
from quantkit.program.operators import DEQUANTIZE_CHANNEL
from quantkit.program.reading import read_program
from quantkit.program.writing import export_pt2, to_program
from quantkit.spec import QuantSpec, Scheme
from quantkit.targets._inductor_compile import Compilation
from quantkit.targets._inductor_findings import inspection_of
from quantkit.targets._inductor_packages import Package, Signature
from quantkit.targets._inductor_prepare import prepare
from quantkit.targets._inductor_process import Outcome, Output, require_compiler
from quantkit.targets.inductor import Inductor, compiled

needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None, reason="Inductor compiles with a C++ compiler, and g++ is absent"
)
WEIGHT = QuantSpec(axis=0)


class Net(nn.Module):
    """A stem, a depthwise layer, a residual add, a transposed convolution and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, padding=1)
        self.depthwise = nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.point = nn.Conv2d(32, 32, 1)
        self.up = nn.ConvTranspose2d(32, 32, 2, 2)
        self.fc = nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(self.point(self.depthwise(x)) + x)
        out: Tensor = self.fc(self.up(x).mean((2, 3)))
        return out


@pytest.fixture(scope="module")
def qmodel() -> QuantizedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return qk.quantize(Net().eval(), "int8_cpu", calibration=[torch.randn(8, 3, 16, 16)])


@pytest.fixture(scope="module")
def program(qmodel: QuantizedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_pt2(qmodel, tmp_path_factory.mktemp("inductor") / "net.pt2")


@pytest.fixture(scope="module")
def inspection(program: Path) -> Inspection:
    """Compiled once: it takes ten seconds."""
    return Inductor(threads=1).inspect(program)


@needs_compiler
@pytest.mark.slow
def test_layers_run_in_oneddns_integers(inspection: Inspection) -> None:
    assert inspection.ok
    runs = {layer.node: layer for layer in inspection.layers}
    for name in ("stem", "depthwise", "point", "fc"):
        assert runs[name].precision == "int8", name
        assert "onednn" in runs[name].kernel
    assert runs["up"].precision == "float32"
    assert not runs["up"].quantized


@needs_compiler
@pytest.mark.slow
def test_the_package_repeats_the_simulation_at_any_batch(
    program: Path, inspection: Inspection, qmodel: QuantizedModel
) -> None:
    run = Inductor(threads=1).opened(program, inspection)
    for batch in (1, 5):
        x = torch.randn(batch, 3, 16, 16, generator=torch.Generator().manual_seed(batch))
        (found,) = run({"x": x.numpy()})
        with torch.no_grad():
            assert sqnr(qmodel(x), torch.from_numpy(np.asarray(found))) > 30


@needs_compiler
@pytest.mark.slow
def test_a_package_runs_where_it_was_built_or_is_vouched_for(
    program: Path, inspection: Inspection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Inductor, "inspect", lambda self, model: inspection)
    batch = {"x": np.zeros((2, 3, 16, 16), np.float32)}
    package = tmp_path / "net.aoti.pt2"
    Inductor().build(program, package)
    (ours,) = Inductor().run(package, [batch])
    monkeypatch.setenv("QUANTKIT_STATE", str(tmp_path / "another user"))
    with pytest.raises(TargetError, match="not loaded: no record says that it was built here"):
        Inductor().run(package, [batch])
    (trusted,) = Inductor(trust_engine=True).run(package, [batch])
    assert np.array_equal(ours[0], trusted[0])


def test_what_it_cannot_run_in_integers_has_a_reason(qmodel: QuantizedModel) -> None:
    layers = {layer.name: layer for layer in prepare(to_program(qmodel)).layers}
    assert layers["stem"].reason is None
    assert layers["stem"].scale is not None
    assert not layers["up"].quantized or layers["up"].reason is not None


@pytest.mark.parametrize("recipe", ["int8_ptq", "int8_cpu"])
def test_preparing_changes_no_value(recipe: str) -> None:
    x = torch.randn(3, 3, 16, 16)
    model = qk.quantize(Net().eval(), recipe, calibration=[x], cpu="avx2")
    program = to_program(model, "tensorrt" if recipe == "int8_ptq" else "onnxruntime")
    with torch.no_grad():
        before = program.module(check_guards=False)(x)
        after = prepare(program).program.module(check_guards=False)(x)
    assert torch.allclose(before, after, atol=1e-6)


@pytest.mark.parametrize(
    ("scheme", "device", "codes"),
    [
        (Scheme(weights=WEIGHT, activations=QuantSpec()), "cpu", []),
        (Scheme(weights=WEIGHT, activations=QuantSpec(symmetric=False)), "cpu", []),
        (Scheme(weights=WEIGHT, activations=None), "cpu", ["weight-only"]),
        (Scheme(weights=None, activations=QuantSpec()), "cpu", ["activation-only"]),
        (Scheme(weights=WEIGHT, activations=QuantSpec(axis=1)), "cpu", ["per-channel-activations"]),
        (
            Scheme(weights=QuantSpec(axis=1, group_size=32), activations=QuantSpec()),
            "cpu",
            ["group-weights"],
        ),
        (
            Scheme(weights=QuantSpec(axis=0, symmetric=False), activations=QuantSpec()),
            "cpu",
            ["weight-zero-point"],
        ),
        (Scheme(weights=WEIGHT, activations=QuantSpec()), "cuda", ["no-integer-kernel"]),
    ],
)
def test_it_says_of_each_scheme_what_becomes_of_it(
    scheme: Scheme, device: str, codes: list[str]
) -> None:
    target = Inductor(device=device, cpu="vnni")  # type: ignore[arg-type]
    assert [finding.code for finding in target.refusals([scheme])] == codes


def test_without_vnni_wide_weights_saturate_and_narrow_ones_do_not() -> None:
    wide = Scheme(weights=WEIGHT, activations=QuantSpec())
    narrow = Scheme(weights=QuantSpec(axis=0, bits=7), activations=QuantSpec())
    found = Inductor(cpu="avx2").refusals([wide, narrow])
    assert [finding.code for finding in found] == ["saturates-without-vnni"]


def test_a_layer_that_no_pattern_matched_is_told(program: Path) -> None:
    layers = prepare(read_program(program).program).layers
    done = Compilation(layers=layers, outcome=Outcome(), package=b"")
    found = inspection_of("inductor", program, done, saturates=False)
    assert "runs-in-float" in {finding.code for finding in found.findings}


def test_onnx_is_refused_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(b"")
    with pytest.raises(ModelFileError, match="reads programs, not ONNX"):
        qk.build(tmp_path / "net.onnx", tmp_path / "out.pt2", "inductor")


def test_without_a_compiler_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(MissingDependencyError, match="no-such-compiler is not there"):
        require_compiler()


@pytest.mark.parametrize(
    ("options", "words"),
    [({"device": "tpu"}, "cpu or cuda"), ({"threads": 0}, "1 or more"), ({"timeout_s": 0}, "0")],
)
def test_options_are_checked(options: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Inductor(**options)  # type: ignore[arg-type]


# What Inductor's patterns get wrong, and the program that it is given instead


class Traps(nn.Module):
    """What was seen to go wrong with torch 2.13: see docs/inductor.md."""

    def __init__(self) -> None:
        super().__init__()
        self.tied = nn.Linear(32, 32)
        self.matrix = nn.Parameter(torch.randn(32, 32) / 6)
        self.table = nn.Parameter(torch.randn(1, 32))
        self.last = nn.Linear(64, 32)

    def forward(self, x: Tensor) -> Tensor:
        first = torch.relu(self.tied(x) + x)  # added to in place, in the caller's tensor
        second = self.tied(first) + self.table.expand(x.shape)  # in a constant, or beyond its end
        third = second @ self.matrix  # its scales lie along the second dimension
        joined = torch.stack([first, third], dim=1)
        out: Tensor = self.last(joined.flatten(1))  # not read from its dequantization directly
        return out


@pytest.fixture(scope="module")
def traps() -> QuantizedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        # Weights and activations of 4 bits: Inductor forgets where such codes end.
        return qk.quantize(Traps().eval(), "w4a4_qat", calibration=[torch.randn(64, 32)])


def test_every_layer_is_given_a_form_that_runs_in_integers(traps: QuantizedModel) -> None:
    layers = prepare(to_program(traps)).layers
    assert len(layers) == 4
    assert all(layer.scale is not None for layer in layers), layers


@needs_compiler
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
def test_compiled_it_repeats_the_simulation_at_every_call_and_leaves_its_input_alone(
    traps: QuantizedModel,
) -> None:
    run = compiled(traps)
    for size in (16, 16, 5):
        x = torch.randn(size, 32, generator=torch.Generator().manual_seed(size))
        before = x.clone()
        found = run(x)
        assert torch.equal(x, before)
        with torch.no_grad():
            assert sqnr(traps(x), found) > 25


def dequantized(weight: Tensor, scale: Tensor, zero: Tensor, axis: int) -> Tensor:
    dequantize = torch.ops.quantized_decomposed.dequantize_per_channel
    values: Tensor = dequantize(weight, scale, zero, axis, -128, 127, torch.int8)
    return values


class Foreign(nn.Module):
    """A program as other tools write it: int8 activations, and one layer of any form."""

    def __init__(self, layer: str, *, axis: int = 0, zero: int = 0, rank: int = 2) -> None:
        super().__init__()
        self.layer = layer
        self.axis = axis
        weight = torch.randint(-128, 128, (16, 16) + (3,) * (rank - 2))
        self.register_buffer("weight", weight.to(torch.int8))
        self.register_buffer("scale", torch.rand(16) * 0.01 + 0.001)
        self.register_buffer("zero", torch.full((16,), zero))

    def forward(self, x: Tensor) -> Tensor:
        ops = torch.ops.quantized_decomposed
        grid = (0.02, 0, -127, 127, torch.int8)
        x = ops.dequantize_per_tensor(ops.quantize_per_tensor(x, *grid), *grid)
        weight = dequantized(self.weight, self.scale, self.zero, self.axis)
        out: Tensor = getattr(torch.nn.functional, self.layer)(x, weight)
        return out


@pytest.mark.parametrize(
    ("net", "shape", "code"),
    [
        (Foreign("linear"), (4, 16), None),
        (Foreign("conv2d", rank=4), (2, 16, 6, 6), None),
        (Foreign("conv1d", rank=3), (2, 16, 6), None),
        (Foreign("conv3d", rank=5), (2, 16, 4, 4, 4), "no-integer-kernel"),
        (Foreign("conv_transpose2d", axis=1, rank=4), (2, 16, 6, 6), "no-integer-kernel"),
        (Foreign("linear", axis=1), (4, 16), "weight-axis"),
        (Foreign("linear", zero=3), (4, 16), "weight-zero-point"),
    ],
)
def test_a_layer_whose_pattern_would_be_wrong_is_kept_from_it(
    net: Foreign, shape: tuple[int, ...], code: str | None
) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 2
    prepared = prepare(torch.export.export(net, (x,)))
    (layer,) = prepared.layers
    assert (None if layer.reason is None else layer.reason.code) == code
    assert (layer.scale is None) == (code is not None)
    calls = [node.target for node in prepared.program.graph.nodes if node.op == "call_function"]
    types = [node.args[5] for node in prepared.program.graph.nodes
             if "quantize_per_tensor" in str(node.target)]  # fmt: skip
    assert set(types) == {torch.uint8}
    # Weights of layers in float are floats already: else each call would dequantize them anew.
    assert (DEQUANTIZE_CHANNEL in calls) == (code is None)
    # -127 is the lowest code there, and Inductor would go on to -128.
    assert torch.ops.aten.clamp.default in calls
    with torch.no_grad():
        assert torch.allclose(prepared.program.module(check_guards=False)(x), net(x), atol=1e-5)


def test_what_the_plan_leaves_in_float_is_not_counted_as_quantized(
    qmodel: QuantizedModel,
) -> None:
    layers = prepare(to_program(qmodel), left_in_float={"point"}).layers
    (point,) = (layer for layer in layers if layer.name == "point")
    assert not point.quantized
    assert point.reason is None


# What is told of what came out


def outcome(signal: float, noise: float, sensitivity: float) -> Outcome:
    output = Output(signal=signal, noise=noise, sensitivity=sensitivity)
    return Outcome(outputs=(output,))


@pytest.mark.parametrize(
    ("signal", "noise", "sensitivity", "wrong"),
    [
        (1.0, 0.0, 0.0, False),
        (1.0, 0.009, 0.0, False),
        (1.0, 0.02, 0.0, True),
        (1.0, 0.02, 0.003, False),  # moved weights do nearly as much
        (1.0, math.nan, 0.0, True),
        (0.0, 1.0, 0.0, True),
    ],
)
def test_a_result_is_wrong_where_moved_weights_do_not_explain_it(
    signal: float, noise: float, sensitivity: float, wrong: bool
) -> None:
    done = Compilation(layers=(), outcome=outcome(signal, noise, sensitivity), package=b"")
    found = inspection_of("inductor", Path("net.pt2"), done, saturates=False)
    assert [f.code for f in found.findings] == (["wrong-result"] if wrong else [])
    assert found.ok is not wrong


def test_a_compiler_that_fails_is_told_in_one_line(program: Path) -> None:
    done = Compilation(layers=(), outcome=Outcome(error="it fell."), package=None)
    (finding,) = inspection_of("inductor", program, done, saturates=False).findings
    assert (finding.code, finding.why) == ("does-not-compile", "It fell.")


@needs_compiler
def test_a_compiler_that_takes_too_long_is_stopped(program: Path) -> None:
    (finding,) = Inductor(timeout_s=0.01).inspect(program).findings
    assert "time limit of 0.01 s" in finding.why


def test_a_batch_that_does_not_fit_is_refused_before_native_code_reads_it(
    qmodel: QuantizedModel,
) -> None:
    signature = Signature.read(Signature.of(to_program(qmodel)).json())
    package = Package("net.pt2", signature, lambda inputs: inputs, "cpu")
    good = np.zeros((5, 3, 16, 16), np.float32)
    assert np.array_equal(package({"x": good})[0], good)
    for name, bad in (
        ("x", good.astype(np.float64)),
        ("x", good[:, :1]),
        ("x", good[0]),
        ("y", good),
    ):
        with pytest.raises(TargetError, match=r"takes x: float32 \(\*, 3, 16, 16\)"):
            package({name: bad})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_it_compiles_for_a_gpu(qmodel: QuantizedModel) -> None:
    x = torch.randn(4, 3, 16, 16)
    with torch.no_grad():
        wanted = qmodel(x)
        found = compiled(qmodel, device="cuda")(x.cuda()).cpu()
    assert sqnr(wanted, found) > 30
