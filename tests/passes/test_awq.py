"""AWQ: scales of the weights by what the activations are, folded where that is exact."""

from __future__ import annotations

import pytest
import scaling_models as models
import torch

from quantkit import numerics
from quantkit.passes._scaling_maths import awq_scale
from quantkit.passes.awq import Awq
from quantkit.recipe import Recipe
from quantkit.workflow import quantize

INT4 = {"weights": {"dtype": "int4", "per": "group", "group_size": 16}, "activations": None}
CALLS = [((x,), {}) for x in models.data()]


def recipe(**rest: object) -> Recipe:
    return Recipe.model_validate({"name": "mine", "scheme": INT4, **rest})


@pytest.mark.parametrize("groups", [4, 2, 1])
def test_the_scale_of_attentions_output_goes_into_the_rows_of_its_values(groups: int) -> None:
    model = models.seeded(lambda: models.Attention(groups))
    module = models.graph_of(model)
    assert Awq(explicit=False).apply(module, recipe(), CALLS) == 1
    assert models.changed(module, model) == {"value.weight", "value.bias", "out.weight"}
    assert models.same(module, model, models.data())
    # Heads that read one head of values share its scale.
    ratio = dict(module.named_parameters())["out.weight"] / model.out.weight
    heads = ratio[0].view(groups, 4 // groups, 8)
    torch.testing.assert_close(heads, heads[:, :1].expand_as(heads))


def test_a_norm_and_a_gate_take_the_scale() -> None:
    model = models.seeded(models.rms_gated)
    module = models.graph_of(model)
    assert Awq().apply(module, recipe(), CALLS) == 2
    assert "norm.weight" in models.changed(module, model)
    assert models.products(module) == []
    assert models.same(module, model, models.data())


def test_int4_is_better_for_it() -> None:
    model = models.seeded(models.rms_gated)
    batches, fresh = models.data(), models.data(5)[4]
    sqnr = {}
    for passes in ([], ["awq"]):
        quantized = quantize(model, recipe(passes=passes), calibration=batches)
        with torch.no_grad():
            sqnr[bool(passes)] = numerics.sqnr(model(fresh), quantized(fresh))
    assert sqnr[True] > sqnr[False] + 1


def test_the_scale_is_that_of_the_paper_around_one() -> None:
    x = torch.tensor([16.0, 1.0, 4.0])
    scale = awq_scale(x, 0.5)
    torch.testing.assert_close(scale / scale[1], x.sqrt())
    assert float(scale.max() * scale.min()) == pytest.approx(1.0)
    assert awq_scale(torch.zeros(3), 0.5).tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("wrong", [{"samples": 0}, {"grid": 0}, {"least_gain": 1.0}])
def test_settings_without_meaning_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Awq(**wrong)  # type: ignore[arg-type]
