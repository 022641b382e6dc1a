"""The networks of the zoo, written out in plain PyTorch; they load the published weights."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut without weights (He et al. 2015, option A)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.widen = stride, outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        """``(N, inputs, H, W)`` to ``(N, outputs, H / stride, W / stride)``."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.widen:
            half = self.widen // 2
            x = x[:, :, :: self.stride, :: self.stride]
            x = F.pad(x, (0, 0, 0, 0, half, self.widen - half))
        return F.relu(y + x)


class ResNet20(nn.Module):
    """ResNet-20 for CIFAR-10 (He et al. 2015, section 4.2): 0.27 million weights."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, 1)
        self.layer2 = self._stage(16, 32, 2)
        self.layer3 = self._stage(32, 64, 2)
        self.linear = nn.Linear(64, 10)

    @staticmethod
    def _stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
        rest = (ResidualBlock(outputs, outputs, 1) for _ in range(2))
        return nn.Sequential(ResidualBlock(inputs, outputs, stride), *rest)

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(N, 3, 32, 32)`` to logits ``(N, 10)``."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


class SameConv(nn.Conv2d):
    """A convolution with TensorFlow's SAME padding, for strides that divide the input's size.

    The amount is then ``kernel - stride`` whatever the size, with the odd row at the bottom and
    right: a constant of the layer, so that the layer is captured for every batch size.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1
    ) -> None:
        before, after = (kernel - stride) // 2, (kernel - stride + 1) // 2
        even = before if before == after else 0
        super().__init__(inputs, outputs, kernel, stride, even, groups=groups, bias=False)
        self.uneven = None if before == after else (before, after, before, after)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, inputs, H, W)`` to ``(N, outputs, H / stride, W / stride)``."""
        return super().forward(x if self.uneven is None else F.pad(x, self.uneven))


def _batchnorm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


class InvertedResidual(nn.Module):
    """Expand, depthwise, project (Sandler et al. 2018, figure 4b), in the checkpoint's names."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expand: int) -> None:
        super().__init__()
        wide = inputs * expand
        self.expands, self.adds = expand != 1, stride == 1 and inputs == outputs
        if self.expands:
            self.expand_conv, self.bn0 = SameConv(inputs, wide, 1), _batchnorm(wide)
        self.depthwise_conv = SameConv(wide, wide, kernel, stride, groups=wide)
        self.bn1 = _batchnorm(wide)
        self.project_conv, self.bn2 = SameConv(wide, outputs, 1), _batchnorm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, inputs, H, W)`` to ``(N, outputs, H / stride, W / stride)``."""
        y = F.relu6(self.bn0(self.expand_conv(x))) if self.expands else x
        y = F.relu6(self.bn1(self.depthwise_conv(y)))
        y = self.bn2(self.project_conv(y))
        out: Tensor = x + y if self.adds else y
        return out


#: Stages of EfficientNet-B0 (Tan and Le 2019, table 1): repeats, kernel, stride, expand, outputs.
LITE0_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


class EfficientNetLite0(nn.Module):
    """EfficientNet-B0 without squeeze-excite and with ReLU6; sizes must be multiples of 32."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_stem, self.bn0 = SameConv(3, 32, 3, 2), _batchnorm(32)
        blocks, channels = [], 32
        for repeats, kernel, stride, expand, outputs in LITE0_STAGES:
            for repeat in range(repeats):
                step = stride if repeat == 0 else 1
                blocks.append(InvertedResidual(channels, outputs, kernel, step, expand))
                channels = outputs
        self.blocks = nn.Sequential(*blocks)
        self.conv_head, self.bn1 = SameConv(channels, 1280, 1), _batchnorm(1280)
        self.fc = nn.Linear(1280, 1000)

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(N, 3, 224, 224)`` to logits ``(N, 1000)``."""
        x = self.blocks(F.relu6(self.bn0(self.conv_stem(x))))
        x = F.relu6(self.bn1(self.conv_head(x)))
        logits: Tensor = self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


class SentenceEncoder(nn.Module):
    """BERT, mean pooling over the real tokens, and L2 normalisation."""

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Token numbers and mask, both int64 ``(N, T)``, to unit vectors ``(N, 384)``."""
        hidden = self.bert(
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=torch.zeros_like(input_ids),
        ).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
        return F.normalize((hidden * mask).sum(1) / mask.sum(1).clamp_min(1.0), dim=-1)
