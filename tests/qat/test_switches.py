"""The switches of a training loop of one's own."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from qat_models import quantized
from torch import Tensor, nn

import quantkit
import small_models
from quantkit import numerics
from quantkit.errors import DataError, RecipeError
from quantkit.fake_quantize import FakeQuantize
from quantkit.model import QuantizedModel
from quantkit.qat.switches import (
    Schedule,
    freeze_batch_norm,
    freeze_observers,
    train_quantizers,
)
from quantkit.recipe import PlugIn, Recipe
from quantkit.settling import settle
from quantkit.workflow import _find_recipe

# torch.compile makes an instance of autograd.Function itself, which torch deprecates.
compiles = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")


def recipe(name: str, **changes: Any) -> Recipe:
    return _find_recipe(name).model_copy(update=changes)


def batch(seed: int = 1) -> tuple[Tensor, Tensor]:
    (x,) = small_models.resnet().inputs(16, seed)
    return x, x.mean((1, 2, 3)).mul(20).long().remainder(16)


def train(
    model: nn.Module,
    steps: int = 3,
    step: Callable[[], None] = lambda: None,
    autocast: torch.dtype | None = None,
) -> list[float]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    scaler = torch.amp.GradScaler("cpu", enabled=autocast is torch.float16)
    x, y = batch()
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        with torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None):
            loss = F.cross_entropy(model(x).float(), y)
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        step()
        losses.append(loss.item())
    return losses


def scales(model: QuantizedModel) -> dict[str, Tensor]:
    return {name: q.qparams.scale for name, q in model.quantizers.items()}


def moved(before: dict[str, Tensor], model: QuantizedModel) -> set[str]:
    return {name for name, scale in scales(model).items() if not torch.equal(before[name], scale)}


@pytest.mark.parametrize("grids", ["follow", "learn", "fixed"])
def test_training_lowers_the_loss(grids: str) -> None:
    model = quantized().train()
    train_quantizers(model, grids)
    losses = train(model, 6)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("grids", ["follow", "learn"])
def test_every_grid_moves_while_the_model_trains(grids: str) -> None:
    model = quantized().train()
    train_quantizers(model, grids)
    before = scales(model)
    train(model, 3)
    assert moved(before, model) == set(before)


def test_fixed_grids_stay_while_the_weights_train() -> None:
    model = quantized().train()
    train_quantizers(model, "fixed")
    before = scales(model)
    weight = model.graph.get_parameter("fc.weight").detach().clone()
    train(model, 2)
    assert moved(before, model) == set()
    assert not torch.equal(weight, model.graph.get_parameter("fc.weight"))


def test_grids_that_follow_stay_in_evaluation_and_once_frozen() -> None:
    model = quantized().train()
    train_quantizers(model, "follow")
    before = scales(model)
    model.eval()(batch(5)[0] * 10)
    assert moved(before, model) == set()
    model.train()
    freeze_observers(model)
    model(batch(5)[0] * 10)
    assert moved(before, model) == set()


def test_a_model_that_was_only_prepared_trains_from_its_first_batch_on() -> None:
    net = small_models.resnet()
    model = quantkit.prepare(net, "int8_qat", example_inputs=net.example_inputs).train()
    train_quantizers(model, "follow")
    train(model, 2)
    assert all(q.calibrated for q in model.quantizers.values())


def test_grids_of_weights_are_those_of_the_weights_of_the_moment() -> None:
    model = quantized().train()
    train_quantizers(model, "follow")
    with torch.no_grad():
        model.graph.get_parameter("fc.weight").mul_(3.0)
    before = model.quantizers["fc.weight"].qparams.scale
    model(batch()[0])
    torch.testing.assert_close(model.quantizers["fc.weight"].qparams.scale, 3.0 * before)


@pytest.mark.parametrize("passes", ["fold_batchnorm", "keep_batchnorm"])
def test_grids_that_follow_may_see_another_batch_before_the_backward_pass(passes: str) -> None:
    """As contrastive losses do, and grids that several tensors share."""
    model = quantized(recipe("int8_qat", passes=(PlugIn(name=passes),))).train()
    train_quantizers(model, "follow")
    if passes == "keep_batchnorm":
        freeze_batch_norm(model)
    once = model(batch(1)[0])
    twice = model(batch(2)[0] * 3)
    with torch.no_grad():
        model(batch(3)[0] * 9)
    (once - twice).square().sum().backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())


@pytest.mark.parametrize("grids", ["learn", "fixed"])
def test_quantizers_that_were_off_are_on_once_training_begins(grids: str) -> None:
    model = quantized()
    model.simulate(False)
    train_quantizers(model, grids)
    assert all(q.quantizing for q in model.quantizers.values())


def test_what_follows_may_not_search_a_histogram_at_each_step() -> None:
    with pytest.raises(RecipeError, match=r"int8_ptq: .*searches a histogram.*grids: learn"):
        train_quantizers(quantized("int8_ptq"), "follow")


@pytest.mark.parametrize("grids", ["learn", "fixed"])
def test_grids_of_nothing_can_neither_learn_nor_stay(grids: str) -> None:
    net = small_models.resnet()
    model = quantkit.prepare(net, "int8_ptq", example_inputs=net.example_inputs)
    with pytest.raises(DataError, match="has no grid: it was never calibrated"):
        train_quantizers(model, grids)


def test_a_misspelt_way_is_refused() -> None:
    with pytest.raises(RecipeError, match="grids 'learned' is not allowed; choose follow, learn"):
        train_quantizers(quantized(), "learned")


def test_a_schedule_freezes_observers_and_batch_norm_each_in_its_turn() -> None:
    chosen = recipe("int8_qat", passes=(PlugIn(name="keep_batchnorm"),))
    choice = chosen.training.model_copy(update={"freeze_observers": 0.75, "freeze_batch_norm": 0.5})
    model = quantized(chosen).train()
    train_quantizers(model, "follow")
    schedule = Schedule(model, 4, choice)
    seen = []
    for _ in range(4):
        seen.append((model.quantizers["fc.weight"].observing, model.batch_norm_frozen))
        schedule.step()
    assert seen == [(True, False), (True, False), (True, True), (False, True)]


def test_a_schedule_of_nothing_freezes_at_once_and_of_no_step_is_refused() -> None:
    model = quantized()
    train_quantizers(model, "follow")
    choice = model.recipe.training.model_copy(update={"freeze_observers": 0.0})
    Schedule(model, 4, choice)
    assert not any(q.observing for q in model.quantizers.values())
    with pytest.raises(ValueError, match="steps must be 1 or more, got 0"):
        Schedule(model, 0)


# --- batch-norm -----------------------------------------------------------------------------------


def kept() -> QuantizedModel:
    return quantized(recipe("int8_qat", passes=(PlugIn(name="keep_batchnorm"),)))


def test_kept_and_folded_batch_norm_have_one_plan_and_one_result() -> None:
    one, other = kept(), quantized()
    assert one.plan.decisions == other.plan.decisions
    weights = {t.grid: t.edges for t in one.plan.tensors if t.role == "weight"}
    assert weights == {t.grid: t.edges for t in other.plan.tensors if t.role == "weight"}
    activations = [[t for t in m.plan.tensors if t.role == "activation"] for m in (one, other)]
    assert activations[0] == activations[1]
    x, _ = batch(3)
    with torch.no_grad():
        assert numerics.sqnr(other(x), one(x)) > 40.0  # one ulp of a weight is a step of its code


def test_in_training_kept_batch_norm_normalizes_by_the_batch_and_moves_its_statistics() -> None:
    net, model = small_models.resnet(), kept()
    x, _ = batch(3)
    model.simulate(False)
    model.train()
    net.train()
    with torch.no_grad():
        torch.testing.assert_close(model(x), net(x), rtol=1e-4, atol=1e-4)
    mine, theirs = dict(model.graph.named_buffers()), dict(net.named_buffers())
    names = [name for name in theirs if "running" in name]
    assert names
    for name in names:
        torch.testing.assert_close(mine[name], theirs[name], rtol=1e-4, atol=1e-4)


def test_kept_batch_norm_has_the_gradients_of_the_float_model() -> None:
    net, model = small_models.resnet().train(), kept()
    model.simulate(False)
    model.train()
    x, y = batch(3)
    for module in (net, model):
        F.cross_entropy(module(x), y).backward()  # type: ignore[no-untyped-call]
    mine = {name.removeprefix("graph."): p.grad for name, p in model.named_parameters()}
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None
        scale = parameter.grad.abs().max().item()
        torch.testing.assert_close(mine[name], parameter.grad, rtol=1e-3, atol=1e-3 * scale)


def test_frozen_batch_norm_trains_gamma_and_lets_its_statistics_be() -> None:
    model = kept().train()
    freeze_batch_norm(model)
    before = copy.deepcopy(model.state_dict())
    train(model, 2)
    after = model.state_dict()
    running = [name for name in after if "running" in name]
    assert running
    assert all(torch.equal(before[name], after[name]) for name in running)
    assert not torch.equal(before["graph.stem.1.weight"], after["graph.stem.1.weight"])


def test_that_batch_norm_is_frozen_is_saved_with_the_state() -> None:
    model, fresh = kept(), kept()
    freeze_batch_norm(model)
    fresh.load_state_dict(model.state_dict())
    assert fresh.batch_norm_frozen


def test_settling_folds_batch_norm_and_changes_the_result_by_float_error() -> None:
    model = kept().train()
    train(model, 3)
    model.eval()
    x, _ = batch(3)
    with torch.no_grad():
        before = model(x)
        settle(model)
        after = model(x)
    assert not any("running" in name for name, _ in model.named_buffers())
    assert all(layer.bias is not None for layer in model.layers())
    assert numerics.sqnr(before, after) > 40.0
    with torch.no_grad():
        settle(model)
        assert torch.equal(model(x), after)


def test_a_settled_model_loads_into_one_prepared_alike(tmp_path: Path) -> None:
    model = kept().train()
    train_quantizers(model, "learn")
    train(model, 2)
    settle(model)
    model.save(tmp_path / "m.safetensors")
    fresh = kept()
    fresh.load(tmp_path / "m.safetensors")
    x, _ = batch(3)
    with torch.no_grad():
        assert torch.equal(fresh.eval()(x), model(x))


# --- life of a training loop ----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("grids", ["follow", "learn"])
@pytest.mark.parametrize("passes", ["fold_batchnorm", "keep_batchnorm"])
def test_it_trains_under_autocast_with_clipped_gradients(
    dtype: torch.dtype, grids: str, passes: str
) -> None:
    model = quantized(recipe("int8_qat", passes=(PlugIn(name=passes),))).train()
    train_quantizers(model, grids)
    losses = train(model, 6, autocast=dtype)
    assert losses[-1] < losses[0]
    assert all(q.scale.dtype == torch.float32 for q in model.quantizers.values())


@pytest.mark.parametrize(
    ("name", "grids"), [("int8_qat", "follow"), ("int8_qat", "learn"), ("w4a4_qat", "learn")]
)
def test_a_checkpoint_resumes_to_the_same_model(name: str, grids: str) -> None:
    whole = quantized(name).train()
    train_quantizers(whole, grids)
    train(whole, 2)
    state = copy.deepcopy(whole.state_dict())
    train(whole, 2)
    resumed = quantized(name).train()
    train_quantizers(resumed, grids)
    resumed.load_state_dict(state)
    train(resumed, 2)
    assert all(torch.equal(v, whole.state_dict()[k]) for k, v in resumed.state_dict().items())


@compiles
@pytest.mark.slow
@pytest.mark.parametrize("grids", ["follow", "learn"])
def test_it_trains_compiled_as_it_does_not(grids: str) -> None:
    torch.compiler.reset()
    eager, model = quantized().train(), quantized().train()
    train_quantizers(eager, grids)
    train_quantizers(model, grids)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    expected, losses = train(eager, 3), train(compiled, 3)
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(expected), rtol=1e-4, atol=1e-4)
    for name, quantizer in model.quantizers.items():
        torch.testing.assert_close(
            quantizer.qparams.scale, eager.quantizers[name].qparams.scale, rtol=1e-3, atol=1e-6
        )


@compiles
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
def test_batch_norm_that_is_kept_compiles_once_it_is_frozen() -> None:
    torch.compiler.reset()
    model = kept().train()
    x, _ = batch(3)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with pytest.raises(torch._dynamo.exc.Unsupported, match="Observed exception"):
        compiled(x)
    torch.compiler.reset()
    eager = copy.deepcopy(model)
    loose = torch.compile(model, backend="aot_eager")
    for module in (loose, eager):
        module(x).square().sum().backward()
    for mine, theirs in zip(model.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)
    freeze_batch_norm(model)
    torch.compiler.reset()
    assert torch.compile(model, backend="aot_eager", fullgraph=True)(x).shape == (16, 16)


def test_a_deep_copy_trains_by_itself() -> None:
    model = quantized().train()
    train_quantizers(model, "learn")
    before = copy.deepcopy(model.state_dict())
    other = copy.deepcopy(model)
    train(other, 2)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(q.learning for q in other.quantizers.values())


def test_no_quantizer_is_left_out_of_the_parameters_that_learn() -> None:
    model = quantized("w4a4_qat")
    train_quantizers(model, "learn")
    names = {name for name, _ in model.named_parameters()}
    for name, quantizer in model.quantizers.items():
        assert isinstance(quantizer, FakeQuantize)
        assert (quantizer.lowest is None) == quantizer.spec.symmetric, name
    assert sum(name.endswith(".scale") for name in names) == len(model.quantizers)
