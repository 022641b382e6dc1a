"""A small network for handwritten digits, trained from nothing in seconds: the demo's model.

The data is scikit-learn's ``load_digits``: 1,797 grey images of 8 x 8, no download. Run this file
to see the float accuracy that quantization has to keep.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from quantkit.progress import track


@dataclass(frozen=True, kw_only=True)
class Digits:
    """Images, float32 ``(N, 1, 8, 8)`` from 0 to 1, and labels, int64 ``(N,)``; no image twice.

    Attributes:
        train: 1,309 images to train with.
        calib: 128 images to calibrate with.
        test: 360 images to judge with.
    """

    train: tuple[Tensor, Tensor]
    calib: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


def load_digits_data() -> Digits:
    """The digits in three parts, every part with all classes alike, the same on every call.

    Example:
        >>> digits = load_digits_data()
        >>> digits.train[0].shape, len(digits.calib[0]), len(digits.test[0])
        (torch.Size([1309, 1, 8, 8]), 128, 360)
    """
    images, labels = load_digits(return_X_y=True)
    rest, test, rest_labels, test_labels = train_test_split(
        images, labels, test_size=360, random_state=0, stratify=labels
    )
    train, calib, train_labels, calib_labels = train_test_split(
        rest, rest_labels, test_size=128, random_state=0, stratify=rest_labels
    )

    def tensors(pixels: object, classes: object) -> tuple[Tensor, Tensor]:
        x = torch.as_tensor(pixels, dtype=torch.float32) / 16
        return x.view(-1, 1, 8, 8), torch.as_tensor(classes, dtype=torch.int64)

    return Digits(
        train=tensors(train, train_labels),
        calib=tensors(calib, calib_labels),
        test=tensors(test, test_labels),
    )


def _conv_bn(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Module:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


class DigitsNet(nn.Module):
    """A residual block, a striding convolution and a depthwise-separable block that adds."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _conv_bn(1, 64, 3)
        self.conv1, self.conv2 = _conv_bn(64, 64, 3), _conv_bn(64, 64, 3)
        self.down = _conv_bn(64, 128, 3, stride=2)
        self.depthwise, self.pointwise = _conv_bn(128, 128, 3, groups=128), _conv_bn(128, 128, 1)
        self.fc = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(N, 1, 8, 8)`` to logits ``(N, 10)``."""
        x = F.relu(self.stem(x))
        x = F.relu(x + self.conv2(F.relu(self.conv1(x))))
        x = F.relu(self.down(x))
        x = F.relu(x + self.pointwise(F.relu(self.depthwise(x))))
        logits: Tensor = self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


def accuracy(model: nn.Module, part: tuple[Tensor, Tensor]) -> float:
    """Percent of the part's images that ``model`` names rightly."""
    images, labels = part
    with torch.inference_mode():
        predicted = model(images).argmax(dim=1)
    return 100.0 * float((predicted == labels).double().mean())


@contextmanager
def _one_thread() -> Iterator[None]:
    """One thread is as fast for so small a network, and many times faster on a busy machine.

    The sums are then in the same order too, however many cores there are.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def train(digits: Digits, *, epochs: int = 8, seed: int = 0, progress: bool = True) -> DigitsNet:
    """A trained ``DigitsNet`` in evaluation mode; the same for the same seed, on one machine."""
    images, labels = digits.train
    with _one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = DigitsNet().train()
        steps = epochs * (len(images) // 64)  # a last, smaller batch would unsettle batch-norm
        optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=steps)
        for _ in track(range(epochs), "training") if progress else range(epochs):
            order = torch.randperm(len(images))[: steps // epochs * 64]
            for batch in order.view(-1, 64):
                loss = F.cross_entropy(model(images[batch]), labels[batch], label_smoothing=0.1)
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                optimizer.step()
                schedule.step()
    return model.eval()


if __name__ == "__main__":
    data = load_digits_data()
    print(f"float test accuracy: {accuracy(train(data), data.test):.2f} %")
