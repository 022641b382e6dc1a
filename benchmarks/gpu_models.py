"""ResNet-50, MobileNetV2 and BERT-base at full size with seeded weights, for speed on a GPU.

Nothing is downloaded and nothing was trained: their speed and parity are those of the real ones,
their accuracy means nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from benchmarks.families import awaken

Inputs = tuple[Tensor, ...]
_IMAGE, _TOKENS, _SEQUENCE = 224, 30522, 128


@dataclass(frozen=True, kw_only=True)
class GpuModel:
    """A model at full size.

    Attributes:
        name: short, for tables and file names.
        build: the untrained model.
        sample: inputs for a batch size, float32 images or int64 tokens.
        dynamic_shapes: the batch varies.
    """

    name: str
    build: Callable[[], nn.Module]
    sample: Callable[[int, torch.Generator], Inputs]
    dynamic_shapes: tuple[dict[int, Any], ...]

    def load(self) -> nn.Module:
        """In evaluation mode, the same weights on every call."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = _Plain(self.build())
            awaken(model, self.inputs(4, seed=1))
        return model.eval()

    def inputs(self, batch: int, seed: int = 0) -> Inputs:
        """Random inputs, the same for the same seed."""
        return self.sample(batch, torch.Generator().manual_seed(seed))

    def calibration(self, batches: int = 8, batch: int = 8) -> Iterator[Inputs]:
        """Batches that none of seed 0 equals."""
        return (self.inputs(batch, seed=100 + index) for index in range(batches))


class _Plain(nn.Module):
    """The logits alone, not the package's own kind of output."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(N, 3, 224, 224)`` or tokens ``(N, 128)`` to logits ``(N, classes)``."""
        logits: Tensor = self.model(x).logits
        return logits


def _resnet50() -> nn.Module:
    from transformers import ResNetConfig, ResNetForImageClassification

    return ResNetForImageClassification(ResNetConfig(num_labels=1000))


def _mobilenet_v2() -> nn.Module:
    from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

    return MobileNetV2ForImageClassification(MobileNetV2Config(num_labels=1000))


def _bert_base() -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    return BertForSequenceClassification(BertConfig(num_labels=2))


def _images(batch: int, generator: torch.Generator) -> Inputs:
    return (torch.randn(batch, 3, _IMAGE, _IMAGE, generator=generator),)


def _tokens(batch: int, generator: torch.Generator) -> Inputs:
    return (torch.randint(_TOKENS, (batch, _SEQUENCE), generator=generator),)


_BATCH = ({0: Dim("batch")},)
MODELS = (
    GpuModel(name="resnet50", build=_resnet50, sample=_images, dynamic_shapes=_BATCH),
    GpuModel(name="mobilenet_v2", build=_mobilenet_v2, sample=_images, dynamic_shapes=_BATCH),
    GpuModel(name="bert_base", build=_bert_base, sample=_tokens, dynamic_shapes=_BATCH),
)
