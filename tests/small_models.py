"""Small networks, one for each pattern that the placement rules know, shared by the tests.

Every network has 16 channels or more (below that int8 does not pay), weights and batch-norm
statistics that differ from channel to channel, and is the same on every call.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn


class SmallModel(nn.Module, ABC):
    """A network that knows what it takes."""

    @abstractmethod
    def sample(self, batch: int, generator: torch.Generator) -> Tensor:
        """Random input of ``batch`` rows."""

    def inputs(self, batch: int = 2, seed: int = 0) -> tuple[Tensor, ...]:
        """Random inputs, the same for the same seed."""
        return (self.sample(batch, torch.Generator().manual_seed(seed)),)

    @property
    def example_inputs(self) -> tuple[Tensor, ...]:
        """Two rows, to capture the network with; the first dimension may be dynamic."""
        return self.inputs()


class ImageModel(SmallModel):
    """A network that takes images of 3 channels, 16 x 16."""

    def sample(self, batch: int, generator: torch.Generator) -> Tensor:
        """Shape ``(batch, 3, 16, 16)``."""
        return torch.randn(batch, 3, 16, 16, generator=generator)


class ConvBN(nn.Sequential):
    """Convolution without bias that keeps the size (at stride 1), batch-norm and activation."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 3,
        stride: int = 1,
        groups: int = 1,
        act: type[nn.Module] = nn.ReLU,
    ) -> None:
        conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        super().__init__(conv, nn.BatchNorm2d(outputs), act())


class Basic(nn.Module):
    """ResNet's basic block; the shortcut is a 1x1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = ConvBN(inputs, outputs, 3, stride)
        self.conv2 = ConvBN(outputs, outputs, act=nn.Identity)
        project = ConvBN(inputs, outputs, 1, stride, act=nn.Identity)
        self.shortcut = nn.Identity() if inputs == outputs and stride == 1 else project

    def forward(self, x: Tensor) -> Tensor:
        """``(N, inputs, H, W)`` to ``(N, outputs, H / stride, W / stride)``."""
        return F.relu(self.conv2(self.conv1(x)) + self.shortcut(x))


class ResNet(ImageModel):
    """Two basic blocks: an identity shortcut and a projection shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvBN(3, 16)
        self.identity, self.projection = Basic(16, 16), Basic(16, 32, stride=2)
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, 3, 16, 16)`` to ``(N, 16)``."""
        x = self.projection(self.identity(self.stem(x)))
        out: Tensor = self.fc(self.pool(x).flatten(1))
        return out


class Bottleneck(ImageModel):
    """ResNet-50's block: 1x1, 3x3, 1x1, added in place to the skip with a ReLU after."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvBN(3, 64, stride=2)
        self.reduce, self.spatial = ConvBN(64, 16, 1), ConvBN(16, 16)
        self.expand, self.relu = ConvBN(16, 64, 1, act=nn.Identity), nn.ReLU(inplace=True)
        self.fc = nn.Linear(64, 16)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, 3, 16, 16)`` to ``(N, 16)``."""
        skip = self.stem(x)
        x = self.expand(self.spatial(self.reduce(skip)))
        x += skip
        out: Tensor = self.fc(self.relu(x).mean((2, 3)))
        return out


class InvertedResidual(ImageModel):
    """MobileNetV2's block: expand, depthwise, linear projection; ReLU6; one adds, one strides."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvBN(3, 16, act=nn.ReLU6)
        self.adding, self.striding = self._block(16, 16, 1), self._block(16, 24, 2)
        self.fc = nn.Linear(24, 16)

    @staticmethod
    def _block(inputs: int, outputs: int, stride: int) -> nn.Sequential:
        wide = 4 * inputs
        return nn.Sequential(
            ConvBN(inputs, wide, 1, act=nn.ReLU6),
            ConvBN(wide, wide, 3, stride, groups=wide, act=nn.ReLU6),
            ConvBN(wide, outputs, 1, act=nn.Identity),
        )

    def forward(self, x: Tensor) -> Tensor:
        """``(N, 3, 16, 16)`` to ``(N, 16)``."""
        x = self.stem(x)
        x = self.striding(x + self.adding(x))
        out: Tensor = self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return out


class Inception(ImageModel):
    """Convolutions of three sizes and a pooled branch, concatenated and read by a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvBN(3, 16)
        self.one, self.three = ConvBN(16, 16, 1), ConvBN(16, 32)
        self.five = nn.Sequential(ConvBN(16, 16, 1), ConvBN(16, 16, 5))
        self.pooled = nn.Sequential(nn.MaxPool2d(3, 1, 1), ConvBN(16, 16, 1))
        self.mix, self.fc = ConvBN(80, 32, 1), nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, 3, 16, 16)`` to ``(N, 16)``."""
        x = self.stem(x)
        x = torch.cat([self.one(x), self.three(x), self.five(x), self.pooled(x)], dim=1)
        out: Tensor = self.fc(self.mix(x).mean((2, 3)))
        return out


