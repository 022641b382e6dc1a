"""Recipes and models of every form go into a file that ONNX Runtime runs as simulated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from exported_models import (
    CHANNEL,
    Exported,
    assert_same,
    constants,
    dimensions,
    operators,
    recipe,
)
from torch import Tensor, nn
from torch.export import Dim

import small_models
from quantkit import numerics
from quantkit.errors import ExportError
from quantkit.interfaces import ExportForm, Severity
from quantkit.onnx.export import export_onnx
from quantkit.onnx.lint import lint
from quantkit.workflow import quantize

FORMS: tuple[ExportForm, ...] = ("tensorrt", "onnxruntime")
ONNXRUNTIME: tuple[ExportForm, ...] = ("onnxruntime",)

FP8 = {"dtype": "fp8_e4m3"}
INT4 = {"dtype": "int4", "per": "group", "group_size": 16}


def seeded(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7))


def layers(activation: type[nn.Module] = nn.ReLU, size: int = 64) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(size, size), activation(), nn.Linear(size, size))


def check(exported: Exported, *inputs: Tensor) -> None:
    """Each file is valid, and equals the simulation."""
    expected = exported.simulated(*inputs)
    for form, proto in exported.protos.items():
        onnx.checker.check_model(proto, full_check=True)
        for level in (False, True):
            found = exported.run(form, *inputs, optimized=level)
            assert len(found) == len(expected)
            for mine, theirs in zip(expected, found, strict=True):
                assert_same(mine, theirs, (form, level))


# Formats.


@pytest.mark.parametrize(
    ("weights", "activations", "opset"),
    [
        (INT4, None, 21),
        ({**INT4, "dtype": "int8", "group_size": 32}, None, 21),
        (INT4, {}, 21),
        ({"dtype": "int4", "per": "channel"}, None, 21),
        ({**FP8, "per": "channel"}, FP8, 19),
        ({**FP8, "per": "tensor"}, None, 19),
        (CHANNEL, CHANNEL, 18),
        ({"per": "tensor"}, {}, 18),
        ({"symmetric": False, "per": "channel"}, {"dtype": "uint8", "symmetric": False}, 18),
    ],
    ids=[
        "int4 groups",
        "int8 groups",
        "int4 groups and int8 activations",
        "int4 per channel",
        "fp8",
        "fp8 weights",
        "activations per channel",
        "per tensor",
        "asymmetric",
    ],
)
def test_every_format_is_written_at_its_opset_and_runs_as_simulated(
    tmp_path: Path, weights: Any, activations: Any, opset: int
) -> None:
    files = Exported.of(
        layers(), (seeded(16, 64),), tmp_path, recipe(weights, activations), ONNXRUNTIME
    )
    assert [o.version for o in files.protos["onnxruntime"].opset_import] == [opset]
    check(files, 2 * seeded(5, 64))


def test_int4_weights_are_stored_in_four_bits_with_a_scale_a_group(tmp_path: Path) -> None:
    files = Exported.of(layers(), (seeded(8, 64),), tmp_path, recipe(INT4), ("tensorrt",))
    proto = files.protos["tensorrt"]
    tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
    weight, zero = tensors["0.weight_quantized"], tensors["0.weight_zero_point"]
    assert weight.data_type == zero.data_type == onnx.TensorProto.INT4
    assert len(weight.raw_data) == 64 * 64 // 2
    (node,) = (n for n in proto.graph.node if n.name == "0.weight/DequantizeLinear")
    # The file may hold the weight transposed: groups lie along the dimension that is summed over.
    attributes = {a.name: a.i for a in node.attribute}
    (gemm,) = (n for n in proto.graph.node if n.name == "0")
    transposed = any(a.name == "transB" and a.i == 1 for a in gemm.attribute)
    assert attributes == {"axis": 1 if transposed else 0, "block_size": 16}
    assert [str(f) for f in lint(proto) if f.severity is not Severity.INFO] == []


@pytest.mark.parametrize("activation", [nn.ReLU, nn.ReLU6])
@pytest.mark.parametrize(
    ("weights", "activations"),
    [({**FP8, "per": "channel"}, FP8), (CHANNEL, {"dtype": "int4"})],
    ids=["fp8", "int4"],
)
def test_onnx_runtime_keeps_a_relu_before_a_format_that_it_takes_for_unsigned(
    tmp_path: Path, activation: type[nn.Module], weights: Any, activations: Any
) -> None:
    files = Exported.of(
        layers(activation), (seeded(16, 64),), tmp_path, recipe(weights, activations)
    )
    assert "Max" in operators(files.protos["onnxruntime"])
    assert {"Relu", "Clip"} & set(operators(files.protos["tensorrt"]))
    (expected,) = files.simulated(seeded(5, 64))
    (found,) = files.run("onnxruntime", seeded(5, 64), optimized=True)
    assert_same(expected, found)
    (found,) = files.run("tensorrt", seeded(5, 64), optimized=False)
    assert_same(expected, found)


@pytest.mark.parametrize("activations", [{"bits": 7}, {"bits": 5}])
def test_activations_of_fewer_bits_saturate_in_the_file_as_in_simulation(
    tmp_path: Path, activations: Any
) -> None:
    model, x = layers(), seeded(16, 64)
    files = Exported.of(model, (x,), tmp_path, recipe(CHANNEL, activations))
    # Beyond what was calibrated: Q alone would go on to the end of its 8 bits.
    check(files, 4 * x)
    (expected,) = files.simulated(4 * x)
    assert numerics.sqnr(model(4 * x), expected) < 15


def test_asymmetric_activations_of_fewer_bits_saturate_too(tmp_path: Path) -> None:
    chosen = recipe(CHANNEL, {"dtype": "uint8", "symmetric": False, "bits": 6})
    files = Exported.of(layers(), (seeded(16, 64),), tmp_path, chosen, ONNXRUNTIME)
    check(files, 4 * seeded(16, 64))


def test_fewer_bits_and_a_scale_a_channel_are_refused_with_the_way_out(tmp_path: Path) -> None:
    chosen = recipe(CHANNEL, {"bits": 7, "per": "channel"})
    with pytest.raises(ExportError, match=r"\(7 bits\).*remove bits, or use one scale per tensor"):
        Exported.of(layers(), (seeded(16, 64),), tmp_path, chosen)


def test_weights_of_seven_bits_stay_within_them(tmp_path: Path) -> None:
    weights = {**CHANNEL, "bits": 7}
    files = Exported.of(layers(), (seeded(16, 64),), tmp_path, recipe(weights, {}))
    check(files, seeded(5, 64))
    stored = constants(files.protos["tensorrt"])["0.weight_quantized"]
    assert stored.min() >= -64
    assert stored.max() == 63


# ONNX Runtime's own form.


def test_a_relu_that_the_grid_implies_is_gone_and_others_follow_in_integers(
    tmp_path: Path,
) -> None:
    model = small_models.inverted_residual()
    data = model.inputs(8)
    files = Exported.of(model, data, tmp_path / "a", "int8_asymmetric", ONNXRUNTIME)
    found = operators(files.protos["onnxruntime"])
    assert "Relu" not in found
    assert "Clip" not in found
    check(files, *model.inputs(3, seed=5))
    symmetric = Exported.of(model, data, tmp_path / "b", "int8_ptq", ONNXRUNTIME)
    proto = symmetric.protos["onnxruntime"]
    producer = {output: node for node in proto.graph.node for output in node.output}
    clips = [node for node in proto.graph.node if node.op_type in {"Relu", "Clip"}]
    assert clips
    assert all(producer[node.input[0]].op_type == "QuantizeLinear" for node in clips)
    check(symmetric, *model.inputs(3, seed=5))


def test_the_bias_of_a_gemm_is_int32_and_exact(tmp_path: Path) -> None:
    files = Exported.of(layers(), (seeded(16, 64),), tmp_path, "int8_ptq", ONNXRUNTIME)
    stored = constants(files.protos["onnxruntime"])
    for layer in files.model.layers():
        assert layer.bias is not None
        integers = stored[f"{layer.name}.bias_quantized"]
        scale = stored[f"{layer.name}.bias_scale"]
        assert integers.dtype == np.int32
        np.testing.assert_allclose(integers * scale, layer.bias.detach().numpy(), rtol=1e-6)
    check(files, seeded(5, 64))


# Models.


class Shared(nn.Module):
    """One layer used twice, and another with its weight."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(32, 32), nn.Linear(32, 32)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.relu(self.a(F.relu(self.a(x)))))


