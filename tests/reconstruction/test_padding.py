"""The padding of sentences counts for nothing where weights are rounded and biases corrected."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from quantkit.recipe import Recipe
from quantkit.reconstruction.padding import real_positions, without_padding
from quantkit.workflow import quantize

WORDS = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0]])


class Sentences(nn.Module):
    """Two linear layers over words, and the mean over those that there are."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(32, 64), nn.Linear(64, 32)
        self.eval()

    def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        words = attention_mask.unsqueeze(-1).to(x.dtype)
        y = self.second(torch.relu(self.first(x))) * words
        mean: Tensor = y.sum(1) / words.sum(1)
        return mean


def batches(padding: float) -> list[tuple[Tensor, Tensor]]:
    """Eight batches; what stands where no word is, is so large."""
    found = []
    for seed in range(8):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(8, 6, 32, generator=generator)
        mask = WORDS.repeat(4, 1)
        noise = padding * torch.randn(8, 6, 32, generator=generator)
        found.append((torch.where(mask.bool().unsqueeze(-1), x, noise), mask))
    return found


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in model.named_parameters()}


@pytest.mark.parametrize(
    "changes", [{"rounding": "gptq"}, {"rounding": "descent"}, {"passes": ["correct_bias"]}]
)
def test_what_stands_in_the_padding_changes_no_weight_and_no_bias(changes: dict[str, Any]) -> None:
    weights = {"dtype": "int4", "per": "group", "group_size": 16}
    recipe = Recipe.model_validate({"name": "w4", "scheme": {"weights": weights}, **changes})
    one, other = (
        weights_of(quantize(Sentences(), recipe, calibration=batches(padding)))
        for padding in (0.1, 100.0)
    )
    plain = weights_of(quantize(Sentences(), Recipe(name="w4", scheme=recipe.scheme),
                                calibration=batches(0.1)))  # fmt: skip
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not all(torch.equal(one[name], plain[name]) for name in one)


@pytest.mark.parametrize(
    ("inputs", "why"),
    [
        ({"input_ids": WORDS}, "not by its name"),
        ({"attention_mask": WORDS.float()}, "what is added to scores"),
        ({"attention_mask": WORDS * 3}, "not of ones and zeros"),
        ({"attention_mask": torch.zeros_like(WORDS)}, "no word at all"),
        ({"attention_mask": WORDS[:, None]}, "one a pair of words"),
    ],
)
def test_what_is_no_mask_of_words_leaves_all_positions(inputs: dict[str, Tensor], why: str) -> None:
    assert real_positions(inputs) is None, why


def test_tensors_of_other_shapes_stay_whole() -> None:
    real = WORDS.bool()
    for shape in ((2, 32), (2, 5, 32), (2, 6, 4, 8)):
        x = torch.zeros(shape)
        assert without_padding(x, real) is x
    assert without_padding(torch.zeros(2, 6, 32), real).shape == (6, 32)