class UNet(ImageModel):
    """Down, up and a skip by concatenation; up is nearest resizing or a transposed convolution."""

    def __init__(self, *, transposed: bool) -> None:
        super().__init__()
        self.down1, self.down2 = ConvBN(3, 16), ConvBN(16, 32, stride=2)
        self.bottom = ConvBN(32, 32)
        self.up = nn.ConvTranspose2d(32, 32, 2, stride=2) if transposed else None
        self.merge, self.head = ConvBN(48, 16), nn.Conv2d(16, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, 3, 16, 16)`` to ``(N, 16, 16, 16)``."""
        skip = self.down1(x)
        x = self.bottom(self.down2(skip))
        x = F.interpolate(x, scale_factor=2.0, mode="nearest") if self.up is None else self.up(x)
        out: Tensor = self.head(self.merge(torch.cat([x, skip], dim=1)))
        return out


class MultiBranch(ImageModel):
    """One tensor read by a convolution, a max-pool and an average-pool; their sum goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = ConvBN(3, 16), ConvBN(16, 16, stride=2)
        self.max, self.avg = nn.MaxPool2d(2), nn.AvgPool2d(2)
        self.after_max, self.after_avg = ConvBN(16, 16, 1), ConvBN(16, 16, 1)
        self.fc = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, 3, 16, 16)`` to ``(N, 16)``."""
        x = self.stem(x)
        x = self.conv(x) + self.after_max(self.max(x)) + self.after_avg(self.avg(x))
        out: Tensor = self.fc(F.relu(x).mean((2, 3)))
        return out


class Encoder(SmallModel):
    """One pre-LN transformer encoder layer: 4 heads of 16, scaled dot-product attention, GELU."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(64), nn.LayerNorm(64)
        self.query, self.key, self.value = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 64)
        self.proj, self.fc1, self.fc2 = nn.Linear(64, 64), nn.Linear(64, 128), nn.Linear(128, 64)

    def sample(self, batch: int, generator: torch.Generator) -> Tensor:
        """Shape ``(batch, 24, 64)``."""
        return torch.randn(batch, 24, 64, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, T, 64)`` to ``(N, T, 64)``."""
        y = self.norm1(x)
        heads = [linear(y).unflatten(-1, (4, 16)) for linear in (self.query, self.key, self.value)]
        attended = F.scaled_dot_product_attention(*(head.transpose(1, 2) for head in heads))
        x = x + self.proj(attended.transpose(1, 2).flatten(2))
        out: Tensor = x + self.fc2(F.gelu(self.fc1(self.norm2(x))))
        return out


class MLP(SmallModel):
    """Linear layers with LayerNorm, ReLU and a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.norm = nn.Linear(32, 64), nn.LayerNorm(64)
        self.fc2, self.fc3 = nn.Linear(64, 64), nn.Linear(64, 16)

    def sample(self, batch: int, generator: torch.Generator) -> Tensor:
        """Shape ``(batch, 32)``."""
        return torch.randn(batch, 32, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, 32)`` to ``(N, 16)``."""
        x = F.relu(self.norm(self.fc1(x)))
        out: Tensor = self.fc3(F.relu(x + self.fc2(x)))
        return out


def _alive(make: Callable[[], SmallModel]) -> SmallModel:
    """A seeded network as after training: channels differ in size, batch-norm knows them."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = make()
        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                spread = torch.empty(module.weight.shape[0]).uniform_(-1, 1).exp2()
                module.weight *= spread.view(-1, *[1] * (module.weight.dim() - 1))
            elif isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0.0, 0.3)
        norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
        for norm in norms:
            norm.momentum = 1.0
        model.train()(*model.inputs(32, seed=1))
        for norm in norms:
            norm.momentum = 0.1
    return model.eval()


def resnet() -> SmallModel:
    """Basic blocks with an identity and a projection shortcut."""
    return _alive(ResNet)


def bottleneck() -> SmallModel:
    """A bottleneck block with an in-place add and an in-place ReLU."""
    return _alive(Bottleneck)


def inverted_residual() -> SmallModel:
    """Depthwise convolutions and ReLU6."""
    return _alive(InvertedResidual)


def inception() -> SmallModel:
    """Four branches into one concatenation."""
    return _alive(Inception)


def unet_nearest() -> SmallModel:
    """A U-Net that resizes to the nearest."""
    return _alive(lambda: UNet(transposed=False))


def unet_transposed() -> SmallModel:
    """A U-Net with a transposed convolution."""
    return _alive(lambda: UNet(transposed=True))


def multi_branch() -> SmallModel:
    """Convolution, max-pool and average-pool of one tensor, added."""
    return _alive(MultiBranch)


def encoder() -> SmallModel:
    """A transformer encoder layer."""
    return _alive(Encoder)


def mlp() -> SmallModel:
    """Linear layers and LayerNorm."""
    return _alive(MLP)


CONVOLUTIONAL = (resnet, bottleneck, inverted_residual, inception, multi_branch)
ALL = (*CONVOLUTIONAL, unet_nearest, unet_transposed, encoder, mlp)
