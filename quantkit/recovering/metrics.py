"""What a candidate is judged by: its outputs on held-out data, beside labels or the float model's.

A model runs once over the data; every figure is computed from the outputs that are kept.
"""

from __future__ import annotations

import importlib
import math
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from quantkit.errors import DataError
from quantkit.qat import metrics
from quantkit.recovering.holdout import parted


@dataclass(frozen=True, kw_only=True, eq=False)
class Outputs:
    """What a model has put out on all held-out data.

    Attributes:
        batches: the tensors of floats of each batch.
        labels: of each batch; empty where the data have none.
    """

    batches: tuple[tuple[Tensor, ...], ...]
    labels: tuple[Tensor, ...] = ()

    @property
    def samples(self) -> int:
        """How many rows the first output has."""
        return sum(len(batch[0]) if batch[0].dim() else 1 for batch in self.batches)

    @property
    def verdicts(self) -> int:
        """How many predictions there are: one a row of logits, or one a place in it."""
        sizes = (b[0].numel() // (b[0].shape[1] if b[0].dim() > 1 else 1) for b in self.batches)
        return sum(sizes)

    def whole(self) -> tuple[Tensor, ...]:
        """Each output of all batches in one tensor."""
        return tuple(torch.cat(parts) for parts in zip(*self.batches, strict=True))

    def only(self) -> Tensor:
        """The one output of floats.

        Raises:
            DataError: there are several.
        """
        found = self.whole()
        if len(found) != 1:
            raise DataError(
                f"the model has {len(found)} outputs of floats, and this metric judges one; give "
                "a metric of your own, package.module:function"
            )
        return found[0]


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A figure of a model.

    Attributes:
        name: such as ``accuracy``.
        of: computes it from a model's outputs and those of the float model.
        unit: of its values.
        lower_is_better: as of an error.
        labelled: whether it reads labels.
        counts: whether it is the part of the samples that are right, in percent.
    """

    name: str
    of: Callable[[Outputs, Outputs], float]
    unit: str = ""
    lower_is_better: bool = False
    labelled: bool = True
    counts: bool = False

    def resolution(self, verdicts: int) -> float:
        """Points by which two models differ by luck, at the least; 0 where it is not known.

        Of ``n`` predictions in which one of two models is right and the other wrong, a lead of up
        to ``2 sqrt(n)`` may be chance (two standard errors: McNemar 1947). A lead is ``n`` at
        most, so one of less than 4 predictions never tells anything.

        Example:
            >>> KNOWN["accuracy"].resolution(200)
            1.5
        """
        return 100.0 * 3 / verdicts if self.counts else 0.0


def outputs_of(model: nn.Module, held_out: Iterable[Any], *, labelled: bool) -> Outputs:
    """Run a model over held-out data.

    Args:
        model: it is called as it was captured, in evaluation mode.
        held_out: batches of inputs, pairs with labels, or `Batch`.
        labelled: whether labels are kept.

    Raises:
        DataError: there is no batch, one does not fit the model, or no output is of floats.
    """
    labels: list[Tensor] = []

    def inputs() -> Iterable[Any]:
        for batch in held_out:
            own, label = parted(batch, labelled=labelled)
            if label is not None:
                labels.append(torch.as_tensor(label))
            yield own

    with metrics.evaluating(model):
        found = tuple(
            tuple(x.cpu() for x in pytree.tree_leaves(output) if _is_float(x))
            for _, output, _ in metrics.results(model, inputs(), labelled=False)
        )
    if not all(found):
        raise DataError("no output of the model is of floats, so there is nothing to judge")
    return Outputs(batches=found, labels=tuple(labels))


def sqnr(outputs: Outputs, reference: Outputs) -> float:
    """Signal to noise beside the float model, in dB, as `quantkit.qat.metrics.fidelity` has it.

    Example:
        >>> wanted, got = (Outputs(batches=((torch.tensor([x]),),)) for x in (10.0, 9.0))
        >>> round(sqnr(got, wanted), 4)
        20.0
    """
    share = 0.0
    for got, wanted in zip(outputs.whole(), reference.whole(), strict=True):
        told = wanted.isfinite()
        noise = float((got[told].double() - wanted[told].double()).square().sum())
        share += noise / max(float(wanted[told].double().square().sum()), 1e-300)
    if not math.isfinite(share):
        return -math.inf
    return math.inf if share == 0.0 else -10.0 * math.log10(share)


def accuracy(outputs: Outputs, reference: Outputs) -> float:
    """The percentage of labels that the largest logit names (top-1).

    Raises:
        DataError: labels are no numbers of classes, or do not fit the outputs.
    """
    if len(outputs.batches[0]) != 1:
        outputs.only()  # which tells
    # A masked logit, which is infinite, is the smallest there is.
    rows = zip(outputs.batches, outputs.labels, strict=True)
    pairs = [(x.nan_to_num(), y) for (x,), y in rows]
    return metrics.accuracy(pairs)(nn.Identity())


def agreement(outputs: Outputs, reference: Outputs) -> float:
    """The percentage of rows whose largest logit is that of the float model; needs no labels.

    Raises:
        DataError: there are several outputs, or none of rows of scores.
    """
    own, wanted = outputs.only(), reference.only()
    if own.dim() < 2 or own.shape[1] < 2:
        raise DataError(
            f"the output has shape {tuple(own.shape)}, no row of scores for each input; give a "
            "metric of your own, package.module:function"
        )
    return 100.0 * float((own.argmax(dim=1) == wanted.argmax(dim=1)).double().mean())


def spearman(outputs: Outputs, reference: Outputs) -> float:
    """100 times the rank correlation of one score a row with its label; ranks of ties are shared.

    Raises:
        DataError: there is not one score for each label.

    Example:
        >>> rising = Outputs(batches=((torch.tensor([1.0, 2.0, 4.0]),),),
        ...                  labels=(torch.tensor([0.1, 0.5, 0.7]),))
        >>> round(spearman(rising, rising), 6)
        100.0
    """
    scores, labels = _scores_and_labels(outputs)
    ranks = torch.stack([_ranks(scores), _ranks(labels)])
    found = float(torch.corrcoef(ranks)[0, 1])
    return 0.0 if math.isnan(found) else 100.0 * found  # all scores are equal


def mse(outputs: Outputs, reference: Outputs) -> float:
    """The mean squared error of the outputs beside their labels.

    Raises:
        DataError: labels are not of the outputs' shape.
    """
    scores, labels = _scores_and_labels(outputs)
    return float((scores - labels).square().mean())


#: The metrics that have a name.
KNOWN = {
    "accuracy": Metric(name="accuracy", of=accuracy, unit="%", counts=True),
    "agreement": Metric(name="agreement", of=agreement, unit="%", labelled=False, counts=True),
    "mse": Metric(name="mse", of=mse, lower_is_better=True),
    "spearman": Metric(name="spearman", of=spearman),
}


def own_metric(call: Callable[[Any, Any], float], name: str, *, labelled: bool) -> Metric:
    """A metric of the user's: ``call(outputs, labels)``, the higher the better.

    ``outputs`` is the model's one tensor of floats, or a tuple of them, of all held-out data;
    ``labels`` is one tensor, or ``None`` where the data have none (``labelled``).
    """

    def of(outputs: Outputs, reference: Outputs) -> float:
        found = outputs.whole()
        labels = torch.cat(outputs.labels) if outputs.labels else None
        return float(call(found[0] if len(found) == 1 else found, labels))

    return Metric(name=name, of=of, labelled=labelled)


def find_metric(name: str, *, labelled: bool) -> Metric:
    """A metric by its name, or by ``package.module:function``.

    ``labelled``: whether the data have labels, for a function of the user's.

    Raises:
        DataError: there is no such metric.
    """
    if name in KNOWN:
        return KNOWN[name]
    module, colon, function = name.partition(":")
    if not colon:
        module, _, function = name.rpartition(".")
    # An installed command, other than `python -m`, does not look into the working directory.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        call = getattr(importlib.import_module(module), function) if module else None
    except (ImportError, AttributeError) as error:
        raise DataError(
            f"metric {name}: cannot be imported ({error}); give package.module:function"
        ) from error
    if not callable(call):
        raise DataError(
            f"no metric {name!r}; there are: {', '.join(KNOWN)}; or give "
            "package.module:function, which takes outputs and labels"
        )
    return own_metric(call, name, labelled=labelled)


def _scores_and_labels(outputs: Outputs) -> tuple[Tensor, Tensor]:
    scores, labels = outputs.only().double(), torch.cat(outputs.labels).double()
    if scores.shape != labels.shape and scores.numel() == labels.numel():
        scores = scores.reshape(labels.shape)
    if scores.shape != labels.shape:
        raise DataError(
            f"outputs have shape {tuple(scores.shape)}, labels {tuple(labels.shape)}; give one "
            "label for each value, or a metric of your own, package.module:function"
        )
    return scores, labels


def _ranks(values: Tensor) -> Tensor:
    """The mean place of each value among all, in order of size."""
    values = values.flatten()
    _, places, counts = torch.unique(values, return_inverse=True, return_counts=True)
    middles: Tensor = counts.cumsum(0).double() - (counts.double() - 1.0) / 2.0
    return middles.index_select(0, places)


def _is_float(x: object) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()
