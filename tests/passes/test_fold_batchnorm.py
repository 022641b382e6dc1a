"""Batch-norm goes into the layer before it, wherever that is exact, and nowhere else."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, fx, nn

from quantkit.graph.capture import capture
from quantkit.passes.fold_batchnorm import FoldBatchNorm

aten = torch.ops.aten


def alive(model: nn.Module) -> nn.Module:
    """Statistics and weights as after training, one channel unlike the other."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_(generator=generator)
                module.running_var.uniform_(0.05, 4.0, generator=generator)
                if module.affine:
                    module.weight.uniform_(-1.5, 1.5, generator=generator)
                    module.bias.normal_(generator=generator)
    return model.eval()


def norms_left(module: fx.GraphModule) -> int:
    return sum(node.target is aten.batch_norm.default for node in module.graph.nodes)


def folded(model: nn.Module, x: Tensor) -> tuple[fx.GraphModule, int]:
    """The folded graph, compared with the model, and the pass's count."""
    module = copy.deepcopy(capture(model, (x,)).module)
    before = norms_left(module)
    count = FoldBatchNorm().apply(module)
    module.graph.lint()
    assert norms_left(module) == before - count
    expected = model(x)
    torch.testing.assert_close(
        module(x), expected, rtol=1e-5, atol=1e-5 * float(expected.detach().std())
    )
    return module, count


LAYERS: list[Any] = [
    (nn.Conv1d, {}, (3, 8, 9)),
    (nn.Conv2d, {}, (3, 8, 9, 7)),
    (nn.Conv3d, {}, (3, 8, 5, 6, 4)),
    (nn.Conv2d, {"groups": 2}, (3, 8, 9, 7)),
    (nn.Conv1d, {"groups": 4}, (3, 8, 9)),
    (nn.Conv2d, {"groups": 8}, (3, 8, 9, 7)),
    (nn.Conv2d, {"padding": 1, "stride": 2}, (3, 8, 9, 7)),
    (nn.Conv2d, {"padding": 1, "padding_mode": "reflect"}, (3, 8, 9, 7)),
    (nn.Conv1d, {"padding": "same"}, (3, 8, 9)),
    (nn.Conv2d, {"padding": "same", "dilation": 2}, (3, 8, 9, 7)),
    (nn.Conv3d, {"padding": "same"}, (3, 8, 5, 6, 4)),
    (nn.ConvTranspose1d, {}, (3, 8, 9)),
    (nn.ConvTranspose2d, {"stride": 2, "output_padding": 1}, (3, 8, 5, 6)),
    (nn.ConvTranspose3d, {}, (3, 8, 3, 4, 3)),
    (nn.ConvTranspose2d, {"groups": 2}, (3, 8, 5, 6)),
    (nn.ConvTranspose2d, {"groups": 8}, (3, 8, 5, 6)),
    (nn.ConvTranspose1d, {"groups": 4}, (3, 8, 9)),
]
NORM = {3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("layer", "settings", "shape"), LAYERS)
def test_batch_norm_folds_into_every_kind_of_convolution(
    layer: Any, settings: dict[str, Any], shape: tuple[int, ...], bias: bool, affine: bool
) -> None:
    outputs = 16
    conv = layer(8, outputs, 3, bias=bias, **settings)
    model = alive(nn.Sequential(conv, NORM[len(shape)](outputs, affine=affine), nn.ReLU()))
    module, count = folded(model, torch.randn(shape))
    assert count == 1
    assert set(dict(module.named_parameters())) == {"0.weight", "0.bias"}


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_batch_norm_folds_into_a_linear_layer_over_rows(bias: bool, affine: bool) -> None:
    model = alive(nn.Sequential(nn.Linear(8, 16, bias=bias), nn.BatchNorm1d(16, affine=affine)))
    assert folded(model, torch.randn(5, 8))[1] == 1


def test_batch_norm_does_not_fold_into_a_linear_layer_over_positions() -> None:
    # Here it counts positions on dimension 1; there are as many as channels, to deceive.
    model = alive(nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16)))
    assert folded(model, torch.randn(5, 16, 8))[1] == 0


def test_the_folded_values_are_those_of_the_formula() -> None:
    model = alive(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, eps=0.1)))
    conv, norm = model
    module, _ = folded(model, torch.randn(2, 3, 4, 4))
    factor = norm.weight / torch.sqrt(norm.running_var + 0.1)
    expected = (conv.bias - norm.running_mean) * factor + norm.bias
    torch.testing.assert_close(module.get_parameter("0.bias"), nn.Parameter(expected))
    expected = conv.weight * factor.view(-1, 1, 1, 1)
    torch.testing.assert_close(module.get_parameter("0.weight"), nn.Parameter(expected))


