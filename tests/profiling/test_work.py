"""Operations and bytes of layers, beside PyTorch's own count of operations."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import small_models as sm
from quantkit.errors import DataError, ModelFileError
from quantkit.graph.abstract import Graph, Kind, Op, Value
from quantkit.graph.capture import capture
from quantkit.profiling.fusing import fuse
from quantkit.profiling.kinds import Dtype
from quantkit.profiling.sizes import layers_of_nodes, work_of, work_of_onnx
from quantkit.profiling.work import WIDTHS, LayerWork, Size, count, total

few = st.integers(1, 4)
#: Without a deadline: PyTorch imports what it needs for counting in the first example.
quick = settings(deadline=None, max_examples=40)


def counted(op: Op, tensors: Mapping[str, Tensor]) -> LayerWork:
    """The work of one operator that reads ``tensors``, ``w`` being constant."""
    values = {name: Value(name=name, constant=name in {"w", "b"}) for name in tensors}
    sizes = {name: Size(tuple(tensor.shape)) for name, tensor in tensors.items()}
    return count(Graph((op,), values, (op.output,)), sizes, 1).layers[0]


def flops_of_torch(run: object, *args: object) -> tuple[int, Tensor]:
    """What PyTorch counts."""
    with FlopCounterMode(display=False) as counter:
        made = run(*args)  # type: ignore[operator]
    return int(counter.get_total_flops()), made


@quick
@given(
    groups=few, per=few, out=few, kernel=st.tuples(few, few), stride=st.integers(1, 3),
    dilation=st.integers(1, 2), padding=st.integers(0, 2), batch=few, extent=st.integers(8, 12),
)  # fmt: skip
def test_a_convolution_has_the_operations_that_pytorch_counts(
    groups: int, per: int, out: int, kernel: tuple[int, int], stride: int, dilation: int,
    padding: int, batch: int, extent: int,
) -> None:  # fmt: skip
    x = torch.empty(batch, groups * per, extent, extent + 1, device="meta")
    w = torch.empty(groups * out, per, *kernel, device="meta")
    flops, y = flops_of_torch(F.conv2d, x, w, None, stride, padding, dilation, groups)
    op = Op(name="c", kind=Kind.CONV, inputs=("x", "w"), output="y", groups=groups)
    work = counted(op, {"x": x, "w": w, "y": y})
    assert work.flops == flops
    assert (work.read, work.weights, work.written) == (x.numel(), w.numel(), y.numel())


@quick
@given(groups=few, per=few, out=few, kernel=few, stride=st.integers(1, 3), batch=few)
def test_a_transposed_convolution_has_the_operations_that_pytorch_counts(
    groups: int, per: int, out: int, kernel: int, stride: int, batch: int
) -> None:
    x = torch.empty(batch, groups * per, 7, 5, device="meta")
    w = torch.empty(groups * per, out, kernel, kernel, device="meta")
    flops, y = flops_of_torch(F.conv_transpose2d, x, w, None, stride, 0, 0, groups)
    op = Op(name="c", kind=Kind.CONV_TRANSPOSE, inputs=("x", "w"), output="y", groups=groups)
    assert counted(op, {"x": x, "w": w, "y": y}).flops == flops


@quick
@given(lead=st.lists(few, max_size=2), inner=few, out=few)
def test_a_linear_layer_has_the_operations_that_pytorch_counts(
    lead: list[int], inner: int, out: int
) -> None:
    x = torch.empty(*lead, 3, inner, device="meta")
    w, b = torch.empty(out, inner, device="meta"), torch.empty(out, device="meta")
    flops, y = flops_of_torch(F.linear, x, w, b)
    op = Op(name="l", kind=Kind.LINEAR, inputs=("x", "w", "b"), output="y", weight_axis=0)
    work = counted(op, {"x": x, "w": w, "b": b, "y": y})
    assert work.flops == flops
    assert (work.weights, work.biases) == (w.numel(), b.numel())


@quick
@given(lead=st.lists(few, max_size=2), rows=few, inner=few, columns=few)
def test_a_matrix_product_has_the_operations_that_pytorch_counts(
    lead: list[int], rows: int, inner: int, columns: int
) -> None:
    a = torch.empty(*lead, rows, inner, device="meta")
    b = torch.empty(*lead, inner, columns, device="meta")
    flops, y = flops_of_torch(torch.matmul, a, b)
    op = Op(name="m", kind=Kind.MATMUL, inputs=("p", "q"), output="y")
    assert counted(op, {"p": a, "q": b, "y": y}).flops == flops


@pytest.mark.parametrize("name", ["ResNet", "Bottleneck", "InvertedResidual", "Inception"])
def test_a_captured_model_has_the_operations_that_pytorch_counts(name: str) -> None:
    model = getattr(sm, name)().eval()
    work = work_of(capture(model, model.example_inputs).module, batch=5)
    with torch.no_grad():
        flops, _ = flops_of_torch(model, *model.inputs(5))
    assert work.flops == flops
    assert work.unknown == ()


class Attention(nn.Module):
    """What a transformer multiplies, and a recurrent layer."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, T, 16)`` to the same."""
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.out(F.scaled_dot_product_attention(q, k, v))


