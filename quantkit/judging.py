"""Which of some grids serves a model best, judged by its outputs.

The error e of one tensor moves the outputs by J e, to first order, where J is the Jacobian of the
outputs with respect to that tensor. Its size follows from random probes without ever forming J:
for v of independent signs, the mean of ``(vᵀ J e)²`` is ``|J e|²`` (Hutchinson 1990), and
``vᵀ J`` is one backward pass, the same for every grid of every tensor. So a few passes over some
samples tell, for all tensors and all grids, what each would cost at the outputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from quantkit import numerics
from quantkit.batches import Call
from quantkit.errors import DataError
from quantkit.fake_quantize import FakeQuantize
from quantkit.model import QuantizedModel
from quantkit.numerics import QParams

#: Backward passes a call: each sample counts as often.
PROBES = 2
#: A tensor leaves the set that is best as a whole for a gain of so many standard errors.
SIGNIFICANT = 2.0

#: Grids for every quantizer of an activation, in order.
Grids = Sequence[QParams]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What judging found.

    Attributes:
        chosen: for each tensor the number of the candidate that is best for it.
        sqnr: signal to noise at the outputs, in dB, of each candidate as a whole.
        chosen_sqnr: that of the choice; never below the best of ``sqnr``.
    """

    chosen: tuple[int, ...]
    sqnr: tuple[float, ...]
    chosen_sqnr: float


def judge(model: QuantizedModel, calls: Sequence[Call], candidates: Sequence[Grids]) -> Verdict:
    """Which grids of activations disturb the model's outputs least on some samples.

    Each candidate runs as a whole, quantized. From the best of them a tensor departs where the
    estimated effect of another is significantly less; what comes of that runs too, and is taken
    if it is better. So the choice is never worse, on these samples, than any candidate alone.

    Args:
        model: prepared; its weights are quantized. Its grids stay as they are.
        calls: the samples.
        candidates: sets of grids.

    Raises:
        DataError: there are no samples, or no output is of floats.
    """
    quantizers = [q for q in model.of_role("activation") if q.observer is not None]
    with _evaluating(model):
        noises = _noises(model, quantizers, calls, candidates)
        best = min(range(len(candidates)), key=lambda i: noises[i])
        chosen = _departures(_effects(model, quantizers, calls, candidates), best)
        mixture = [candidates[number][i] for i, number in enumerate(chosen)]
        (noise,) = _noises(model, quantizers, calls, [mixture])
    if not noise < noises[best]:
        chosen, noise = [best] * len(quantizers), noises[best]
    return Verdict(
        chosen=tuple(chosen), sqnr=tuple(map(_decibels, noises)), chosen_sqnr=_decibels(noise)
    )


def _departures(effects: Tensor, best: int) -> list[int]:
    """The candidate for each tensor: ``best``, or one whose effect is significantly less.

    Args:
        effects: squared effects of each probe on each sample, ``(tensors, candidates, draws)``.
        best: of the candidates.
    """
    gains = effects[:, best : best + 1] - effects
    mean = gains.mean(dim=2)
    error = gains.std(dim=2, correction=0) / math.sqrt(gains.shape[2])
    worth = torch.where(mean > SIGNIFICANT * error, mean, 0.0)
    worth[:, best] = torch.finfo(worth.dtype).tiny  # where none is worth more
    return [int(number) for number in worth.argmax(dim=1)]


def _effects(
    model: QuantizedModel,
    quantizers: Sequence[FakeQuantize],
    calls: Sequence[Call],
    candidates: Sequence[Grids],
) -> Tensor:
    """Squared effects on the outputs, ``(tensors, candidates, draws)``."""
    generator = torch.Generator().manual_seed(0)
    model.simulate(False)
    draws = []
    for args, kwargs in calls:
        with _watched(quantizers) as seen, torch.enable_grad():
            outputs = _floats(model(*args, **kwargs))
        owners = [(i, x) for i, xs in enumerate(seen) for x in xs]
        moved = [y for y in outputs if y.requires_grad]  # by some quantizer
        if not (owners and moved):
            continue
        gradients = [
            torch.autograd.grad(
                moved, [x for _, x in owners], [_probe(y, generator) for y in moved],
                retain_graph=probe < PROBES - 1, allow_unused=True,
            )
            for probe in range(PROBES)
        ]  # fmt: skip
        samples = max((x.shape[0] for x in (*args, *kwargs.values()) if x.dim()), default=1)
        draws.append(_effects_of_one(owners, gradients, candidates, len(quantizers), samples))
    if not draws:
        return torch.zeros(len(quantizers), len(candidates), 1, dtype=torch.float64)
    return torch.cat(draws, dim=2)


