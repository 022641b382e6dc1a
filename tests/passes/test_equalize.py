"""Channels between two layers get one range, and the network stays what it was."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

import small_models
from quantkit.graph.batchnorm import NORMAL
from quantkit.graph.capture import capture
from quantkit.graph.functionalize import functionalize
from quantkit.model import copied
from quantkit.onnx.export import to_ir
from quantkit.passes import _equalization as maths
from quantkit.passes._links import links_of
from quantkit.passes.equalize import Equalize
from quantkit.passes.fold_batchnorm import FoldBatchNorm
from quantkit.recipe import Recipe
from quantkit.workflow import prepare, quantize, resolve_recipe

aten = torch.ops.aten


def captured(model: nn.Module, *inputs: Tensor) -> fx.GraphModule:
    module = copy.deepcopy(capture(model.eval(), inputs).module)
    functionalize(module)
    FoldBatchNorm().apply(module)
    return module


def uneven(model: nn.Module) -> nn.Module:
    """Weights whose channels differ by orders of magnitude."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            spread = torch.empty(p.shape[0], *[1] * (p.dim() - 1))
            p *= spread.uniform_(-3, 3, generator=generator).exp2()
    return model


def equalized(model: nn.Module, x: Tensor, **choice: Any) -> tuple[fx.GraphModule, int]:
    """The equalized graph, compared with the model, and the pass's count."""
    module = captured(uneven(model), x)
    count = Equalize(**choice).apply(module)
    module.graph.lint()
    with torch.no_grad():
        expected, found = model(x), module(x)
    assert (found - expected).norm() <= 1e-5 * expected.norm()
    return module, count


def ranges(module: fx.GraphModule) -> list[tuple[Tensor, Tensor]]:
    """Of each link, the largest weights that make a channel, and those that read it."""
    found = []
    state = dict(module.named_parameters())
    for link in links_of(module):
        reader = link.readers[0]
        first = state[str(link.first.args[1].target)]  # type: ignore[union-attr]
        second = state[str(reader.node.args[1].target)]  # type: ignore[union-attr]
        groups = first.shape[0] // second.shape[1] if second.dim() > 2 else 1
        rows = maths.row_ranges(maths.strongest(first))
        found.append((rows, maths.column_ranges(maths.strongest(second, groups), reader.repeat)))
    return found


