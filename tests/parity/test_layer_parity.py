"""A file beside its simulation, layer by layer: faults that are planted are found and named."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto
from torch import Tensor, nn

import quantkit as qk
import small_models
from benchmarks.faults import constant, drop, give, move_zero_point, pairs, stretch, swap_scales
from quantkit.interfaces import ExportForm
from quantkit.layer_parity import LayerParity, compare_layers, float_twin
from quantkit.onnx.taps import Taps
from quantkit.targets.onnxruntime import OnnxRuntime

FORMS: tuple[ExportForm, ...] = ("tensorrt", "onnxruntime")


class Case:
    """A small model, quantized, and its file in one form."""

    def __init__(self, net: small_models.SmallModel, recipe: str, form: ExportForm, folder: Path):
        self.net = net
        self.batches = [net.inputs(16, seed=seed) for seed in range(2)]
        self.model = qk.quantize(net, recipe, calibration=self.batches)
        self.file = qk.export_onnx(self.model, folder / f"{form}.onnx", form=form)
        self.activations = [t for t in self.model.plan.tensors if t.role == "activation"]

    def planted(self, fault: Callable[[ModelProto], None]) -> Path:
        """The file with a fault in it."""
        proto = onnx.load(self.file)
        fault(proto)
        path = self.file.with_name("faulty.onnx")
        onnx.save(proto, path)
        return path

    def compare(self, file: Path) -> LayerParity:
        return compare_layers(file, self.model, self.batches)


@pytest.fixture(scope="module", params=FORMS)
def resnet(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("parity")
    return Case(small_models.resnet(), "int8_ptq", request.param, folder)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("parity")
    return Case(small_models.encoder(), "int8_ptq", "onnxruntime", folder)


def codes(found: LayerParity, where: str) -> set[str]:
    return {f.code for f in found.findings if f.where == where}


# A sound file


@pytest.mark.parametrize(
    ("make", "recipe"),
    [
        (small_models.resnet, "int8_ptq"),
        (small_models.inverted_residual, "int8_accurate"),
        (small_models.unet_transposed, "int8_centered"),
        (small_models.encoder, "int8_ptq"),
        (small_models.mlp, "int4_weight_only"),
    ],
)
def test_a_sound_file_departs_nowhere(
    make: Callable[[], small_models.SmallModel], recipe: str, tmp_path: Path
) -> None:
    case = Case(make(), recipe, "tensorrt", tmp_path)
    other = qk.export_onnx(case.model, tmp_path / "onnxruntime.onnx", form="onnxruntime")
    for file in (case.file, other):
        found = case.compare(file)
        assert found.departs is None, str(found)
        assert found.findings == ()
        assert found.notes == ()
        assert len(found.tensors) >= len(case.model.plan.quantized)


def test_a_runtime_that_computes_something_else_is_told_from_a_faulty_file(tmp_path: Path) -> None:
    # ONNX Runtime leaves out a ReLU before a quantizer to FP8; the other form keeps it from that.
    told = {form: Case(small_models.inception(), "fp8", form, tmp_path) for form in FORMS}
    found = {form: case.compare(case.file) for form, case in told.items()}
    assert found["tensorrt"].departs is found["onnxruntime"].departs is None
    (finding,) = found["tensorrt"].findings
    assert finding.code == "deployment-drifts"
    assert "relu" in finding.where
    assert found["onnxruntime"].findings == ()


def test_every_layer_and_every_quantized_activation_is_compared(resnet: Case) -> None:
    found = resnet.compare(resnet.file)
    plan = resnet.model.plan
    assert {t.name for t in found.tensors if t.kind == "layer"} >= set(plan.quantized)
    assert {t.name for t in found.tensors if t.kind == "activation"} == {
        t.tensor for t in resnet.activations
    }


def test_simulation_beside_float_is_what_torch_computes(resnet: Case) -> None:
    twin = float_twin(resnet.net, resnet.model)
    found = compare_layers(resnet.file, resnet.model, resnet.batches, floating=twin)
    last = found.tensors[-1]
    assert (last.name, last.kind) == ("fc", "layer")
    every = torch.cat([batch for (batch,) in resnet.batches])
    with torch.no_grad():
        want, got = resnet.net(every).double(), resnet.model(every).double()
    noise = float((got - want).square().sum())
    assert last.simulated is not None
    wanted = 10 * math.log10(float(want.square().sum()) / noise)
    assert last.simulated.sqnr == pytest.approx(wanted, abs=0.05)
    assert last.simulated.largest == pytest.approx(float((got - want).abs().max()), rel=1e-3)
    cosine = torch.nn.functional.cosine_similarity(want.ravel(), got.ravel(), dim=0)
    assert last.simulated.cosine == pytest.approx(float(cosine), abs=1e-6)
    assert last.simulated.agreement == float((want.argmax(1) == got.argmax(1)).double().mean())


def test_a_shift_by_the_pass_center_is_no_error_of_quantization(tmp_path: Path) -> None:
    case = Case(small_models.inverted_residual(), "int8_centered", "tensorrt", tmp_path)
    twin = float_twin(case.net, case.model)
    found = compare_layers(case.file, case.model, case.batches, floating=twin)
    told = [t.simulated.sqnr for t in found.tensors if t.simulated is not None]
    assert len(told) > len(found.tensors) / 2
    assert min(told) > 25


def test_no_more_samples_are_compared_than_were_asked_for(resnet: Case) -> None:
    def endless() -> Iterator[tuple[Tensor, ...]]:
        while True:
            yield resnet.batches[0]

    assert compare_layers(resnet.file, resnet.model, endless(), samples=40).samples == 48


# Planted faults, at every place


def test_a_wrong_zero_point_is_found_and_named_at_every_activation(resnet: Case) -> None:
    for tensor in resnet.activations:

        def fault(proto: ModelProto, name: str = tensor.tensor) -> None:
            move_zero_point(proto, name)

        found = resnet.compare(resnet.planted(fault))
        assert found.departs == tensor.tensor
        expected = {"wrong-zero-point", "departs-from-simulation"}
        assert codes(found, tensor.tensor) == expected
        assert {f.where for f in found.findings} == {tensor.tensor}


def test_swapped_scales_are_found_and_both_named(resnet: Case) -> None:
    scales = {t.tensor: float(resnet.model.quantizers[t.grid].scale) for t in resnet.activations}
    names = sorted(scales, key=lambda name: scales[name])
    first, second = names[0], names[-1]

    def fault(proto: ModelProto) -> None:
        swap_scales(proto, first, second)

    found = resnet.compare(resnet.planted(fault))
    assert "wrong-scale" in codes(found, first) & codes(found, second)
    order = [t.name for t in found.tensors]
    assert found.departs == min(first, second, key=order.index)


def test_swapped_scales_of_two_weights_are_found_and_named(encoder: Case) -> None:
    weights = [t for t in encoder.model.plan.tensors if t.role == "weight"]
    sizes = {t.tensor: encoder.model.quantizers[t.grid].scale.numel() for t in weights}
    first, second = next(
        (a.tensor, b.tensor) for a in weights for b in weights
        if a is not b and sizes[a.tensor] == sizes[b.tensor]
    )  # fmt: skip

    def fault(proto: ModelProto) -> None:
        (one,), (other,) = pairs(proto, first), pairs(proto, second)
        one.input[1], other.input[1] = other.input[1], one.input[1]

    found = encoder.compare(encoder.planted(fault))
    assert "wrong-scale" in codes(found, first) & codes(found, second)
    assert found.departs is not None
    assert "departs-from-simulation" in codes(found, found.departs)


def test_dropped_q_and_dq_are_found_and_named_at_every_activation(resnet: Case) -> None:
    for tensor in resnet.activations:

        def fault(proto: ModelProto, name: str = tensor.tensor) -> None:
            drop(proto, name)

        found = resnet.compare(resnet.planted(fault))
        assert "missing-qdq" in codes(found, tensor.tensor), tensor.tensor
        assert {f.where for f in found.findings if f.code == "missing-qdq"} == {tensor.tensor}


def test_a_lost_q_and_dq_of_a_tensor_that_has_two_is_found(tmp_path: Path) -> None:
    # Where a tensor is shifted, it is padded before it is quantized for the one convolution.
    case = Case(small_models.resnet(), "int8_centered", "tensorrt", tmp_path)
    names = [t.name for t in Taps(onnx.load(case.file)).taps if t.kind == "activation"]
    assert any(" for " in name for name in names)
    for name in names:

        def fault(proto: ModelProto, name: str = name) -> None:
            drop(proto, name)

        found = case.compare(case.planted(fault))
        tensor = name.partition(" for ")[0]
        (finding,) = [f for f in found.findings if f.code == "missing-qdq"]
        assert finding.where == tensor
        if " for " in name:
            assert name.partition(" for ")[2] in finding.why


def test_a_layer_that_reads_a_tensor_beside_its_q_and_dq_is_named(resnet: Case) -> None:
    tensor = next(t for t in resnet.activations if len(t.edges) == 1)
    (reader,) = tensor.edges

    def fault(proto: ModelProto) -> None:
        nodes = pairs(proto, tensor.tensor)
        quantize = next(n for n in nodes if n.op_type == "QuantizeLinear")
        layer = next(n for n in proto.graph.node if n.name == reader.op)
        layer.input[reader.index] = quantize.input[0]

    found = resnet.compare(resnet.planted(fault))
    (finding,) = [f for f in found.findings if f.code == "missing-qdq"]
    assert finding.where == tensor.tensor
    assert reader.op in finding.why


def test_a_wrong_bias_is_found_at_its_layer(resnet: Case) -> None:
    layer = "identity.conv2.0"

    def fault(proto: ModelProto) -> None:
        node = next(n for n in proto.graph.node if n.name == layer)
        makers = {o: n for n in proto.graph.node for o in n.output}
        maker = makers.get(node.input[2])
        if maker is None:
            give(proto, node, 2, constant(proto, node, 2) + np.float32(1.0))
        else:  # integers behind a DQ
            give(proto, maker, 1, constant(proto, maker, 1) * np.float32(3.0))

    found = resnet.compare(resnet.planted(fault))
    assert found.departs == layer
    assert {f.where for f in found.findings} == {layer}


def test_a_fault_is_seen_by_itself_only_where_it_is(resnet: Case) -> None:
    tensor = resnet.activations[1].tensor

    def fault(proto: ModelProto) -> None:
        stretch(proto, tensor, 4.0)

    found = resnet.compare(resnet.planted(fault))
    names = [t.name for t in found.tensors]
    behind = found.tensors[names.index(tensor) + 1 :]
    assert [t.name for t in found.tensors if t.own.sqnr < 50] == [tensor]
    assert min(t.deployed.sqnr for t in behind) < 40  # from the inputs on, it is seen all the way


def test_nan_departs(resnet: Case) -> None:
    tensor = resnet.activations[0].tensor

    def fault(proto: ModelProto) -> None:
        for node in pairs(proto, tensor, "DequantizeLinear"):
            give(proto, node, 1, np.array(np.nan, dtype=np.float32))

    found = resnet.compare(resnet.planted(fault))
    assert found.departs == tensor
    assert math.isnan(next(t for t in found.tensors if t.name == tensor).own.sqnr)


# check


def test_check_fails_on_a_planted_fault_and_passes_without(resnet: Case) -> None:
    tensor = resnet.activations[2].tensor

    def fault(proto: ModelProto) -> None:
        stretch(proto, tensor, 1.02)

    def checked(file: Path) -> qk.CheckReport:
        return qk.check(file, "onnxruntime", reference=resnet.model, data=iter(resnet.batches))

    sound, faulty = checked(resnet.file), checked(resnet.planted(fault))
    assert sound.ok
    assert sound.layer_parity is not None
    assert sound.layer_parity.samples == 32
    assert not faulty.ok
    assert faulty.layer_parity is not None
    assert faulty.layer_parity.departs == tensor
    assert "layer_parity" in faulty.to_json()


def test_the_least_sqnr_of_a_step_is_the_users_to_say(resnet: Case) -> None:
    found = compare_layers(resnet.file, resnet.model, resnet.batches, min_sqnr=500.0)
    assert found.departs is not None


class Odd(OnnxRuntime):
    """A target whose kernels are wrong: it puts out 1 % more."""

    def run(self, model, batches):  # type: ignore[no-untyped-def]
        assert len(batches) == 2  # all at once: a target builds a file first
        return [[x * np.float32(1.01) for x in out] for out in OnnxRuntime().run(model, batches)]


class Broken(OnnxRuntime):
    """A target that computes something else."""

    def run(self, model, batches):  # type: ignore[no-untyped-def]
        return [[-x for x in out] for out in OnnxRuntime().run(model, batches)]


def test_a_target_that_runs_here_is_compared_as_well(resnet: Case) -> None:
    found = compare_layers(resnet.file, resnet.model, resnet.batches, target=Odd())
    told = [t.target for t in found.tensors]
    assert all(t is not None and 35 < t.sqnr < 45 for t in told)
    assert found.departs is None  # the file is sound, the target is not
    assert found.findings == ()
    (finding,) = compare_layers(resnet.file, resnet.model, resnet.batches, target=Broken()).findings
    assert (finding.code, finding.where) == ("deployment-drifts", found.tensors[0].name)


def test_weights_in_a_file_of_their_own_are_found(resnet: Case, tmp_path: Path) -> None:
    file = qk.export_onnx(resnet.model, tmp_path / "net.onnx", external_data=True)
    found = resnet.compare(file)
    assert found.departs is None
    assert found.findings == ()


def test_a_file_in_half_is_compared_as_well(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)).eval()
    x = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))
    model = qk.quantize(net, "int4_weight_only", calibration=[x])
    qk.to_half(qk.export_onnx(model, tmp_path / "net.onnx"), tmp_path / "half.onnx")
    found = compare_layers(tmp_path / "half.onnx", model, [x])
    assert [tensor.name for tensor in found.tensors] == ["0", "2"]
    assert found.findings == ()


def test_drift_names_where_it_begins(resnet: Case) -> None:
    from quantkit.onnx.parity import Closeness
    from quantkit.parity.findings import drift

    near, far = (
        Closeness(sqnr=sqnr, cosine=1.0, largest=0.0, agreement=None) for sqnr in (48.0, 12.0)
    )
    found = drift([("a", near), ("b", far), ("c", far)])
    assert found is not None
    assert (found.code, found.where) == ("deployment-drifts", "b")
    assert drift([("a", near)]) is None


def test_taps_find_what_a_layer_reads(resnet: Case) -> None:
    taps = Taps(onnx.load(resnet.file))
    for tensor in resnet.activations:
        for edge in tensor.edges:
            if taps.reads(edge.op):
                assert taps.read_by(edge.op, edge.index) == tensor.tensor


def test_an_empty_model_has_nothing_to_compare(tmp_path: Path) -> None:
    recipe = qk.Recipe.model_validate({"name": "none", "scheme": {}})
    net = nn.Sequential(nn.ReLU())
    model = qk.quantize(net, recipe, example_inputs=(torch.randn(4, 8),))
    found = compare_layers(qk.export_onnx(model, tmp_path / "a.onnx"), model, [torch.randn(4, 8)])
    assert found.tensors == ()
    assert "nothing to compare" in str(found)
