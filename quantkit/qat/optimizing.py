"""The optimizer of a training run: which parameters, and how fast."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from quantkit.errors import RecipeError
from quantkit.model import QuantizedModel
from quantkit.training_choice import TrainingChoice


def learning_rate(progress: float, warm_up: float) -> float:
    """The part of the highest learning rate: a linear rise, then half a cosine to zero.

    Example:
        >>> [round(learning_rate(p, 0.2), 3) for p in (0.0, 0.1, 0.2, 0.6, 1.0)]
        [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    if progress < warm_up:
        return progress / warm_up
    if warm_up == 1.0:
        return 1.0
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, (progress - warm_up) / (1.0 - warm_up))))


def make_optimizer(model: QuantizedModel, choice: TrainingChoice) -> torch.optim.Optimizer:
    """An optimizer of three kinds of parameters: weights, biases (no decay), grids that learn.

    With ``adamw``, whose steps have the size of the learning rate, each grid has a group of its
    own with a learning rate in proportion to its scale.
    """
    weights: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    scales: list[tuple[list[nn.Parameter], float]] = []
    grids = {id(p) for q in model.quantizers.values() for p in q.parameters()}
    for quantizer in model.quantizers.values():
        own = [p for p in quantizer.parameters(recurse=False) if p.requires_grad]
        if own:
            scales.append((own, float(quantizer.scale.detach().mean())))
    for parameter in model.parameters():
        if parameter.requires_grad and id(parameter) not in grids:
            (weights if parameter.dim() > 1 else others).append(parameter)
    if not (weights or others or scales):
        raise RecipeError(
            "every parameter is frozen (requires_grad is false) and grids do not learn, so there "
            "is nothing to train; unfreeze some, or let grids learn (training: {grids: learn})"
        )
    groups: list[dict[str, Any]] = [
        {"params": weights, "weight_decay": choice.weight_decay},
        {"params": others},
    ]
    if choice.optimizer == "sgd":
        every = [p for own, _ in scales for p in own]
        groups.append({"params": every, "lr": choice.grid_learning_rate})
        groups = [group for group in groups if group["params"]]
        return torch.optim.SGD(groups, lr=choice.learning_rate, momentum=0.9, nesterov=True)
    groups += [{"params": own, "lr": choice.grid_learning_rate * size} for own, size in scales]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=choice.learning_rate, weight_decay=0.0)