class Triple(nn.Module):
    """Expand, depthwise, project."""

    def __init__(self, act: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.expand, self.spatial = nn.Conv2d(8, 24, 1), nn.Conv2d(24, 24, 3, 1, 1, groups=24)
        self.project, self.act = nn.Conv2d(24, 8, 1), act

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.project(self.act(self.spatial(self.act(self.expand(x)))))
        return out


IMAGE = torch.randn(2, 8, 8, 8, generator=torch.Generator().manual_seed(0)) * 4


@pytest.mark.parametrize("act", [F.relu, F.relu6, nn.Identity(), F.leaky_relu, nn.ReLU6()])
def test_a_triple_of_layers_gets_equal_ranges_and_the_same_result(act: Any) -> None:
    module, count = equalized(Triple(act), IMAGE, criterion="weights")
    assert count == 2
    for rows, columns in ranges(module):
        torch.testing.assert_close(rows, columns, rtol=1e-3, atol=0)
    assert Equalize(criterion="weights").apply(module) == 0


def test_the_limits_of_relu6_are_clips_of_their_own_for_each_channel() -> None:
    model = Triple(F.relu6)
    module, _ = equalized(model, IMAGE)
    clips = [n for n in module.graph.nodes if n.target is aten.clamp.Tensor]
    assert len(clips) == 2
    assert not any(n.target is aten.relu6.default for n in module.graph.nodes)
    limits = [b for name, b in module.named_buffers() if "output_limit" in name]
    assert [tuple(b.shape) for b in limits] == [(24, 1, 1), (24, 1, 1)]
    assert all(len(b.unique()) > 12 for b in limits)
    # The limits matter: without them the result is another.
    with torch.no_grad():
        expected, found = model(IMAGE), module(IMAGE)
        for limit in limits:
            limit.fill_(torch.inf)
        assert (module(IMAGE) - expected).norm() > 10 * (found - expected).norm()


class Flattening(nn.Module):
    """A pooled convolution that a linear layer reads, two elements a channel."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(8, 16, 3), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv(x)), (3, 6))
        out: Tensor = self.fc(x.flatten(1))
        return out


class Branching(nn.Module):
    """One tensor that two convolutions read, one of them behind a pool."""

    def __init__(self, *, added: bool) -> None:
        super().__init__()
        self.stem, self.one = nn.Conv2d(8, 16, 3), nn.Conv2d(16, 16, 1)
        self.two, self.added = nn.Conv2d(16, 16, 1, groups=2), added

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        y: Tensor = self.one(x) + self.two(F.avg_pool2d(x, 3, 1, 1))
        return y + x if self.added else y


def test_channels_that_are_laid_flat_are_followed_into_a_linear_layer() -> None:
    module, count = equalized(Flattening(), IMAGE, criterion="weights")
    assert count == 1
    ((rows, columns),) = ranges(module)
    torch.testing.assert_close(rows, columns, rtol=1e-3, atol=0)


def test_several_readers_are_scaled_together_and_an_add_among_them_bars_it() -> None:
    assert equalized(Branching(added=False), IMAGE)[1] == 1
    assert equalized(Branching(added=True), IMAGE)[1] == 0


def test_layers_that_share_a_weight_stay_as_they_are() -> None:
    shared = nn.Linear(16, 16)
    assert equalized(nn.Sequential(shared, nn.ReLU(), shared), torch.randn(3, 16))[1] == 0
    assert (
        equalized(nn.Sequential(nn.Linear(16, 16), nn.GELU(), shared), torch.randn(3, 16))[1] == 0
    )


def test_dead_channels_and_the_bound_are_kept() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 4))
    with torch.no_grad():
        model[0].weight[0] = 0.0
        model[2].weight[:, 1] = 0.0
        model[0].weight[2] = 1e9
    before = copy.deepcopy(model)
    module = captured(model, torch.ones(2, 4))
    Equalize(bound=10.0).apply(module)
    state = dict(module.named_parameters())
    torch.testing.assert_close(state["0.weight"][:2], before[0].weight[:2])
    torch.testing.assert_close(state["0.weight"][2], before[0].weight[2] / 10)


def recipe_with(name: str, *passes: str) -> Recipe:
    choice = resolve_recipe(name).model_dump() | {"passes": passes, "calibrator": "minmax"}
    return Recipe.model_validate(choice)


def test_what_batch_norm_had_learned_is_scaled_with_its_layer_and_survives() -> None:
    model = small_models.inverted_residual()
    recipe = recipe_with("int8_ptq", "fold_batchnorm", "equalize")
    qmodel = prepare(model, recipe, example_inputs=model.inputs(4))
    folded = {n.name: n.meta[NORMAL] for n in captured(model, *model.inputs(4)).graph.nodes
              if NORMAL in n.meta}  # fmt: skip
    moved = 0
    for layer in copied(qmodel).layers():
        if layer.node.name not in folded:
            continue
        old, new = folded[layer.node.name], layer.node.meta[NORMAL]
        # Mean and deviation are divided by the same scale.
        torch.testing.assert_close(new.mean / new.std, old.mean / old.std)
        moved += not torch.equal(new.std, old.std)
    assert (len(folded), moved) == (7, 5)


@pytest.mark.parametrize("name", ["int8_ptq", "int8_cpu"])
def test_the_plan_is_that_of_the_model_before_and_limits_go_into_integers(name: str) -> None:
    model = small_models.inverted_residual()
    (x,) = model.inputs(8)
    before = prepare(model, recipe_with(name, "fold_batchnorm"), example_inputs=(x,))
    after = quantize(model, recipe_with(name, "fold_batchnorm", "equalize"), calibration=[x])
    edges = [
        {frozenset((e.op, e.index) for e in tensor.edges) for tensor in plan.tensors}
        for plan in (before.plan, after.plan)
    ]
    assert edges[0] == edges[1]
    assert before.plan.quantized == after.plan.quantized
    graph = to_ir(after, form=after.recipe.target).graph
    behind = {node.inputs[0].producer().op_type for node in graph if node.op_type == "Min"}  # type: ignore[union-attr]
    # TensorRT fuses them into the convolution; ONNX Runtime has an integer Min behind Q.
    assert behind == ({"Relu"} if after.recipe.target == "tensorrt" else {"QuantizeLinear"})


magnitudes = st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=8)


@given(magnitudes, magnitudes)
@settings(max_examples=60, deadline=None)
def test_scales_make_both_ranges_equal(first: list[float], second: list[float]) -> None:
    n = min(len(first), len(second))
    r1 = torch.tensor(first[:n], dtype=torch.float64)
    r2 = torch.tensor(second[:n], dtype=torch.float64)
    s = maths.equalizing_scale(r1, r2)
    torch.testing.assert_close(r1 / s, r2 * s)
    torch.testing.assert_close(r1 / s, (r1 * r2).sqrt())


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.integers(1, 3))
@settings(max_examples=30, deadline=None)
def test_what_a_layer_makes_of_a_constant_is_its_own_result(
    groups: int, rows: int, inputs: int, taps: int
) -> None:
    generator = torch.Generator().manual_seed(groups + 7 * rows + 31 * inputs + taps)
    w = torch.randn(groups * rows, inputs, taps, taps, generator=generator, dtype=torch.float64)
    c = torch.randn(groups * inputs, generator=generator, dtype=torch.float64)
    image = c.view(1, -1, 1, 1).expand(1, -1, taps, taps)
    expected = F.conv2d(image, w, groups=groups).flatten()
    torch.testing.assert_close(maths.read_constant(w, c, groups), expected)
