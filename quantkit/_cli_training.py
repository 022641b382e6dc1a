"""How ``quantkit finetune`` judges a model while it trains, and what it tells of that."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantkit._cli_work import require_writable, working
from quantkit.errors import DataError, ExportError, MissingDependencyError

if TYPE_CHECKING:
    from torch import nn

    from quantkit._cli_show import Screen
    from quantkit.data import Data
    from quantkit.model import QuantizedModel
    from quantkit.qat.finetuning import Epoch, FineTuning


@dataclass(frozen=True, kw_only=True)
class Judge:
    """A metric with its name.

    Attributes:
        name: such as ``SQNR``.
        unit: of its values.
        measure: the metric; ``None``: nothing is measured.
        best: its value for the float model; ``None`` where it does not tell anything.
    """

    name: str = ""
    unit: str = ""
    measure: Callable[[nn.Module], float] | None = None
    best: float | None = None

    def told(self, value: float | None) -> str:
        """A value with its unit.

        Example:
            >>> Judge(name="SQNR", unit="dB").told(20.0)
            '20.00 dB'
        """
        return _exactly(value) if value is None or math.isinf(value) else f"{value:.2f} {self.unit}"


def float_model(qmodel: QuantizedModel) -> QuantizedModel:
    """The float model, as it was captured: inputs are given to it as to the quantized one."""
    from quantkit.model import copied

    reference = copied(qmodel)
    reference.simulate(False)
    return reference


def judge(path: Path | None, data: Data | None, reference: nn.Module) -> Judge:
    """Accuracy where the data have labels, else SQNR; it runs the float model once."""
    if path is None or data is None:
        return Judge()
    from quantkit.qat.metrics import accuracy, fidelity

    with working("running the float model"), naming(path):
        if data.spec.label is None:
            return Judge(name="SQNR", unit="dB", measure=fidelity(data, reference))
        measure = accuracy(data)
        best = measure(reference)
    return Judge(name="top-1 accuracy", unit="%", measure=measure, best=best)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Errors of data name the file that declares them."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


class Lines:
    """A line an epoch, as soon as it is over, below a head; a star for the best so far."""

    def __init__(self, show: Screen, judge: Judge) -> None:
        self._show, self._judge = show, judge
        self._best: float | None = None
        self._begun = False

    def epoch(self, epoch: Epoch) -> None:
        """An epoch is over."""
        if not self._begun:
            named = f"{self._judge.name} {self._judge.unit}" if self._judge.name else ""
            self._line("epoch", "loss", named, "seconds", style="bold")
            self._begun = True
        star, value = " ", epoch.metric
        if value is not None and (self._best is None or value > self._best):
            star, self._best = "*", value
        loss = "-" if math.isnan(epoch.loss) else f"{epoch.loss:.4g}"
        metric = _exactly(value) if value is None or math.isinf(value) else f"{value:.2f}"
        self._line(str(epoch.number), loss, f"{metric}{star}", f"{epoch.seconds:.1f}")

    def _line(self, epoch: str, loss: str, metric: str, seconds: str, style: str = "") -> None:
        middle = f"  {metric:<16}" if self._judge.name else ""
        self._show.line(f"{epoch:<5}  {loss:<10}{middle}  {seconds}".rstrip(), style)

    def result(self, result: FineTuning, epochs: int) -> None:
        """What came of it, in one line."""
        best, judge = result.best, self._judge
        trained = f"Fine-tuned in {sum(epoch.seconds for epoch in result.epochs):.0f} s"
        early = ", stopped early" if result.stopped else ""
        if best.metric is None:
            self._show.line(f"{trained}: loss {best.loss:.4g} at epoch {best.number}", "bold")
            kept = "With --evaluate EVAL.yaml the best epoch is kept, not the last."
            self._show.line(kept, "dim")
            return
        before = f"{trained}: {judge.name} {judge.told(_before(result))} before"
        beside = "" if judge.best is None else f" (float model: {judge.told(judge.best)})"
        if best.number == 0:
            self._show.line(
                f"{before}, and no epoch was better{early}{beside}: what is written has not "
                "trained. Way out: another --learning-rate, more data, more --epochs.", "yellow",
            )  # fmt: skip
            return
        at = f"{judge.told(best.metric)} at epoch {best.number} of {epochs}"
        self._show.line(f"{before}, {at}{early}{beside}", "bold green")


def as_json(result: FineTuning, judge: Judge) -> dict[str, Any]:
    """Everything; what is not finite, such as the loss before training, is null."""
    return {
        "metric": f"{judge.name}, {judge.unit}" if judge.name else None,
        "float": judge.best,
        "before": _finite(_before(result)),
        "best": _epoch(result.best),
        "stopped": result.stopped,
        "epochs": [_epoch(epoch) for epoch in result.epochs],
    }


def require_events(folder: Path) -> None:
    """Refuse where TensorBoard is not installed, or the folder cannot be had."""
    if find_spec("tensorboard") is None:
        raise MissingDependencyError(
            "TensorBoard is not installed, and --tensorboard asks for it; run: pip install "
            "tensorboard"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ExportError(
            f"{folder}: cannot be made ({error.strerror}); give another folder"
        ) from error
    require_writable(folder / "events")


def _before(result: FineTuning) -> float | None:
    return next((epoch.metric for epoch in result.epochs if epoch.number == 0), None)


def _epoch(epoch: Epoch) -> dict[str, Any]:
    return {key: _finite(value) for key, value in asdict(epoch).items()}


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _exactly(value: float | None) -> str:
    """What is no number: there is no noise, or an output is NaN, or nothing was measured."""
    return "-" if value is None else "exact" if value > 0 else "NaN"
