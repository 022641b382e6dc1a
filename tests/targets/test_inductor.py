"""Inductor runs Q/DQ in integers where it can, and tells where it cannot."""

from __future__ import annotations

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
from quantkit.program.writing import export_pt2, to_program
from quantkit.spec import QuantSpec, Scheme
from quantkit.targets._inductor_prepare import prepare
from quantkit.targets._inductor_process import Outcome, require_compiler
from quantkit.targets.inductor import Inductor

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
    assert "transposed" in runs["up"].reason


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
    from quantkit.program.reading import read_program
    from quantkit.targets._inductor_compile import Compilation
    from quantkit.targets._inductor_findings import inspection_of

    layers = prepare(read_program(program).program).layers
    compiled = Compilation(layers=layers, outcome=Outcome(), package=b"")
    found = inspection_of("inductor", program, compiled, saturates=False)
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


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_it_compiles_for_a_gpu(qmodel: QuantizedModel) -> None:
    from quantkit.targets.inductor import compiled

    x = torch.randn(4, 3, 16, 16)
    with torch.no_grad():
        wanted = qmodel(x)
        found = compiled(qmodel, device="cuda")(x.cuda()).cpu()
    assert sqnr(wanted, found) > 30
