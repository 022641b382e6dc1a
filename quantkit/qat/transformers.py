"""Quantization-aware training by Hugging Face: ``Trainer(callbacks=[QuantizationCallback()])``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from quantkit.errors import MissingDependencyError, RecipeError
from quantkit.qat.trainer_hooks import TrainerHooks

if TYPE_CHECKING:
    from torch import nn
    from transformers import TrainerControl, TrainerState, TrainingArguments

try:
    from transformers import TrainerCallback
except ImportError as error:
    raise MissingDependencyError(
        f"quantkit.qat.transformers needs transformers ({error}); "
        'pip install "quantkit[transformers]"'
    ) from error


class QuantizationCallback(TrainerCallback):
    """Trains the `QuantizedModel` that the model of a ``transformers.Trainer`` holds.

    A Trainer's model names its inputs and returns its loss, which the quantized one does not.

    When the Trainer is made its grids begin to move (`train_quantizers`), since ``train`` makes the
    optimizer before it calls any callback; at the parts of all optimizer steps that its recipe
    says, observers and batch-norm freeze (`Schedule`), also after a resume; at the end it is
    settled, ready to export.

    Args:
        grids: ``follow``, ``learn`` or ``fixed``; the recipe's if ``None``. The Trainer gives
            grids that learn the learning rate and the weight decay of the weights; for others call
            ``train_quantizers`` first and pass ``optimizers=`` of your own.
        attribute: where the model has the quantized one, such as ``model``; ``None``: it has but
            one.
        settle: whether to settle it at the end.

    Raises:
        RecipeError: from ``Trainer``: the model has no quantized model, or more than one, or the
            optimizer does not have grids that learn. From ``train``: the model is another than
            ``Trainer`` was made with, or was settled.

    Example:
        >>> callback = QuantizationCallback(grids="learn")  # for Trainer(…, callbacks=[callback])
    """

    def __init__(
        self, grids: str | None = None, *, attribute: str | None = None, settle: bool = True
    ) -> None:
        self._hooks = TrainerHooks(grids=grids, attribute=attribute, settle=settle)

    def on_init_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Let the grids move.

        Raises:
            RecipeError: an optimizer was made without them.
        """
        self._hooks.before_optimizer(kwargs["model"])
        model, optimizer = self._hooks.model, kwargs.get("optimizer")
        if model is None or optimizer is None:
            return
        known = {id(p) for group in optimizer.param_groups for p in group["params"]}
        for name, quantizer in model.quantizers.items():
            if any(id(p) not in known for p in quantizer.parameters()):
                raise RecipeError(
                    f"the optimizer passed to Trainer does not have the grid of {name}, which is "
                    "to learn; call quantkit.train_quantizers before you make it, or pass none"
                )

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Make the schedule.

        Raises:
            RecipeError: the optimizer of this model was made before its grids could move.
        """
        module: nn.Module = kwargs["model"]
        if all(m is not self._hooks.model for m in module.modules()):
            raise RecipeError(
                "QuantizationCallback has to see a model before its optimizer is made, so make a "
                "new Trainer, with model= and callbacks=: model_init, add_callback and another "
                "train() after the model was settled are too late"
            )
        self._hooks.at_start(state.max_steps, state.global_step)

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """An optimizer step is over."""
        self._hooks.after_step()

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Settle the model."""
        self._hooks.at_end()