def test_attention_has_the_operations_that_pytorch_counts() -> None:
    model = Attention().eval()
    work = work_of(capture(model, (torch.zeros(2, 6, 16),)).module, batch=3)
    with torch.no_grad():
        flops, _ = flops_of_torch(model, torch.zeros(3, 6, 16))
    assert work.flops == flops
    (attention,) = (w for w in work.layers if w.operator.startswith("scaled"))
    assert attention.flops == 2 * 3 * 6 * 6 * (16 + 16)


def test_a_recurrent_layer_multiplies_each_weight_once_a_step() -> None:
    model = nn.LSTM(8, 16, num_layers=2, bidirectional=True, batch_first=True).eval()
    values = {"x": Value(name="x"), "y": Value(name="y")}
    sizes = {"x": Size((3, 5, 8)), "y": Size((3, 5, 32))}
    for name, weight in model.named_parameters():
        values[name] = Value(name=name, constant=True)
        sizes[name] = Size(tuple(weight.shape))
    names = tuple(name for name, _ in model.named_parameters())
    op = Op(name="lstm", kind=Kind.RECURRENT, inputs=("x", *names), output="y")
    work = count(Graph((op,), values, ("y",)), sizes, 3).layers[0]
    matrices = sum(w.numel() for w in model.parameters() if w.dim() == 2)
    assert work.macs == 3 * 5 * matrices


@pytest.mark.parametrize("batch", [1, 7])
def test_the_batch_may_differ_from_that_of_the_example(batch: int) -> None:
    model = sm.ResNet().eval()
    module = capture(model, model.example_inputs).module
    one, many = work_of(module, batch=1), work_of(module, batch=batch)
    assert many.flops == batch * one.flops
    assert sum(w.weights for w in many.layers) == sum(w.weights for w in one.layers)


def test_a_batch_of_nothing_is_refused() -> None:
    model = nn.Linear(2, 2)
    with pytest.raises(DataError, match="batch of 0"):
        work_of(capture(model, (torch.zeros(2, 2),)).module, batch=0)


def test_an_onnx_file_has_the_work_of_its_shapes_for_any_batch(tmp_path: Path) -> None:
    def stored(name: str, *shape: int) -> onnx.TensorProto:
        return onnx.numpy_helper.from_array(np.zeros(shape, np.float32), name)

    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node("Conv", ["x", "w"], ["c"], "a", pads=[1] * 4, group=2),
            onnx.helper.make_node("Relu", ["c"], ["r"], "n_r"),
            onnx.helper.make_node("GlobalAveragePool", ["r"], ["p"], "n_p"),
            onnx.helper.make_node("Flatten", ["p"], ["f"], "n_f"),
            onnx.helper.make_node("Gemm", ["f", "v", "b"], ["y"], "n_y", transB=1),
        ],
        "net",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 4, 8, 8])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["batch", 10])],
        [stored("w", 6, 2, 3, 3), stored("v", 10, 6), stored("b", 10)],
    )
    onnx.save(onnx.helper.make_model(graph), tmp_path / "net.onnx")
    work = work_of_onnx(tmp_path / "net.onnx", batch=5)
    assert work.unknown == ()
    by_operator = {layer.operator: layer for layer in work.layers}
    assert set(layers_of_nodes(tmp_path / "net.onnx").values()) >= set(work.by_name)
    assert set(by_operator) == {"Conv", "Relu", "GlobalAveragePool", "Gemm"}
    assert by_operator["Conv"].macs == 5 * 6 * 8 * 8 * (2 * 3 * 3)
    assert by_operator["Gemm"].macs == 5 * 10 * 6
    assert (by_operator["Gemm"].weights, by_operator["Gemm"].biases) == (60, 10)


