"""Block reconstruction with QDrop: learn the rounding of a block's weights together."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from quantkit import plugins
from quantkit.errors import RecipeError
from quantkit.fake_quantize import FakeQuantize
from quantkit.interfaces import BlockRounding, LayerRounding
from quantkit.reconstruction.block import Block
from quantkit.rounding._adaround import SoftWeight, annealed, regularizer
from quantkit.rounding._qdrop import LearnedGrids, error_of, mixed, mixed_values, soft_weight


@dataclass(frozen=True, kw_only=True)
class QDrop(BlockRounding):
    """Li et al. 2021 (BRECQ), arXiv:2102.05426; Wei et al. 2022 (QDrop), arXiv:2203.05740.

    All weights of a block learn which way they are rounded by the result that the block makes
    (BRECQ, section 3.2), while a share of its activations, each element by chance, is left in
    float (QDrop, equation 8), so that the minimum found is flat. The steps of its activations
    learn beside them (LSQ). It begins with what a rounding of layers has found, and what it learns
    is kept where that lowers the error of the block's result on samples that are held out.

    Attributes:
        samples: of the calibration data.
        batch: samples a step.
        iterations: steps a block.
        learning_rate: of the rounding, by Adam.
        grid_learning_rate: of the activations' steps, as a share of each; 0 leaves them.
        regularization: weight of the term that decides, against an error that is 1 a weight for
            nearest.
        warm: the share of the steps before that term sets in.
        drop: the share of activations left in float.
        seed: of the samples and elements drawn.
        begin: the rounding of layers that each block begins with; ``None``: nearest.
    """

    samples: int = 512
    batch: int = 32
    iterations: int = 1000
    learning_rate: float = 0.02
    grid_learning_rate: float = 1e-3
    regularization: float = 1.0
    warm: float = 0.2
    drop: float = 0.5
    seed: int = 0
    begin: str | None = "adaround"

    def __post_init__(self) -> None:
        if min(self.samples, self.batch, self.iterations) < 1:
            raise ValueError(
                "samples, batch and iterations must be 1 or more, got "
                f"{self.samples}, {self.batch}, {self.iterations}"
            )
        if not 0.0 <= self.drop < 1.0:
            raise ValueError(f"drop must be from 0 to below 1, got {self.drop}")

    @property
    def first(self) -> LayerRounding | None:
        """The rounding of layers, of the same samples."""
        if self.begin is None:
            return None
        return plugins.find("rounding", self.begin, LayerRounding)(samples=self.samples)  # type: ignore[call-arg]

    def round(self, block: Block) -> None:
        """Learn, and keep what is better than what the block begins with."""
        for layer in block.layers:
            if layer.qparams.spec.is_float:
                raise RecipeError(
                    f"{layer.name}: qdrop needs a grid of even steps, and {layer.qparams.spec} "
                    "has none; set rounding: gptq, or nearest"
                )
        soft = {layer.name: soft_weight(layer) for layer in block.layers}
        begun = {layer.name: layer.rounded for layer in block.layers}
        grids = LearnedGrids(block.activations if self.grid_learning_rate else {})
        before = error_of(block, begun)
        with torch.enable_grad():
            self._learn(block, soft, grids, before)
        learned = {name: s.settled() for name, s in soft.items()}
        better = error_of(block, learned, grids) < before
        if better:
            for name, qparams in grids.qparams().items():
                block.activations[name].set_qparams(qparams)
            for name, values in learned.items():
                block.set_weight(name, values)

    def _learn(
        self, block: Block, soft: dict[str, SoftWeight], grids: LearnedGrids, before: float
    ) -> None:
        generator = torch.Generator().manual_seed(self.seed)
        groups = [{"params": [s.v for s in soft.values()], "lr": self.learning_rate}]
        groups += [
            {"params": [p], "lr": self.grid_learning_rate * float(p.detach().abs().mean())}
            for p in grids.parameters
        ]
        optimizer = torch.optim.Adam(groups)
        weights = sum(s.v.numel() for s in soft.values())
        unit = max(before, 1e-30) / weights
        quantize = partial(self._dropped, grids, generator)
        for step, calls in enumerate(block.batches(self.batch, self.iterations, generator)):
            inputs = mixed_values(
                block.inputs(calls, quantized=False), block.inputs(calls, quantized=True),
                self.drop, generator,
            )  # fmt: skip
            h = {name: s.h for name, s in soft.items()}
            values = {name: s.soft(h[name]) for name, s in soft.items()}
            result = block.run(inputs, values, quantize=quantize)
            loss = (result - block.target(calls)).square().mean() / unit
            if beta := annealed(step, self.iterations, warm=self.warm):
                decided = torch.stack([regularizer(x, beta) for x in h.values()]).sum()
                loss = loss + self.regularization * decided
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    def _dropped(
        self, grids: LearnedGrids, generator: torch.Generator, quantizer: FakeQuantize, x: Tensor
    ) -> Tensor:
        """An activation on its grid, but for the elements that are left in float."""
        return mixed(x, grids.put(quantizer, x), self.drop, generator)
