"""A small quantized model for the tests of training, made once for each recipe."""

from __future__ import annotations

import quantkit
import small_models
from quantkit.model import QuantizedModel, copied
from quantkit.recipe import Recipe
from quantkit.workflow import resolve_recipe

_MADE: dict[str, QuantizedModel] = {}


def quantized(recipe: str | Recipe = "int8_qat") -> QuantizedModel:
    """``small_models.resnet()`` under a recipe, calibrated; a copy of its own at each call."""
    chosen = recipe if isinstance(recipe, Recipe) else resolve_recipe(recipe)
    key = f"{chosen.name}\n{chosen.to_yaml()}"
    if key not in _MADE:
        model = small_models.resnet()
        calibration = list(model.inputs(48, 1)[0].split(16))
        _MADE[key] = quantkit.quantize(model, chosen, calibration=calibration)
    return copied(_MADE[key])