def test_an_onnx_file_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_text("no model")
    with pytest.raises(ModelFileError, match="shapes cannot be told"):
        work_of_onnx(tmp_path / "model.onnx")
    with pytest.raises(ModelFileError, match="cannot be read"):
        work_of_onnx(tmp_path / "none.onnx")


def test_views_move_nothing_and_constants_are_folded() -> None:
    ops = (
        Op(name="t", kind=Kind.MOVE, inputs=("w",), output="wt", operator="t"),
        Op(name="v", kind=Kind.MOVE, inputs=("x",), output="xv", operator="view"),
        Op(name="m", kind=Kind.MATMUL, inputs=("xv", "wt"), output="y"),
    )
    values = {n: Value(name=n, constant=n in {"w", "wt"}) for n in ("x", "xv", "w", "wt", "y")}
    shapes = {"x": (8,), "xv": (2, 4), "w": (3, 4), "wt": (4, 3), "y": (2, 3)}
    found = count(Graph(ops, values, ("y",)), {n: Size(s) for n, s in shapes.items()}, 1)
    assert [layer.name for layer in found.layers] == ["m"]


def test_shapes_that_depend_on_data_are_told_and_not_guessed() -> None:
    op = Op(name="odd", kind=Kind.OTHER, inputs=("x",), output="y", operator="nonzero")
    values = {n: Value(name=n) for n in "xy"}
    found = count(Graph((op,), values, ("y",)), {"x": Size((4,))}, 1)
    assert (found.layers, found.unknown) == ((), ("odd",))


@quick
@given(
    read=st.integers(0, 99), weights=st.integers(0, 99), biases=st.integers(0, 99),
    written=st.integers(0, 99), other=st.integers(0, 99),
)  # fmt: skip
def test_fewer_bits_never_move_more_bytes(
    read: int, weights: int, biases: int, written: int, other: int
) -> None:
    work = LayerWork(
        name="a", kind=Kind.CONV, read=read, weights=weights, biases=biases, written=written,
        other=other,
    )  # fmt: skip
    by_width = sorted(
        (d for d in WIDTHS if d is not Dtype.FP64), key=lambda d: WIDTHS[d], reverse=True
    )
    moved = [work.bytes(dtype) for dtype in by_width if WIDTHS[dtype] != 2.0]
    assert moved == sorted(moved, reverse=True)
    assert work.bytes(Dtype.FP32) == 4 * (read + weights + biases + written) + other


def test_fusing_a_network_moves_fewer_bytes_and_computes_the_same() -> None:
    from quantkit.graph.aten import describe
    from quantkit.profiling.sizes import sizes_of

    model = sm.ResNet().eval()
    found = describe(capture(model, model.example_inputs).module)
    sizes = sizes_of(found, batch=2)
    whole, fused = count(found.graph, sizes, 2), count(fuse(found.graph), sizes, 2)
    assert fused.flops == whole.flops
    assert fused.bytes() < whole.bytes()
    # The second convolution of a block has the add and the ReLU behind it, and reads the shortcut.
    shape = (2, 16, 16, 16)
    assert fused.by_name["identity.conv2.0"].read == 2 * math.prod(shape)


def test_a_sum_of_no_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="one or more"):
        total([], "block")
