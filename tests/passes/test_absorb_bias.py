"""What a channel always has moves on to the next layer, exactly on the data that were seen."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, fx, nn

from quantkit.batches import Call
from quantkit.graph.batchnorm import NORMAL
from quantkit.graph.capture import capture
from quantkit.passes.absorb_bias import AbsorbBias
from quantkit.passes.equalize import Equalize
from quantkit.passes.fold_batchnorm import FoldBatchNorm
from quantkit.workflow import resolve_recipe

RECIPE = resolve_recipe("int8_ptq")


class High(nn.Module):
    """Two convolutions; the first has a batch-norm whose means are far above zero."""

    def __init__(self, *, six: bool = False, padding: int = 0, pooled: bool = False) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(4, 16, 1), nn.BatchNorm2d(16)
        self.second = nn.Conv2d(16, 8, 3, padding=padding)
        self.clip, self.pooled = F.relu6 if six else F.relu, pooled
        with torch.no_grad():
            assert self.norm.running_mean is not None
            self.norm.bias.copy_(torch.linspace(-1.0, 9.0, 16))
            self.norm.weight.fill_(0.5)
            self.norm.train()
            self.norm.momentum = 1.0
            self.norm(self.first(IMAGES))
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        x = self.clip(self.norm(self.first(x)))
        out: Tensor = self.second(F.avg_pool2d(x, 3, 1, 1) if self.pooled else x)
        return out


IMAGES = torch.randn(32, 4, 8, 8, generator=torch.Generator().manual_seed(0))
CALLS: list[Call] = [((IMAGES[i : i + 8],), {}) for i in (0, 8)]


def absorbed(model: nn.Module, *, equalize: bool = False) -> tuple[fx.GraphModule, int]:
    module = copy.deepcopy(capture(model, (IMAGES[:2],)).module)
    FoldBatchNorm().apply(module)
    if equalize:
        assert Equalize().apply(module) == 1
    count = AbsorbBias().apply(module, RECIPE, CALLS)
    module.graph.lint()
    return module, count


def between(module: fx.GraphModule) -> fx.Node:
    """What the second convolution reads."""
    layers = [n for n in module.graph.nodes if "conv2d" in str(n.target)]
    node = layers[1].args[0]
    assert isinstance(node, fx.Node)
    return node


class Value(fx.Interpreter):
    """The value of one node."""

    def of(self, node: fx.Node, x: Tensor) -> Tensor:
        self.wanted: Tensor | None = None
        self.node = node
        self.run(x, enable_io_processing=False)
        assert self.wanted is not None
        return self.wanted

    def run_node(self, n: fx.Node) -> Tensor:
        value: Tensor = super().run_node(n)
        if n is self.node:
            self.wanted = value
        return value


@pytest.mark.parametrize("six", [False, True])
@pytest.mark.parametrize("equalize", [False, True])
@torch.no_grad()
def test_the_result_on_the_data_is_the_same_and_the_range_between_is_less(
    six: bool, equalize: bool
) -> None:
    model = High(six=six)
    module, count = absorbed(model, equalize=equalize)
    assert count == 1
    for args, _ in CALLS:
        expected, found = model(*args), module(*args)
        assert (found - expected).norm() <= 1e-5 * expected.norm()
    before = copy.deepcopy(capture(model, (IMAGES[:2],)).module)
    FoldBatchNorm().apply(before)
    if equalize:
        Equalize().apply(before)
    highest = [Value(m).of(between(m), IMAGES[:8]).amax() for m in (before, module)]
    assert highest[1] < 0.9 * highest[0]


@torch.no_grad()
def test_no_more_is_moved_than_the_data_and_three_deviations_allow() -> None:
    model = High()
    module, _ = absorbed(model)
    plain = copy.deepcopy(capture(model, (IMAGES[:2],)).module)
    FoldBatchNorm().apply(plain)
    old = dict(plain.named_parameters())["first.bias"]
    c = old - dict(module.named_parameters())["first.bias"]
    least = torch.cat([model.norm(model.first(args[0])) for args, _ in CALLS]).amin((0, 2, 3))
    assert bool((c <= least.clamp(min=0) + 1e-5).all())
    assert bool((c <= (model.norm.bias - 1.5).clamp(min=0) + 1e-5).all())
    assert int((c > 0).sum()) > 8
    (node,) = [n for n in module.graph.nodes if NORMAL in n.meta]
    torch.testing.assert_close(node.meta[NORMAL].mean, model.norm.bias - c, atol=1e-5, rtol=0)


def test_zero_padding_between_bars_it() -> None:
    assert absorbed(High(padding=1))[1] == 0
    assert absorbed(High(pooled=True))[1] == 0


def test_without_batch_norm_nothing_is_known_and_nothing_moves() -> None:
    module = copy.deepcopy(capture(High(), (IMAGES[:2],)).module)
    assert AbsorbBias().apply(module, RECIPE, CALLS) == 0
