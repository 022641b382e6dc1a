"""What a training loop switches: grids that follow or learn, and when they and batch-norm stop."""

from __future__ import annotations

import math

from quantkit.errors import RecipeError
from quantkit.interfaces import Statistic
from quantkit.model import QuantizedModel
from quantkit.statistics import Average, Range
from quantkit.training_choice import TrainingChoice

#: What costs next to nothing at each step of training.
_QUICK: tuple[type[Statistic], ...] = (Range, Average)


def train_quantizers(model: QuantizedModel, grids: str | None = None) -> None:
    """Let the grids move while the model trains, as its recipe says (``training: {grids: …}``).

    ``follow``: in training mode the grids of activations follow the moving average of their ranges
    (a model that was only prepared needs no calibration then), those of weights the weights' own
    ranges; with ``calibrator: minmax`` ranges of activations only ever widen. ``learn``: scales are
    parameters from now on, so call this before the optimizer or ``DistributedDataParallel`` is
    made. ``fixed``: all stay.

    Args:
        model: as ``quantize`` or ``prepare`` makes it.
        grids: ``follow``, ``learn`` or ``fixed``, in place of the recipe's.

    Raises:
        RecipeError: grids are to follow a calibrator that searches a histogram, at each step.
        DataError: grids are to learn, or to stay, that were never calibrated.

    Example:
        >>> import quantkit, torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.ReLU())
        >>> qmodel = quantkit.quantize(model, "int8_qat", calibration=[torch.randn(8, 32)])
        >>> train_quantizers(qmodel, "learn")
        >>> sorted(name for name, _ in qmodel.named_parameters() if name.endswith("scale"))
        ['graph.quantizers.0_weight.scale', 'graph.quantizers.input.scale']
    """
    chosen = model.recipe.training.grids if grids is None else grids
    quantizers = model.quantizers
    if chosen == "learn":
        for quantizer in quantizers.values():
            quantizer.learn()
            quantizer.quantize_values()
    elif chosen == "follow":
        require_quick(model)
        for quantizer in quantizers.values():
            quantizer.settle()
            quantizer.observe()
            quantizer.quantize_values()
    elif chosen == "fixed":
        for quantizer in quantizers.values():
            _ = quantizer.qparams  # there is one
            quantizer.observe(False)
            quantizer.quantize_values()
    else:
        raise RecipeError(f"grids {chosen!r} is not allowed; choose follow, learn or fixed")


def freeze_observers(model: QuantizedModel) -> None:
    """Let grids that follow stay as they are now; those that learn go on learning."""
    for quantizer in model.quantizers.values():
        quantizer.observe(False)


def freeze_batch_norm(model: QuantizedModel) -> None:
    """Use the running statistics of batch-norm from now on, in training mode as well."""
    model.freeze_batch_norm()


class Schedule:
    """Freezes observers and batch-norm when a part of training is over: call ``step`` at each step.

    Attributes:
        steps: how many there will be.
        done: how many there were; set it to resume (the model's own state has its switches).

    Args:
        model: the quantized model; not its wrapper.
        steps: how many steps there will be.
        choice: the fractions; the recipe's if ``None``.

    Example:
        >>> import quantkit, torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.ReLU())
        >>> qmodel = quantkit.quantize(model, "int8_qat", calibration=[torch.randn(8, 32)])
        >>> train_quantizers(qmodel, "follow")
        >>> schedule = Schedule(qmodel, steps=4)  # the recipe freezes observers after a half
        >>> for _ in range(3):
        ...     print(any(q.observing for q in qmodel.quantizers.values()))
        ...     schedule.step()
        True
        True
        False
    """

    def __init__(
        self, model: QuantizedModel, steps: int, choice: TrainingChoice | None = None
    ) -> None:
        if steps < 1:
            raise ValueError(f"steps must be 1 or more, got {steps}")
        self._model = model
        self._choice = model.recipe.training if choice is None else choice
        self.steps = steps
        self.done = 0
        self._freeze()

    def step(self) -> None:
        """One step is over."""
        self.done += 1
        self._freeze()

    def _freeze(self) -> None:
        if self.done == math.ceil(self._choice.freeze_observers * self.steps):
            freeze_observers(self._model)
        if self.done == math.ceil(self._choice.freeze_batch_norm * self.steps):
            freeze_batch_norm(self._model)


def require_quick(model: QuantizedModel) -> None:
    """Refuse grids that follow where a calibrator searches a histogram.

    Raises:
        RecipeError: names the grid and its calibrator.
    """
    for name, quantizer in model.quantizers.items():
        observer = quantizer.observer
        if observer is None or all(isinstance(s, _QUICK) for s in observer.statistics):
            continue
        raise RecipeError(
            f"recipe {model.recipe.name}: the calibrator of {name}, {observer.calibrator}, "
            "searches a histogram, which cannot be done at each step of training; use a recipe "
            "with calibrator: moving_average, such as int8_qat, or let grids learn "
            "(training: {grids: learn})"
        )
