"""Which grids serve a model best: estimates against the truth, and a choice that is never worse."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from quantkit import judging, numerics
from quantkit.batches import Call
from quantkit.errors import DataError
from quantkit.fake_quantize import FakeQuantize
from quantkit.judging import Grids, judge
from quantkit.model import QuantizedModel
from quantkit.model_calibration import activations, calibrate, first_calls
from quantkit.numerics import QParams
from quantkit.recipe import PlacementChoice
from quantkit.workflow import prepare, resolve_recipe

pytestmark = pytest.mark.usefixtures("one_thread")

OUTPUTS = 24


class Chain(nn.Module):
    """Layers that amplify what comes before them differently."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(32, 32) for _ in range(4))
        self.last = nn.Linear(32, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        for gain, layer in zip((1.0, 4.0, 0.3, 2.0), self.layers, strict=True):
            x = torch.nn.functional.gelu(layer(x)) * gain + 0.5 * x
        y: Tensor = self.last(x)
        return y


class Several(nn.Module):
    """An output that no quantizer reaches, one of integers, and two of floats in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(32, 32), nn.Linear(32, 32)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        y = self.a(x)
        return x * 2.0, y.argmax(-1), {"y": y, "z": self.b(torch.relu(y))}


class Masked(nn.Module):
    """Logits of which some are minus infinity, as those of classes that are ruled out."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(32, 32), nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(torch.relu(self.a(x)))
        return y.masked_fill(torch.arange(16) > 8, -torch.inf)


class Shared(nn.Module):
    """A concatenation, whose parts share a grid where the recipe says so."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(16, 16, 3), nn.Conv2d(16, 16, 3)
        self.c = nn.Conv2d(32, 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.cat([torch.relu(self.a(x)), torch.relu(self.b(x))], dim=1)
        y: Tensor = self.c(both)
        return y


def made(net: nn.Module, x: Tensor, **placement: str) -> tuple[QuantizedModel, list[Call]]:
    """A calibrated model, and the calls that judge it."""
    choice = PlacementChoice(small=True, **placement)  # type: ignore[arg-type]
    recipe = resolve_recipe("int8_ptq").model_copy(update={"placement": choice})
    model = prepare(net.eval(), recipe, example_inputs=(x,))
    calibrate(model, [x])
    return model, first_calls(model, [x], len(x))[0]


@pytest.fixture
def chain() -> tuple[QuantizedModel, list[Call]]:
    torch.manual_seed(0)
    return made(Chain(), torch.randn(512, 32))


def scaled(model: QuantizedModel, factors: Sequence[float]) -> list[QParams]:
    """The model's grids, each wider or narrower."""
    return [
        QParams(scale=q.scale * factor, zero_point=q.zero_point.clone(), spec=q.spec)
        for q, factor in zip(activations(model), factors, strict=True)
    ]


def alone(model: QuantizedModel, index: int, grid: QParams, calls: Sequence[Call]) -> float:
    """The noise at the outputs, over their power, with one tensor on a grid and all else float."""
    wanted = [model_outputs(model, call, None) for call in calls]
    got = [model_outputs(model, call, (index, grid)) for call in calls]
    noise = sum(float((a - b).double().square().sum()) for a, b in zip(wanted, got, strict=True))
    return noise / sum(float(a.double().square().sum()) for a in wanted)


def model_outputs(
    model: QuantizedModel, call: Call, quantized: tuple[int, QParams] | None
) -> Tensor:
    model.simulate(False)
    handles = []
    if quantized is not None:
        index, grid = quantized

        def hook(module: FakeQuantize, args: object, output: Tensor) -> Tensor:
            return numerics.fake_quantize(output, grid)

        handles.append(activations(model)[index].register_forward_hook(hook))
    with torch.no_grad():
        y: Tensor = model(*call[0], **call[1])
    for handle in handles:
        handle.remove()
    return y


def test_estimated_effects_are_those_of_quantizing_one_tensor_alone(
    chain: tuple[QuantizedModel, list[Call]],
) -> None:
    model, calls = chain
    quantizers = activations(model)
    factors = (1.0, 3.0, 8.0)  # the first clips a few values of a few samples
    candidates = [scaled(model, [factor] * len(quantizers)) for factor in factors]
    estimated = judging._effects(model, quantizers, calls, candidates).mean(dim=2) / OUTPUTS
    true = torch.tensor(
        [[alone(model, i, c[i], calls) for c in candidates] for i in range(len(quantizers))]
    )
    # To first order, and from two probes a sample: within a factor of 1.5. What few samples
    # suffer, few probes see: within a factor of 3.
    ratio = estimated.float() / true
    bound = torch.tensor([3.0, 1.5, 1.5])
    assert bool(((ratio > 1 / bound) & (ratio < bound)).all()), ratio
    # The order of all is that of the truth, where two differ by more than that factor.
    a, b = estimated.flatten().float(), true.flatten()
    clear = b.unsqueeze(0) > 4.5 * b.unsqueeze(1)
    assert bool(clear.any())
    assert bool((a.unsqueeze(0) > a.unsqueeze(1))[clear].all())
    correlation = torch.corrcoef(torch.stack([a.log(), b.log()]))[0, 1]
    assert correlation > 0.95


def test_probes_are_drawn_alike_each_time(chain: tuple[QuantizedModel, list[Call]]) -> None:
    model, calls = chain
    candidates = [scaled(model, [1.0] * 5), scaled(model, [2.0] * 5)]
    assert judge(model, calls, candidates) == judge(model, calls, candidates)


def sqnr_of(chosen: Grids, model: QuantizedModel, calls: Sequence[Call]) -> float:
    """The signal to noise at the outputs with these grids, measured anew."""
    for quantizer, grid in zip(activations(model), chosen, strict=True):
        quantizer.set_qparams(grid)
    power = noise = 0.0
    for args, kwargs in calls:
        with torch.no_grad():
            model.simulate(False)
            wanted = model(*args, **kwargs)
            model.simulate()
            error = model(*args, **kwargs) - wanted
        power += float(wanted.double().square().sum())
        noise += float(error.double().square().sum())
    return 10 * math.log10(power / noise)


@pytest.mark.parametrize("seed", range(6))
def test_the_choice_is_never_worse_than_any_candidate_on_its_samples(seed: int) -> None:
    torch.manual_seed(seed)
    model, calls = made(Chain(), torch.randn(32, 32))
    sets = [scaled(model, (torch.rand(5) * 3 + 0.2).tolist()) for _ in range(4)]
    verdict = judge(model, calls, sets)
    assert verdict.chosen_sqnr >= max(verdict.sqnr)
    chosen = [sets[number][index] for index, number in enumerate(verdict.chosen)]
    assert verdict.chosen_sqnr == pytest.approx(sqnr_of(chosen, model, calls), abs=1e-6)


def test_each_tensor_gets_the_candidate_that_is_good_for_it(
    chain: tuple[QuantizedModel, list[Call]],
) -> None:
    model, calls = chain
    sets = [scaled(model, [20.0 if i == bad else 1.0 for i in range(5)]) for bad in range(5)]
    verdict = judge(model, calls, sets)
    assert all(number != index for index, number in enumerate(verdict.chosen))
    assert verdict.chosen_sqnr > max(verdict.sqnr)


def test_of_equal_candidates_there_is_nothing_to_choose(
    chain: tuple[QuantizedModel, list[Call]],
) -> None:
    model, calls = chain
    verdict = judge(model, calls, [scaled(model, [1.0] * 5)] * 3)
    assert verdict.chosen == (0,) * 5
    assert verdict.sqnr == (verdict.chosen_sqnr,) * 3


def test_grids_mode_and_switches_are_as_before(chain: tuple[QuantizedModel, list[Call]]) -> None:
    model, calls = chain
    model.train()
    first = activations(model)[0]
    first.quantize_values(False)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    judge(model, calls, [scaled(model, [2.0] * 5), scaled(model, [0.5] * 5)])
    assert model.training
    assert not first.quantizing
    after = model.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    assert all(p.grad is None for p in model.parameters())


def test_they_are_as_before_also_where_judging_fails(
    chain: tuple[QuantizedModel, list[Call]],
) -> None:
    model, calls = chain
    before = {key: value.clone() for key, value in model.state_dict().items()}
    wrong = [((calls[0][0][0][:, :5],), {})]
    with pytest.raises(Exception, match="shape"):
        judge(model, wrong, [scaled(model, [2.0] * 5)])
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in before.items())


