"""Pieces of transformers with a few large channels, for the passes that move scale."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, fx, nn

from quantkit.graph.attention import split_attention
from quantkit.graph.capture import capture
from quantkit.graph.functionalize import functionalize

WIDTH = 32


def uneven(size: int = WIDTH) -> Tensor:
    """Magnitudes of channels: two are thirty times as large as the others."""
    scale = torch.ones(size)
    scale[[3, 17]] = 30.0
    return scale


class PostNorm(nn.Module):
    """A BERT's feed-forward block: a residual reads the norm's result too."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.norm.weight.data = uneven()
        self.up, self.down = nn.Linear(WIDTH, 64), nn.Linear(64, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, T, WIDTH)`` to the same."""
        y = self.norm(x)
        out: Tensor = y + self.down(F.gelu(self.up(y)))
        return out


class RMSNorm(nn.Module):
    """As transformers writes it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(uneven())

    def forward(self, x: Tensor) -> Tensor:
        """Of the same shape."""
        y = x.to(torch.float32)
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.weight * y.to(x.dtype)


class Gated(nn.Module):
    """A Llama's feed-forward block."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm
        self.gate, self.up = nn.Linear(WIDTH, 64, bias=False), nn.Linear(WIDTH, 64, bias=False)
        self.up.weight.data *= uneven(64)[:, None]
        self.down = nn.Linear(64, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, T, WIDTH)`` to the same."""
        y = self.norm(x)
        out: Tensor = x + self.down(F.silu(self.gate(y)) * self.up(y))
        return out


def rms_gated() -> Gated:
    """With a norm of plain operators."""
    return Gated(RMSNorm())


def fused_gated() -> Gated:
    """With PyTorch's own norm."""
    norm = nn.RMSNorm(WIDTH)
    norm.weight.data = uneven()
    return Gated(norm)


class Attention(nn.Module):
    """Two heads of values for four of queries, repeated as Llama does."""

    def __init__(self, groups: int = 2) -> None:
        super().__init__()
        self.groups = groups
        self.query, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.key, self.value = nn.Linear(WIDTH, 8 * groups), nn.Linear(WIDTH, 8 * groups)
        self.value.weight.data *= uneven()[: 8 * groups, None]

    def forward(self, x: Tensor) -> Tensor:
        """``(N, T, WIDTH)`` to the same."""
        q = self.query(x).unflatten(-1, (4, 8)).transpose(1, 2)
        k, v = (
            layer(x).unflatten(-1, (self.groups, 8)).transpose(1, 2)[:, :, None]
            .expand(-1, -1, 4 // self.groups, -1, -1).flatten(1, 2)
            for layer in (self.key, self.value)
        )  # fmt: skip
        out: Tensor = self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return out


class Chain(nn.Module):
    """Linear, ReLU, linear."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, 64), nn.Linear(64, WIDTH)
        self.first.weight.data *= uneven(64)[:, None]

    def forward(self, x: Tensor) -> Tensor:
        """``(N, T, WIDTH)`` to the same."""
        out: Tensor = self.second(F.relu(self.first(x)))
        return out


def seeded(make: type[nn.Module] | object) -> nn.Module:
    """The same on every call, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make()  # type: ignore[operator]
    assert isinstance(model, nn.Module)
    return model.eval()


def data(count: int = 3) -> list[Tensor]:
    """Batches of 8 samples."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(8, 12, WIDTH, generator=generator) for _ in range(count)]


def graph_of(model: nn.Module) -> fx.GraphModule:
    """As the workflow gives it to a pass."""
    module = copy.deepcopy(capture(model, (data(1)[0],)).module)
    functionalize(module)
    split_attention(module)
    return module


def products(module: fx.GraphModule) -> list[fx.Node]:
    """The products with a scale that a pass has written."""
    return [
        node for node in module.graph.nodes
        if node.target is torch.ops.aten.mul.Tensor
        and any("input_scale" in str(getattr(a, "target", "")) for a in node.args)
    ]  # fmt: skip


def changed(module: fx.GraphModule, model: nn.Module) -> set[str]:
    """The parameters of a model that a pass has changed."""
    own = dict(model.named_parameters())
    return {n for n, p in module.named_parameters() if n in own and not torch.equal(p, own[n])}


def same(module: fx.GraphModule, model: nn.Module, batches: Sequence[Tensor]) -> bool:
    """Whether both compute the same, to float error."""
    with torch.no_grad():
        pairs = [(module(x), model(x)) for x in batches]
    return all(float((a - b).norm() / b.norm()) < 1e-5 for a, b in pairs)
