"""What callbacks of others' trainers have in common: which hook comes first, and what it does."""

from __future__ import annotations

from torch import nn

from quantkit.errors import RecipeError
from quantkit.model import QuantizedModel
from quantkit.qat.switches import Schedule, train_quantizers
from quantkit.settling import settle


class TrainerHooks:
    """Trains the quantized model inside a trainer's own: a callback calls these in their order.

    Attributes:
        model: the quantized model, between `before_optimizer` and `at_end`.
        schedule: what freezes, between `at_start` and `at_end`.

    Args:
        grids: ``follow``, ``learn`` or ``fixed``; the recipe's if ``None``.
        attribute: where the quantized model is, such as ``student``; ``None``: the only one.
        settle: whether `at_end` settles it.

    Example:
        >>> import quantkit, torch
        >>> net = nn.Sequential(nn.Linear(32, 32), nn.ReLU())
        >>> wrapper = nn.ModuleDict()
        >>> wrapper["student"] = quantkit.quantize(
        ...     net, "int8_qat", calibration=[torch.randn(8, 32)]
        ... )
        >>> hooks = TrainerHooks(grids="learn")
        >>> hooks.before_optimizer(wrapper)
        >>> hooks.at_start(steps=10, done=0)
        >>> hooks.after_step()
        >>> hooks.at_end()
    """

    def __init__(
        self, *, grids: str | None = None, attribute: str | None = None, settle: bool = True
    ) -> None:
        self.model: QuantizedModel | None = None
        self.schedule: Schedule | None = None
        self._grids = grids
        self._attribute = attribute
        self._settle = settle
        self._learning = False

    def before_optimizer(self, module: nn.Module) -> None:
        """Find the quantized model and let its grids move; the same one a second time is left.

        Raises:
            RecipeError: there is none, or more than one.
            DataError: grids are to learn that were never calibrated.
        """
        model = find_quantized(module, self._attribute)
        if model is self.model:
            return
        train_quantizers(model, self._grids)
        model.train()
        self.model = model
        self._learning = _learns(model)

    def after_restore(self) -> None:
        """A checkpoint may have been loaded into the model.

        Raises:
            RecipeError: it was of a settled model, whose grids learn no more.
        """
        if self.model is not None and self._learning and not _learns(self.model):
            raise RecipeError(
                f"recipe {self.model.recipe.name}: the grids are to learn, and the checkpoint that "
                "was loaded is of a settled model; resume from one that was saved in training"
            )

    def at_start(self, steps: int, done: int) -> None:
        """All is restored, and the first step of ``steps - done`` comes next."""
        assert self.model is not None  # before_optimizer was called
        self.schedule = Schedule(self.model, steps)
        self.schedule.done = done

    def after_step(self) -> None:
        """The optimizer has stepped."""
        if self.schedule is not None:
            self.schedule.step()

    def at_end(self) -> None:
        """Training is over."""
        if self._settle and self.model is not None:
            settle(self.model)
            self.model = None
        self.schedule = None


def find_quantized(module: nn.Module, attribute: str | None = None) -> QuantizedModel:
    """The quantized model among the modules of ``module``, or itself.

    Raises:
        RecipeError: there is none, or more than one, or another module has that name.
    """
    kind = type(module).__name__
    modules = module.named_modules(remove_duplicate=False)
    found = {name: m for name, m in modules if isinstance(m, QuantizedModel)}
    if not found:
        raise RecipeError(
            f"{kind} holds no QuantizedModel when its trainer starts; let its __init__ set an "
            "attribute to what quantkit.quantize returns"
        )
    if attribute is not None and attribute not in found:
        raise RecipeError(
            f"{kind} has no QuantizedModel of the name {attribute!r}; there are: "
            + ", ".join(map(repr, found))
        )
    if attribute is None and len({id(m) for m in found.values()}) > 1:
        raise RecipeError(
            f"{kind} holds several QuantizedModels, {' and '.join(found)}; choose the one to "
            f"train: QuantizationCallback(attribute={next(iter(found))!r})"
        )
    return found[next(iter(found)) if attribute is None else attribute]


def _learns(model: QuantizedModel) -> bool:
    return all(quantizer.learning for quantizer in model.quantizers.values())