@pytest.mark.parametrize("trainable", [True, False])
def test_outputs_of_any_kind_are_judged(trainable: bool) -> None:
    torch.manual_seed(0)
    net = Several().requires_grad_(trainable)
    model, calls = made(net, torch.randn(16, 32))
    count = len(activations(model))
    verdict = judge(model, calls, [scaled(model, [4.0] * count), scaled(model, [1.0] * count)])
    assert verdict.chosen == (1,) * count
    assert verdict.sqnr[1] > verdict.sqnr[0] + 2.0


def test_outputs_that_are_infinite_by_design_are_left_out_of_the_judgement() -> None:
    torch.manual_seed(0)
    model, calls = made(Masked(), torch.randn(64, 32))
    count = len(activations(model))
    verdict = judge(model, calls, [scaled(model, [8.0] * count), scaled(model, [1.0] * count)])
    assert all(map(math.isfinite, verdict.sqnr))
    assert verdict.sqnr[1] > verdict.sqnr[0] + 6
    assert verdict.chosen == (1,) * count


def test_a_candidate_that_makes_outputs_infinite_is_the_worst() -> None:
    torch.manual_seed(0)
    model, calls = made(Masked(), torch.randn(64, 32))
    model.graph.register_forward_hook(
        lambda module, args, y: y / (activations(model)[0].scale < 1e6).float()
    )
    count = len(activations(model))
    verdict = judge(model, calls, [scaled(model, [1e9] * count), scaled(model, [1.0] * count)])
    assert verdict.sqnr[0] == -math.inf
    assert verdict.chosen == (1,) * count


