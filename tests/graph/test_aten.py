"""A captured graph as the rules read it: kinds, names, constants, shapes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from quantkit.graph.abstract import Graph, Kind
from quantkit.graph.aten import describe
from quantkit.graph.capture import capture


class Run(nn.Module):
    """A module that runs a function of its input."""

    def __init__(self, function: Callable[..., Any], **modules: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(self, *inputs)


def graph_of(function: Callable[..., Any], *shapes: tuple[int, ...], **modules: nn.Module) -> Graph:
    inputs = tuple(torch.randn(shape) for shape in shapes)
    return describe(capture(Run(function, **modules).eval(), inputs).module).graph


IMAGE = (2, 16, 8, 8)


@pytest.mark.parametrize(
    ("function", "kind"),
    [
        (lambda m, x: x + x, Kind.ADD),
        (lambda m, x: x.add_(x * 2), Kind.ADD),
        (lambda m, x: x + 1, Kind.POINTWISE),
        (lambda m, x: x * x, Kind.MUL),
        (lambda m, x: x / 2, Kind.MUL),
        (lambda m, x: x @ x, Kind.MATMUL),
        (lambda m, x: torch.cat([x, x * 2]), Kind.CONCAT),
        (lambda m, x: F.relu(x), Kind.RELU),
        (lambda m, x: F.relu_(x * 1), Kind.RELU),
        (lambda m, x: F.relu6(x), Kind.RELU),
        (lambda m, x: x.clamp(0, 1), Kind.RELU),
        (lambda m, x: F.gelu(x), Kind.POINTWISE),
        (lambda m, x: F.silu(x), Kind.POINTWISE),
        (lambda m, x: x.softmax(-1), Kind.SOFTMAX),
        (lambda m, x: F.layer_norm(x, [8]), Kind.NORM),
        (lambda m, x: F.max_pool2d(x, 2), Kind.MAX_POOL),
        (lambda m, x: F.avg_pool2d(x, 2), Kind.AVERAGE_POOL),
        (lambda m, x: F.adaptive_avg_pool2d(x, 1), Kind.AVERAGE_POOL),
        (lambda m, x: x.mean((2, 3)), Kind.AVERAGE_POOL),
        (lambda m, x: x.mean((-1, -2)), Kind.AVERAGE_POOL),
        (lambda m, x: x.mean(1), Kind.POINTWISE),
        (lambda m, x: x.mean(), Kind.POINTWISE),
        (lambda m, x: x.flatten(1), Kind.MOVE),
        (lambda m, x: x.transpose(1, 2), Kind.MOVE),
        (lambda m, x: x.permute(0, 2, 3, 1), Kind.MOVE),
        (lambda m, x: x[:, :1].expand(-1, 9, -1, -1), Kind.MOVE),
        (lambda m, x: x.repeat(1, 2, 1, 1), Kind.MOVE),
        (lambda m, x: F.dropout(x, 0.5, False), Kind.MOVE),
        (lambda m, x: F.pixel_shuffle(x, 2), Kind.MOVE),
        (lambda m, x: torch.roll(x, 1, 2), Kind.MOVE),
        (lambda m, x: x.to(torch.float32), Kind.MOVE),
        (lambda m, x: x.to(torch.float16), Kind.OTHER),
        (lambda m, x: x[:, :4], Kind.SLICE),
        (lambda m, x: x[:, 0], Kind.SLICE),
        (lambda m, x: x.chunk(2, 1)[1], Kind.SLICE),
        (lambda m, x: F.pad(x, (1, 1)), Kind.PAD),
        (lambda m, x: F.pad(x, (1, 1), value=1.0), Kind.OTHER),
        (lambda m, x: F.pad(x, (1, 1, 1, 1), mode="reflect"), Kind.OTHER),
        (lambda m, x: F.interpolate(x, scale_factor=2.0, mode="nearest"), Kind.UPSAMPLE),
        (lambda m, x: F.interpolate(x, scale_factor=2.0, mode="nearest-exact"), Kind.UPSAMPLE),
        (lambda m, x: F.interpolate(x, scale_factor=2.0, mode="bilinear"), Kind.RESIZE),
        (lambda m, x: torch.sort(x)[0], Kind.SLICE),
        (lambda m, x: torch.cumsum(x, 1), Kind.OTHER),
    ],
)  # fmt: skip
def test_each_operator_has_its_kind(function: Callable[..., Any], kind: Kind) -> None:
    graph = graph_of(function, IMAGE)
    assert graph.producer[graph.outputs[-1]].kind is kind


@pytest.mark.parametrize(
    ("layer", "shape", "kind", "axis", "groups", "kernel"),
    [
        (nn.Conv1d(16, 32, 3), (2, 16, 8), Kind.CONV, 0, 1, (3,)),
        (nn.Conv2d(16, 32, (1, 3), groups=4), IMAGE, Kind.CONV, 0, 4, (1, 3)),
        (nn.Conv2d(16, 32, 3, padding="same"), IMAGE, Kind.CONV, 0, 1, (3, 3)),
        (nn.Conv3d(16, 32, 3, groups=2), (2, 16, 8, 8, 8), Kind.CONV, 0, 2, (3, 3, 3)),
        (nn.ConvTranspose2d(16, 32, 2, 2, groups=8), IMAGE, Kind.CONV_TRANSPOSE, 1, 8, (2, 2)),
        (nn.Linear(8, 32), IMAGE, Kind.LINEAR, 0, 1, ()),
    ],
)
def test_a_layer_has_the_name_of_its_module_and_its_shape(
    layer: nn.Module, shape: tuple[int, ...], kind: Kind, axis: int, groups: int,
    kernel: tuple[int, ...],
) -> None:  # fmt: skip
    graph = graph_of(lambda m, x: m.layer(x), shape, layer=layer)
    (op,) = graph.ops
    assert (op.name, op.output, op.module) == ("layer", "layer", "layer")
    assert (op.kind, op.weight_axis, op.groups, op.kernel) == (kind, axis, groups, kernel)
    assert op.inputs == (graph.ops[0].inputs[0], "layer.weight", "layer.bias")
    assert graph.values["layer.weight"].constant
    assert graph.values[op.output].shape[0] is None


def test_a_matmul_knows_the_axis_of_its_columns() -> None:
    graph = graph_of(lambda m, x, y: x @ y, (2, 3, 4, 5), (2, 3, 5, 6))
    (op,) = graph.ops
    assert (op.name, op.weight_axis, op.operator) == ("matmul", 3, "matmul")


def test_a_layer_that_runs_twice_has_two_names_and_no_other_module_has_them() -> None:
    modules = {name: nn.Linear(8, 8) for name in ("fc", "fc_1", "other")}
    graph = graph_of(lambda m, x: m.fc_1(m.fc(m.fc(m.other(x)))), (2, 8), **modules)
    names = [op.name for op in graph.ops]
    assert len(set(names)) == 4
    assert names[:2] == ["other", "fc"]
    assert len({op.output for op in graph.ops}) == 4
    assert graph.ops[1].inputs[1] == graph.ops[2].inputs[1] == "fc.weight"


def test_operators_between_modules_are_named_by_module_and_operator() -> None:
    block = Run(lambda m, x: F.relu(m.fc(x)) + x, fc=nn.Linear(8, 8))
    graph = graph_of(lambda m, x: m.block(x) + m.block(x), (2, 8), block=block)
    assert [op.name for op in graph.ops] == [
        "block.fc", "block/relu", "block/add",
        "block.fc_1", "block/relu_1", "block/add_1", "add",
    ]  # fmt: skip


def test_a_product_of_a_tensor_with_itself_has_two_inputs() -> None:
    graph = graph_of(lambda m, x: x + x, (2, 8))
    (op,) = graph.ops
    assert len(op.inputs) == 2
    assert op.inputs[0] == op.inputs[1]
    assert len(graph.consumers[op.inputs[0]]) == 2


def test_a_weight_computed_from_parameters_is_constant() -> None:
    layer = nn.Linear(8, 8)
    graph = graph_of(lambda m, x: F.linear(x, m.layer.weight.t() * 2), (2, 8), layer=layer)
    op = graph.ops[-1]
    assert op.kind is Kind.LINEAR
    assert graph.values[op.inputs[1]].constant
    assert not graph.values[op.inputs[0]].constant


def test_integers_are_not_floating() -> None:
    model = Run(lambda m, x: m.table(x), table=nn.Embedding(10, 8)).eval()
    graph = describe(capture(model, (torch.zeros(2, 3, dtype=torch.long),)).module).graph
    (op,) = graph.ops
    assert op.kind is Kind.EMBEDDING
    assert [graph.values[name].floating for name in op.inputs] == [True, False]


@pytest.mark.parametrize(
    ("amounts", "spatial"),
    [((1, 1), True), ((1, 2, 3, 4), True), ((0, 0, 0, 0, 1, 1), False), ((-1, 0), False)],
)
def test_a_pad_of_space_is_told_from_a_pad_of_channels(
    amounts: tuple[int, ...], spatial: bool
) -> None:
    graph = graph_of(lambda m, x: F.pad(x, amounts), IMAGE)
    assert graph.ops[-1].spatial is spatial


def test_every_output_is_named() -> None:
    graph = graph_of(lambda m, x: {"a": x + 1, "b": (x * 2, x)}, (2, 8))
    assert [graph.producer[o].kind if o in graph.producer else None for o in graph.outputs] == [
        Kind.POINTWISE, Kind.MUL, None,
    ]  # fmt: skip


def test_every_part_of_the_description_leads_back_to_its_node() -> None:
    model = Run(lambda m, x: F.relu(m.fc(x)), fc=nn.Linear(8, 8)).eval()
    description = describe(capture(model, (torch.randn(2, 8),)).module)
    assert set(description.node_of_op) == {"fc", "relu"}
    assert set(description.node_of_value) == set(description.graph.values)
    assert description.node_of_op["fc"].target is torch.ops.aten.linear.default