def test_batch_norms_in_a_row_all_fold() -> None:
    model = alive(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.BatchNorm2d(8)))
    assert folded(model, torch.randn(2, 3, 6, 6))[1] == 2


def test_the_models_own_parameters_and_statistics_stay_as_they_are() -> None:
    model = alive(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)))
    before = copy.deepcopy(model.state_dict())
    folded(model, torch.randn(2, 3, 6, 6))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_frozen_weight_stays_frozen() -> None:
    model = alive(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)))
    model[0].weight.requires_grad_(False)
    module, _ = folded(model, torch.randn(2, 3, 6, 6))
    assert not module.get_parameter("0.weight").requires_grad
    assert module.get_parameter("0.bias").requires_grad


class Net(nn.Module):
    """Two convolutions and two batch-norms, wired as each test says."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.norm, self.other = nn.BatchNorm2d(4), nn.BatchNorm2d(4)


class TwoReaders(Net):
    def forward(self, x: Tensor) -> Any:
        y = self.one(x)
        return self.norm(y) + y


class AlsoOutput(Net):
    def forward(self, x: Tensor) -> Any:
        y = self.one(x)
        return torch.stack([y, self.norm(y)])


class Twice(Net):
    """One convolution that runs twice, before a batch-norm each."""

    def forward(self, x: Tensor) -> Any:
        return self.other(self.one(self.norm(self.one(x))))


class Tied(Net):
    """Two convolutions with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Any:
        return self.norm(self.one(x)) + self.two(x)


class Between(Net):
    def forward(self, x: Tensor) -> Any:
        return self.norm(F.relu(self.one(x)))


class First(Net):
    def forward(self, x: Tensor) -> Any:
        return self.one(self.norm(x))


class ComputedWeight(Net):
    def forward(self, x: Tensor) -> Any:
        return self.norm(F.conv2d(x, self.one.weight * 2, self.one.bias))


class ComputedBias(Net):
    def forward(self, x: Tensor) -> Any:
        return self.norm(F.conv2d(x, self.one.weight, self.one.bias * 2))


class BatchStatistics(Net):
    def __init__(self) -> None:
        super().__init__()
        self.own = nn.BatchNorm2d(4, track_running_stats=False)

    def forward(self, x: Tensor) -> Any:
        return self.own(self.one(x))


@pytest.mark.parametrize(
    "kind",
    [
        TwoReaders, AlsoOutput, Twice, Tied, Between, First, ComputedWeight, ComputedBias,
        BatchStatistics,
    ],
)  # fmt: skip
def test_what_cannot_be_folded_exactly_stays(kind: type[Net]) -> None:
    model = kind()
    own = getattr(model, "own", None)
    if own is not None:
        del model.own
    alive(model)
    if own is not None:
        model.own = own.eval()
    assert folded(model, torch.randn(3, 4, 5, 5))[1] == 0


class SharedBias(Net):
    """A bias that two convolutions read."""

    def forward(self, x: Tensor) -> Any:
        return self.norm(self.one(x)) + F.conv2d(x, self.two.weight, self.one.bias)


class BiasForAnother(Net):
    """A module whose bias is not its convolution's."""

    def forward(self, x: Tensor) -> Any:
        y = self.norm(F.conv2d(x, self.one.weight))
        return y + self.one.bias.view(1, -1, 1, 1)


@pytest.mark.parametrize("kind", [SharedBias, BiasForAnother])
def test_a_bias_that_another_operator_reads_keeps_its_value(kind: type[Net]) -> None:
    model = alive(kind())
    bias = model.one.bias.detach().clone()
    module, count = folded(model, torch.randn(3, 4, 5, 5))
    assert count == 1
    assert torch.equal(module.get_parameter("one.bias"), bias)


def test_half_precision_is_folded_in_double() -> None:
    model = alive(nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)))
    module = copy.deepcopy(capture(model.half(), (torch.randn(2, 8, 4, 4).half(),)).module)
    weight = model[0].weight.double()
    assert FoldBatchNorm().apply(module) == 1
    norm = model[1]
    factor = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
    expected = (weight * factor.view(-1, 1, 1, 1)).half()
    assert torch.equal(module.get_parameter("0.weight"), expected)