def _effects_of_one(
    owners: Sequence[tuple[int, Tensor]],
    gradients: Sequence[Sequence[Tensor | None]],
    candidates: Sequence[Grids],
    tensors: int,
    samples: int,
) -> Tensor:
    """Each sample's ``(vᵀ J e)²`` for each probe: ``(tensors, candidates, probes * samples)``."""
    moved = torch.zeros(tensors, len(candidates), PROBES, samples, dtype=torch.float64)
    same = [_first_alike([grids[i] for grids in candidates]) for i in range(tensors)]
    with torch.no_grad():
        for place, (index, x) in enumerate(owners):
            # Windows, say, are folded into the first dimension, each sample's in a row.
            alone = x.dim() > 1 and x.shape[0] % samples == 0
            for number, grids in enumerate(candidates):
                if same[index][number] != number:
                    continue
                error = numerics.fake_quantize(x.detach(), grids[index]) - x.detach()
                for probe, of_probe in enumerate(gradients):
                    if (gradient := of_probe[place]) is not None:
                        effect = error * gradient
                        # What all samples share moves each by its part of the whole.
                        whole = effect.sum() / samples
                        part = effect.reshape(samples, -1).sum(1) if alone else whole
                        moved[index, number, probe] += part.double().cpu()
    for index, firsts in enumerate(same):
        moved[index] = moved[index, firsts]
    return moved.square().flatten(2)


def _first_alike(grids: Sequence[QParams]) -> list[int]:
    """For each grid the number of the first that is equal: calibrators often agree."""

    def equal(a: QParams, b: QParams) -> bool:
        return torch.equal(a.scale, b.scale) and torch.equal(a.zero_point, b.zero_point)

    return [next(n for n, other in enumerate(grids) if equal(own, other)) for own in grids]


def _noises(
    model: QuantizedModel,
    quantizers: Sequence[FakeQuantize],
    calls: Sequence[Call],
    candidates: Sequence[Grids],
) -> list[float]:
    """The outputs' noise over their power under each candidate, summed over the outputs."""
    sums: Tensor | None = None
    with torch.no_grad():
        for args, kwargs in calls:
            model.simulate(False)
            wanted = _floats(model(*args, **kwargs))
            found = torch.zeros(len(candidates) + 1, len(wanted), dtype=torch.float64)
            # What is no number in the float model, such as a masked logit, no grid can move.
            told = [y.isfinite() for y in wanted]
            found[-1] = torch.tensor([_energy(y[t]) for y, t in zip(wanted, told, strict=True)])
            for number, grids in enumerate(candidates):
                for quantizer, qparams in zip(quantizers, grids, strict=True):
                    quantizer.set_qparams(qparams)
                model.simulate()
                got = _floats(model(*args, **kwargs))
                errors = [_energy(a[t] - b[t]) for a, b, t in zip(wanted, got, told, strict=True)]
                found[number] = torch.tensor(errors)
            sums = found if sums is None else sums + found
    if sums is None or sums.numel() == 0:
        raise DataError(
            "the outputs cannot be judged: there are no samples, or no output is of floats; give "
            "calibration data, or set samples: 0"
        )
    shares = sums[:-1] / sums[-1].clamp(min=torch.finfo(sums.dtype).tiny)
    # A candidate whose outputs are no numbers is the worst there is.
    return shares.sum(dim=1).nan_to_num(nan=math.inf, posinf=math.inf).tolist()


def _decibels(noise: float) -> float:
    return math.inf if noise == 0.0 else -10.0 * math.log10(noise)


def _energy(x: Tensor) -> float:
    return float(x.double().square().sum())


@contextmanager
def _evaluating(model: QuantizedModel) -> Iterator[None]:
    """In evaluation mode; afterwards with its mode, grids and switches as they were."""
    training, quantizers = model.training, list(model.quantizers.values())
    before = [
        (q.quantizing, q.calibrated, q.scale.clone(), q.zero_point.clone()) for q in quantizers
    ]
    model.eval()
    try:
        yield
    finally:
        model.train(training)
        for quantizer, (quantizing, calibrated, scale, zero_point) in zip(
            quantizers, before, strict=True
        ):
            quantizer.scale.copy_(scale)
            quantizer.zero_point.copy_(zero_point)
            quantizer.calibrated = calibrated
            quantizer.quantize_values(quantizing)


def _probe(y: Tensor, generator: torch.Generator) -> Tensor:
    """Independent signs over the size of an output, so that all outputs count alike."""
    signs = torch.randint(0, 2, y.shape, generator=generator).to(y) * 2 - 1
    known = y.detach().isfinite()
    # In float64: the square of a float16 overflows from 256 on.
    power = y.detach().double().where(known, 0.0).square().sum() / known.sum().clamp(min=1)
    size = power.sqrt().clamp(min=torch.finfo(y.dtype).tiny)
    return (signs / size).to(y).where(known, 0.0)


def _floats(outputs: Any) -> list[Tensor]:
    leaves = pytree.tree_leaves(outputs)
    return [x for x in leaves if isinstance(x, Tensor) and x.is_floating_point()]


@contextmanager
def _watched(quantizers: Sequence[FakeQuantize]) -> Iterator[list[list[Tensor]]]:
    """What goes through each quantizer, as tensors of their own with a gradient."""
    seen: list[list[Tensor]] = [[] for _ in quantizers]

    def watch(index: int) -> Callable[..., Tensor]:
        def hook(module: FakeQuantize, args: Any, output: Tensor) -> Tensor:
            # A leaf in the sum: there is a gradient also where the parameters want none.
            own = output + torch.zeros((), requires_grad=True, device=output.device)
            seen[index].append(own)
            return own

        return hook

    handles = [q.register_forward_hook(watch(i)) for i, q in enumerate(quantizers)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
