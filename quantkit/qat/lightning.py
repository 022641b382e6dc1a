"""Quantization-aware training by Lightning: ``Trainer(callbacks=[QuantizationCallback()])``."""

from __future__ import annotations

import math
from typing import Any

from quantkit.errors import MissingDependencyError, RecipeError
from quantkit.qat.trainer_hooks import TrainerHooks

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError as error:
    raise MissingDependencyError(
        f'quantkit.qat.lightning needs Lightning ({error}); pip install "quantkit[lightning]"'
    ) from error


class QuantizationCallback(Callback):
    """Trains the `QuantizedModel` that a ``LightningModule`` holds.

    Before the optimizer is made its grids begin to move (`train_quantizers`); at the parts of all
    optimizer steps that its recipe says, observers and batch-norm freeze (`Schedule`); after
    ``fit`` it is settled, ready to export. Checkpoints hold how far the schedule is.

    Args:
        grids: ``follow``, ``learn`` or ``fixed``; the recipe's if ``None``. For grids that learn
            ``configure_optimizers`` can return what ``quantkit.qat.optimizing.make_optimizer``
            does, where each has a learning rate of its own size.
        attribute: where the module has the quantized model, such as ``model``; ``None``: it has
            but one.
        settle: whether to settle it after ``fit``. Where a checkpoint is loaded afterwards, choose
            ``False`` and call ``quantkit.settle`` yourself.

    Raises:
        RecipeError: from ``fit``: the module has no quantized model in its ``__init__``, or more
            than one; it is not known how many steps there will be; the checkpoint to resume from
            is of a settled model.

    Example:
        >>> trainer = Trainer(
        ...     max_epochs=3, callbacks=[QuantizationCallback(grids="learn")],
        ...     accelerator="cpu", logger=False, enable_checkpointing=False,
        ... )
    """

    def __init__(
        self, grids: str | None = None, *, attribute: str | None = None, settle: bool = True
    ) -> None:
        self._hooks = TrainerHooks(grids=grids, attribute=attribute, settle=settle)
        self._done = 0  # batches after which an optimizer stepped, in this run and those before
        self._global_step = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let the grids move, for ``fit`` alone."""
        if stage == "fit":
            self._hooks.before_optimizer(pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at what was loaded, before the optimizer's state is."""
        self._hooks.after_restore()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the schedule, now that every strategy has read its checkpoint.

        Raises:
            RecipeError: neither epochs nor steps have an end.
        """
        steps = trainer.estimated_stepping_batches
        if not 1 <= steps < math.inf:
            raise RecipeError(
                "Trainer does not know how many steps there will be, of which recipes freeze a "
                "part; give it max_steps"
            )
        self._global_step = trainer.global_step
        self._done = self._done if self._global_step else 0  # another fit begins anew
        self._hooks.at_start(int(steps), self._done)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Go back to training: Lightning sets flags after validation, and calls no ``train``."""
        if (model := self._hooks.model) is not None:
            model.train(model.training)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the batch if an optimizer has stepped, as ``estimated_stepping_batches`` does."""
        if trainer.global_step != self._global_step:
            self._global_step = trainer.global_step
            self._done += 1
            self._hooks.after_step()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Settle the model."""
        self._hooks.at_end()

    def state_dict(self) -> dict[str, Any]:
        """How many steps are done."""
        return {"done": self._done}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self._done = int(state_dict["done"])