def test_a_probe_counts_outputs_alike_also_where_their_squares_overflow() -> None:
    y = torch.full((4, 8), 1000.0, dtype=torch.float16)
    probe = judging._probe(y, torch.Generator().manual_seed(0))
    assert probe.dtype == torch.float16
    torch.testing.assert_close(probe.abs().float(), torch.full((4, 8), 1e-3), rtol=1e-3, atol=0)


def test_a_model_whose_outputs_no_quantizer_reaches_has_no_noise() -> None:
    class Aside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(32, 32)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x + 1.0, self.a(x).argmax(-1)

    model, calls = made(Aside(), torch.randn(16, 32))
    count = len(activations(model))
    verdict = judge(model, calls, [scaled(model, [4.0] * count), scaled(model, [1.0] * count)])
    assert verdict.sqnr == (math.inf, math.inf)


def test_a_grid_that_tensors_share_is_judged_as_one() -> None:
    torch.manual_seed(0)
    model, calls = made(Shared(), torch.randn(16, 16, 10, 10), concat="shared")
    quantizers = activations(model)
    assert any(len(members) > 1 for members in model.plan.grids.values())
    count = len(quantizers)
    sets = [scaled(model, [6.0] * count), scaled(model, [1.0] * count)]
    estimated = judging._effects(model, quantizers, calls, sets).mean(dim=2)
    assert estimated.shape == (count, 2)
    assert bool((estimated[:, 0] > 4 * estimated[:, 1]).all())
    assert judge(model, calls, sets).chosen == (1,) * count


def test_without_samples_there_is_no_verdict(chain: tuple[QuantizedModel, list[Call]]) -> None:
    model, _ = chain
    with pytest.raises(DataError, match="no samples"):
        judge(model, [], [scaled(model, [1.0] * 5)])