@pytest.mark.parametrize("shape", [(8, 32), (8, 6, 32)], ids=["Gemm", "MatMul"])
def test_layers_may_share_a_weight(tmp_path: Path, shape: tuple[int, ...]) -> None:
    files = Exported.of(Shared(), (seeded(*shape),), tmp_path)
    for proto in files.protos.values():
        matrices = [a for a in constants(proto).values() if a.shape == (32, 32)]
        assert {a.dtype for a in matrices} == {np.dtype(np.int8)}
        assert all((a == matrices[0]).all() for a in matrices)
        assert "Transpose" not in operators(proto)
    check(files, seeded(*shape))


class Computed(nn.Module):
    """A layer whose weight is made of two parameters, too large for the exporter to compute."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.direction = nn.Parameter(torch.randn(512, 512))
        self.size = nn.Parameter(torch.rand(512, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.size * self.direction / self.direction.norm(dim=1, keepdim=True)
        return F.linear(x, weight)


def test_a_weight_that_the_model_computes_is_stored_as_integers(tmp_path: Path) -> None:
    model = Computed()
    files = Exported.of(model, (seeded(8, 512),), tmp_path, "int8_weight_only", ("tensorrt",))
    assert operators(files.protos["tensorrt"]) == ["DequantizeLinear", "Gemm"]
    assert files.paths["tensorrt"].stat().st_size < 1.1 * 512 * 512
    check(files, seeded(5, 512))
    assert {name for name, _ in model.named_parameters()} == {"direction", "size"}


class Named(nn.Module):
    """Parameters, inputs and modules that are called as export calls its own tensors."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc, self.fc_1 = nn.Linear(32, 32), nn.Linear(32, 32)
        self.fc.weight_scale = nn.Parameter(torch.rand(32))
        self.fc.weight_quantized = nn.Parameter(torch.rand(32))

    def forward(self, values: Tensor, values_scale: Tensor) -> dict[str, Tensor]:
        x = self.fc(values) * self.fc.weight_scale + self.fc.weight_quantized
        return {"out": self.fc(self.fc_1(x)), "other": x * values_scale}


