"""Smoothing: where the scale goes, that the result stays, and that W8A8 is better for it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import scaling_models as models
import torch
from torch import Tensor, nn

from quantkit import numerics
from quantkit.passes._scaling import scale_groups
from quantkit.passes._scaling_maths import shared_scale, smooth_scale
from quantkit.passes.smooth import Smooth
from quantkit.recipe import Recipe
from quantkit.workflow import quantize

W8A8 = {"weights": {"per": "channel"}, "activations": {}}


def recipe(scheme: object = W8A8, **rest: object) -> Recipe:
    return Recipe.model_validate({"name": "mine", "scheme": scheme, **rest})


CALLS = [((x,), {}) for x in models.data()]


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (models.rms_gated, {"norm.weight", "gate.weight", "up.weight", "down.weight"}),
        (models.fused_gated, {"norm.weight", "gate.weight", "up.weight", "down.weight"}),
        (models.Chain, {"first.weight", "first.bias", "second.weight"}),
    ],
    ids=["RMSNorm of plain operators, gate", "RMSNorm, gate", "ReLU"],
)
def test_the_scale_goes_into_what_makes_the_tensor(
    make: Callable[[], nn.Module], expected: set[str]
) -> None:
    model = models.seeded(make)
    module = models.graph_of(model)
    found = Smooth(explicit=False).apply(module, recipe(), CALLS)
    assert found == (1 if make is models.Chain else 2)
    assert models.changed(module, model) == expected
    assert models.products(module) == []
    assert models.same(module, model, models.data())


def test_a_norm_that_a_residual_reads_too_gets_a_product_before_the_layers_alone() -> None:
    model = models.seeded(models.PostNorm)
    module = models.graph_of(model)
    assert Smooth(explicit=False).apply(module, recipe(), CALLS) == 0
    assert models.changed(module, model) == set()
    assert Smooth().apply(module, recipe(), CALLS) == 2
    assert models.changed(module, model) == {"up.weight", "down.weight"}
    before_up, before_down = models.products(module)
    for product in (before_up, before_down):
        assert [user.target for user in product.users] == [torch.ops.aten.linear.default]
    assert models.same(module, model, models.data())
    scale = dict(module.named_buffers())["up.input_scale"]
    assert scale.argsort()[:2].sort().values.tolist() == [3, 17]  # the large channels become small


def test_a_product_is_worth_it_only_where_it_saves_enough() -> None:
    module = models.graph_of(models.seeded(models.PostNorm))
    assert Smooth(least_gain=0.999).apply(module, recipe(), CALLS) == 0


@pytest.mark.parametrize("make", [models.PostNorm, models.rms_gated])
def test_w8a8_is_much_better_for_it(make: Callable[[], nn.Module]) -> None:
    model = models.seeded(make)
    batches, fresh = models.data(), models.data(5)[4]
    sqnr = {}
    for passes in ([], ["smooth"]):
        quantized = quantize(model, recipe(passes=passes), calibration=batches)
        with torch.no_grad():
            sqnr[bool(passes)] = numerics.sqnr(model(fresh), quantized(fresh))
    assert sqnr[True] > sqnr[False] + 4


def test_a_scale_that_makes_it_worse_is_not_taken() -> None:
    model = models.seeded(models.Chain)
    module = models.graph_of(model)

    def wild(_: object, columns: Tensor) -> list[Tensor]:
        return [torch.logspace(-4, 4, len(columns)), torch.ones_like(columns)]

    changed = scale_groups(module, recipe(), CALLS, wild, explicit=True, least_gain=0.0)
    assert changed == 0
    assert models.changed(module, model) == set()


def test_quantized_values_of_attention_keep_their_grid_and_its_products_stay_together() -> None:
    model = models.seeded(models.Attention)
    module = models.graph_of(model)
    Smooth().apply(module, recipe(), CALLS)
    assert not {"out.weight", "value.bias"} & models.changed(module, model)
    assert "out.input_scale" not in dict(module.named_buffers())


def test_weights_that_share_one_step_are_not_given_the_scale_of_what_they_make() -> None:
    model = models.seeded(models.Chain)
    module = models.graph_of(model)
    per_tensor = recipe({"weights": {}, "activations": {}})
    assert Smooth(explicit=False).apply(module, per_tensor, CALLS) == 0


def test_a_weight_that_two_layers_share_is_left_alone() -> None:
    model = models.seeded(models.Chain)
    tied = nn.Sequential(model, model).eval()
    module = models.graph_of(tied)
    assert Smooth().apply(module, recipe(), CALLS) == 0


def test_the_scale_is_that_of_the_paper() -> None:
    x, w = torch.tensor([8.0, 1.0, 0.5]), torch.tensor([2.0, 1.0, 0.25])
    torch.testing.assert_close(smooth_scale(x, w, 0.75), x**0.75 / w**0.25)
    torch.testing.assert_close(smooth_scale(x, w, 1.0), x)


def test_a_silent_channel_gets_a_middle_scale() -> None:
    x, w = torch.tensor([8.0, 0.0, 2.0, 4.0]), torch.ones(4)
    assert smooth_scale(x, w, 1.0).tolist() == [8.0, 4.0, 2.0, 4.0]
    assert smooth_scale(0 * x, w, 0.5).tolist() == [1.0] * 4


def test_copies_of_a_channel_share_the_largest_scale() -> None:
    of = torch.tensor([1, 0, 1])
    assert shared_scale(torch.tensor([2.0, 3.0, 5.0]), of, 2).tolist() == [3.0, 5.0]


@pytest.mark.parametrize("wrong", [{"samples": 0}, {"grid": 0}, {"least_gain": 1.0}])
def test_settings_without_meaning_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Smooth(**wrong)  # type: ignore[arg-type]
