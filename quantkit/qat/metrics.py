"""What `finetune` may judge a model by, and learn from: top-1 accuracy, SQNR, cross-entropy."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import zip_longest
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from quantkit import batches
from quantkit.data import DataSpec
from quantkit.errors import DataError
from quantkit.model import QuantizedModel
from quantkit.qat.feeding import parted


def accuracy(data: Iterable[Any]) -> Callable[[nn.Module], float]:
    """A metric: the percentage of labels that a model's largest logit names (top-1).

    Args:
        data: batches, read anew at each call: pairs of inputs and labels, or a `DataSpec` with a
            label. Labels are numbers of classes, logits ``(N, classes, …)``.

    Raises:
        DataError: ``data`` is an iterator; at a call: there is no batch, or labels are missing,
            are no numbers of classes, or do not fit the model's output.

    Example:
        >>> pairs = [(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([1, 1]))]
        >>> accuracy(pairs)(nn.Identity())
        50.0
    """
    data = _rereadable(data)

    def measured(model: nn.Module) -> float:
        right = total = 0
        with evaluating(model):
            for index, (_, output, labels) in enumerate(results(model, data, labelled=True)):
                logits, classes = _logits_and_classes(output, labels, f"batch {index}: ")
                right += int((logits.argmax(dim=1) == classes).sum())
                total += classes.numel()
        return 100.0 * right / total

    return measured


def fidelity(data: Iterable[Any], reference: nn.Module) -> Callable[[nn.Module], float]:
    """A metric: the SQNR in dB of a model's outputs beside those of the float model.

    ``-10 log10(sum over the outputs of sum((model - ref)²) / sum(ref²))``, infinite where they
    are equal. What is not finite in the float model, such as a masked logit, does not count; where
    a model puts out NaN the metric is ``-inf``.

    Args:
        data: batches of inputs (or a `DataSpec`), read anew at each call, in the same order.
        reference: the float model. It runs once, now; its outputs are kept.

    Raises:
        DataError: ``data`` is an iterator or has no batch, or no output is of floats; at a call:
            data come in another order, or the model's outputs are of other shapes.

    Example:
        >>> net = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.constant_(net.weight, 0.9)
        >>> metric = fidelity([torch.tensor([[1.0], [2.0]])], nn.Identity())
        >>> round(metric(net), 4)
        20.0
    """
    data = _rereadable(data)
    with evaluating(reference):
        found = results(reference, data, labelled=False)
        kept = [(_digest(call), _floats(output)) for call, output, _ in found]
    outputs = len(kept[0][1])
    if not outputs:
        raise DataError("no output of the float model is of floats; give a metric of your own")

    def measured(model: nn.Module) -> float:
        sums = torch.zeros(outputs, 2, dtype=torch.float64)
        with evaluating(model):
            found = results(model, data, labelled=False)
            for index, (result, known) in enumerate(zip_longest(found, kept)):
                if result is None or known is None or _digest(result[0]) != known[0]:
                    raise DataError(
                        f"batch {index} is not the one that the float model has seen; give data "
                        "that come in the same order each time, and without random augmentation"
                    )
                sums += _noise_and_power(_floats(result[1]), known[1], index)
        share = float((sums[:, 0] / sums[:, 1].clamp(min=torch.finfo(sums.dtype).tiny)).sum())
        if not math.isfinite(share):
            return -math.inf
        return math.inf if share == 0.0 else -10.0 * math.log10(share)

    return measured


def cross_entropy(output: Any, labels: Any) -> Tensor:
    """A loss: the cross-entropy of logits ``(N, classes, …)`` and numbers of classes ``(N, …)``.

    Raises:
        DataError: labels are no numbers of classes, or do not fit the output.

    Example:
        >>> round(cross_entropy(torch.tensor([[0.0, 0.0]]), torch.tensor([1])).item(), 4)
        0.6931
    """
    logits, classes = _logits_and_classes(output, labels, "")
    return F.cross_entropy(logits.float(), classes)


def _rereadable(data: Iterable[Any]) -> Iterable[Any]:
    if isinstance(data, DataSpec):
        return data.open()
    if iter(data) is data:
        raise DataError(
            "data can be read only once (it is an iterator), and a metric reads it at each epoch; "
            "pass a list, a DataLoader or a DataSpec"
        )
    return data


def results(
    model: nn.Module, data: Iterable[Any], *, labelled: bool
) -> Iterator[tuple[batches.Call, Any, Any]]:
    """Each batch as a call of the model, what the model makes of it, and the labels."""
    device = next((p.device for p in model.parameters()), None)
    empty = True
    for index, batch in enumerate(data):
        empty = False
        inputs, labels = batch, None
        if labelled:
            instead = "measure fidelity, which needs no labels"
            inputs, labels = parted(batch, index, reader="accuracy", instead=instead)
        args, kwargs = _call(model, inputs, index)
        named = {name: x.to(device) for name, x in kwargs.items()}
        yield (args, kwargs), model(*(x.to(device) for x in args), **named), labels
    if empty:
        raise DataError("the data have no batch; give one at least")


def _call(model: nn.Module, inputs: object, index: int) -> batches.Call:
    """Inputs as the model takes them: a quantized one where it was captured with them."""
    ((args, kwargs),) = batches.as_batches([inputs], first=index)
    if not isinstance(model, QuantizedModel):
        return args, kwargs
    capture = model.capture
    args, kwargs = batches.bind_inputs(args, kwargs, capture.input_names[: len(capture.args)])
    batches.check_batch(
        args, kwargs, capture.args, capture.kwargs, index, dynamic_dims=capture.dynamic_dims
    )
    return args, kwargs


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """In evaluation mode and without gradients; afterwards in the mode that it was in."""
    modes = {part: part.training for part in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(modes[model])  # a QuantizedModel switches its graph as well
        for part, training in modes.items():
            part.training = training


def _logits_and_classes(output: Any, labels: Any, where: str) -> tuple[Tensor, Tensor]:
    """The one output of floats, and labels on its device that it has a logit for."""
    found = [x for x in pytree.tree_leaves(output) if _is_float(x)]
    if len(found) != 1 or found[0].dim() < 2:
        shapes = ", ".join(str(tuple(x.shape)) for x in found) or "none of floats"
        raise DataError(
            f"{where}labels need one output of logits (N, classes, …), the model's are {shapes}; "
            "leave the labels out"
        )
    (logits,) = found
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.is_complex():
        raise DataError(
            f"{where}labels are {getattr(labels, 'dtype', type(labels).__name__)}, not whole "
            "numbers of classes; convert them, or leave them out"
        )
    if labels.shape != logits.shape[:1] + logits.shape[2:]:
        raise DataError(
            f"{where}labels have shape {tuple(labels.shape)}, logits {tuple(logits.shape)}; give "
            "one label for each row of logits"
        )
    classes = labels.to(logits.device, torch.int64)
    low, high = (int(x) for x in classes.aminmax())
    if low < 0 or high >= logits.shape[1]:
        raise DataError(
            f"{where}there is a label {low if low < 0 else high}, and the model has "
            f"{logits.shape[1]} classes, from 0; correct the labels, or leave them out"
        )
    return logits, classes


def _noise_and_power(got: list[Tensor], wanted: list[Tensor], index: int) -> Tensor:
    """The squared error and the squared size of each output, ``(outputs, 2)``."""
    shapes, others = ([tuple(x.shape) for x in outputs] for outputs in (got, wanted))
    if shapes != others:
        raise DataError(
            f"batch {index}: the model's outputs have the shapes {shapes}, the float model's "
            f"{others}; give the float model that it was made of"
        )
    found = torch.zeros(len(wanted), 2, dtype=torch.float64)
    for row, own, other in zip(found, got, wanted, strict=True):
        told = other.isfinite()
        row[0] = (own[told].double() - other[told].double()).square().sum()
        row[1] = other[told].double().square().sum()
    return found


def _floats(output: Any) -> list[Tensor]:
    return [x.cpu() for x in pytree.tree_leaves(output) if _is_float(x)]


def _is_float(x: object) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()


def _digest(call: batches.Call) -> int:
    """A checksum of a batch: outputs of other batches are nothing to compare with."""
    digest = 0
    for x in pytree.tree_leaves(call):
        digest = zlib.crc32(x.cpu().contiguous().reshape(-1).view(torch.uint8).numpy(), digest)
    return digest