def test_the_models_own_names_do_not_meet_those_of_the_file(tmp_path: Path) -> None:
    x, y = seeded(8, 32), seeded(8, 32) + 1
    files = Exported.of(Named(), (x, y), tmp_path)
    check(files, x, y)
    for proto in files.protos.values():
        names = [node.name for node in proto.graph.node]
        assert len(set(names)) == len(names)
        assert {"fc", "fc_1"} <= set(names)
        assert [value.name for value in proto.graph.input] == ["values", "values_scale"]


class Branching(nn.Module):
    """A branch at run time, with layers around it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc, self.out = nn.Linear(32, 32), nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x)
        y = torch.cond(x.sum() > 0, lambda t: torch.tanh(t), lambda t: torch.exp(-t), (y,))
        return self.out(y)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
def test_a_branch_at_run_time_is_exported_without_notes_of_this_machine(
    tmp_path: Path, root: Path
) -> None:
    files = Exported.of(Branching(), (seeded(8, 32),), tmp_path)
    for x in (seeded(5, 32).abs(), -seeded(5, 32).abs()):
        check(files, x)
    for path in files.paths.values():
        data = path.read_bytes()
        assert str(root).encode() not in data
        assert b"test_export_forms" not in data


class Sequence(nn.Module):
    """Two inputs whose second dimension varies as well."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc = nn.Linear(32, 32)

    def forward(self, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.fc(tokens) * mask.unsqueeze(-1)
        return torch.cat([hidden, hidden], 1), hidden.flatten(1)


def test_dimensions_have_readable_names_also_in_expressions(tmp_path: Path) -> None:
    batch, length = Dim("rows"), Dim("length", max=64)
    shapes = {name: {0: batch, 1: length} for name in ("tokens", "mask")}
    inputs = (seeded(4, 6, 32), torch.ones(4, 6))
    quantized = quantize(
        Sequence().eval(), example_inputs=inputs, calibration=[inputs], dynamic_shapes=shapes
    )
    files = Exported(quantized, tmp_path, ("tensorrt",))
    assert list(dimensions(files.protos["tensorrt"]).values()) == [
        ["batch", "tokens_1", 32],
        ["batch", "tokens_1"],
        ["batch", "2*tokens_1", 32],
        ["batch", "32*tokens_1"],
    ]
    check(files, seeded(3, 9, 32), torch.ones(3, 9))


def test_a_second_dimension_that_varies_on_its_own_is_called_after_its_input(
    tmp_path: Path,
) -> None:
    class Apart(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(32, 32)

        def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            return self.fc(x), y * 2

    inputs = (seeded(4, 32), seeded(6, 3))
    shapes = ({0: Dim.DYNAMIC}, {0: Dim.DYNAMIC})
    quantized = quantize(
        Apart().eval(), example_inputs=inputs, calibration=[inputs], dynamic_shapes=shapes
    )
    files = Exported(quantized, tmp_path, ("tensorrt",))
    assert list(dimensions(files.protos["tensorrt"]).values()) == [
        ["batch", 32], ["y_0", 3], ["batch", 32], ["y_0", 3],
    ]  # fmt: skip
    check(files, seeded(2, 32), seeded(9, 3))


def test_a_model_of_fixed_shapes_is_exported_with_them(tmp_path: Path) -> None:
    x = seeded(4, 64)
    quantized = quantize(layers(), example_inputs=(x,), calibration=[x], dynamic_shapes=None)
    files = Exported(quantized, tmp_path, ("tensorrt",))
    assert list(dimensions(files.protos["tensorrt"]).values()) == [[4, 64], [4, 64]]
    check(files, x)


def test_inputs_by_name_and_outputs_in_a_dictionary_keep_their_order(tmp_path: Path) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b = nn.Linear(32, 32), nn.Linear(16, 32)

        def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
            hidden = F.relu(self.a(x))
            return {"sum": hidden + self.b(y), "hidden": hidden}

    batch = {"x": seeded(8, 32), "y": seeded(8, 16)}
    quantized = quantize(Two().eval(), calibration=[batch])
    files = Exported(quantized, tmp_path, FORMS)
    assert list(dimensions(files.protos["tensorrt"]).values()) == [
        ["batch", 32], ["batch", 16], ["batch", 32], ["batch", 32],
    ]  # fmt: skip
    expected = files.simulated(**batch)
    for form in FORMS:
        found = files.run(form, *batch.values(), optimized=True)
        for mine, theirs in zip(expected, found, strict=True):
            assert_same(mine, theirs, form)


def test_padding_folds_into_the_convolution_that_reads_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.ZeroPad2d((1, 2, 0, 1)), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU6(),
        nn.Conv2d(32, 16, 1),
    )  # fmt: skip
    x = seeded(4, 16, 8, 8)
    for name, forms in (("int8_ptq", FORMS), ("int8_asymmetric", ONNXRUNTIME)):
        files = Exported.of(model, (x,), tmp_path / name, name, forms)
        for proto in files.protos.values():
            assert "Pad" not in operators(proto)
            (conv,) = (node for node in proto.graph.node if node.name == "1")
            assert {a.name: list(a.ints) for a in conv.attribute}["pads"] == [1, 2, 2, 3]
        check(files, 2 * x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_model_of_another_float_type_is_refused_with_the_way_out(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    quantized = quantize(layers(), calibration=[seeded(8, 64)])
    with pytest.raises(ExportError, match=r"0\.weight is .* in float32; call model\.float"):
        export_onnx(quantized.to(dtype), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_an_operator_that_onnx_does_not_have_is_named(tmp_path: Path) -> None:
    class Bessel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(32, 32)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(torch.special.bessel_j0(x))

    quantized = quantize(Bessel().eval(), calibration=[seeded(8, 32)])
    with pytest.raises(ExportError, match=r"no ONNX form: .*bessel_j0.*replace the operator") as e:
        export_onnx(quantized, tmp_path / "model.onnx")
    assert "\n" not in str(e.value)


def test_activations_alone_are_written_as_they_are_simulated(tmp_path: Path) -> None:
    model = small_models.inverted_residual()
    files = Exported.of(model, model.inputs(8), tmp_path, "int8_activation_only", ONNXRUNTIME)
    check(files, *model.inputs(6, seed=5))
