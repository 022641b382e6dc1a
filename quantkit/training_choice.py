"""How a recipe trains a quantized model: the choices of ``finetune``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

_Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
_Positive = Annotated[float, Field(gt=0.0)]


class TrainingChoice(BaseModel):
    """The key ``training`` of a recipe.

    Attributes:
        grids: ``follow``: activations' grids follow a moving average of their ranges (so
            ``calibrator: moving_average``), weights' their own range; ``learn``: scales, and where
            asymmetric grids begin, are trained (LSQ, Esser et al. 2020; LSQ+, Bhalgat et al. 2020);
            ``fixed``: they stay as calibrated.
        freeze_observers: the part of training after which grids that follow stay.
        freeze_batch_norm: the part of training after which batch-norm that the pass
            ``keep_batchnorm`` has kept uses its running statistics; 0: from the start.
        epochs: passes over the data.
        optimizer: ``adamw`` or ``sgd`` (with Nesterov momentum 0.9).
        learning_rate: of weights and biases, at its highest.
        grid_learning_rate: of learned grids; with ``adamw`` times the scale that each begins with,
            so about the part of itself that a scale can move by in one step.
        weight_decay: of weights with two dimensions or more.
        warm_up: the part of training in which the learning rate rises; then it falls by a cosine.
        clip_gradient: the largest norm of all gradients together; ``null``: any.
        teacher_weight: of the difference to the teacher's outputs in the loss, beside a loss of
            your own, which has weight 1.
        teacher_loss: ``kl``: of the outputs as logits over the last dimension (Hinton et al. 2015);
            ``mse``: squared error of the outputs, as a part of their square.
        temperature: of ``kl``.
        feature_weight: of the squared error of chosen features, as a part of their square.
        patience: stop after so many epochs without a better metric; ``null``: never.
        precision: ``bfloat16``: compute in it where autocast does.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

    grids: Literal["follow", "learn", "fixed"] = "learn"
    freeze_observers: _Fraction = 0.5
    freeze_batch_norm: _Fraction = 0.0
    epochs: Annotated[int, Field(ge=1)] = 10
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: _Positive = 1e-4
    grid_learning_rate: _Positive = 1e-3
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    warm_up: _Fraction = 0.05
    clip_gradient: _Positive | None = None
    teacher_weight: Annotated[float, Field(ge=0.0)] = 1.0
    teacher_loss: Literal["kl", "mse"] = "kl"
    temperature: _Positive = 1.0
    feature_weight: Annotated[float, Field(ge=0.0)] = 1.0
    patience: Annotated[int, Field(ge=1)] | None = None
    precision: Literal["float32", "bfloat16"] = "float32"
