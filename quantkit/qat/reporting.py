"""How a training run tells of itself: a bar where somebody watches, TensorBoard, a callback."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from quantkit.errors import MissingDependencyError

if TYPE_CHECKING:
    from quantkit.qat.finetuning import Epoch

T = TypeVar("T")


class Reporter:
    """Shows progress while it is entered.

    Args:
        epochs: how many there will be.
        tensorboard: a folder for events; ``None``: no events.
        on_epoch: called with each epoch.

    Raises:
        MissingDependencyError: events are asked for, and TensorBoard is not installed.
    """

    def __init__(
        self,
        epochs: int,
        tensorboard: Path | str | None,
        on_epoch: Callable[[Epoch], None] | None,
    ) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
        )

        console = Console(stderr=True)
        self._epochs, self._on_epoch = epochs, on_epoch
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
            TimeElapsedColumn(), TextColumn("{task.fields[told]}"),
            console=console, disable=not console.is_terminal, transient=True,
        )  # fmt: skip
        self._task = self._bar.add_task("", total=None, told="")
        self._metric = ""
        self._writer = None if tensorboard is None else _writer(tensorboard)
        self._step = 0

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()
        if self._writer is not None:
            self._writer.close()

    def steps(self, items: Iterable[T], epoch: int, total: int | None = None) -> Iterator[T]:
        """The items, with the bar moving on at each."""
        self._bar.reset(
            self._task,
            total=total,
            description=f"epoch {epoch} of {self._epochs}",
            told=self._metric,
        )
        for item in items:
            yield item
            self._bar.advance(self._task)

    def loss(self, value: float) -> None:
        """The loss of a step."""
        self._step += 1
        self._bar.update(self._task, told=f"loss {value:.4g}{self._metric}")
        if self._writer is not None:
            self._writer.add_scalar("loss/step", value, self._step)

    def resume(self, steps: int) -> None:
        """Go on after so many steps of a run that was ended."""
        self._step = steps

    def epoch(self, epoch: Epoch) -> None:
        """An epoch that is over."""
        if epoch.metric is not None:
            self._metric = f", metric {epoch.metric:.4g}"
        if self._writer is not None:
            told = {"loss/epoch": epoch.loss, "metric": epoch.metric, "rate": epoch.learning_rate}
            for name, value in told.items():
                if value is not None and value == value:  # not NaN
                    self._writer.add_scalar(name, value, epoch.number)
        if self._on_epoch is not None:
            self._bar.stop()  # what is printed now would stand on its line, and be wiped out
            try:
                self._on_epoch(epoch)
            finally:
                self._bar.start()


def _writer(folder: Path | str) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingDependencyError(
            "TensorBoard is not installed, and events for it are asked for; run: "
            "pip install tensorboard"
        ) from error
    return SummaryWriter(str(folder))
