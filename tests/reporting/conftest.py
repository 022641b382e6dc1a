"""One report of a small model, made once for all tests that look at one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from quantkit.benching.report import Method
from quantkit.reporting.report import Report, report

#: Short, since the tests look at what is told of times, not at the times.
QUICK = Method(turns=1, turn_ms=1.0, least_turns=1, seconds=0.1, warm_runs=1, warm_ms=1.0)


class Net(nn.Module):
    """A residual block, a layer that stays in float, and a name that is no HTML."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.conv = nn.Conv2d(16, 16, 3, padding=1)
        self.fc = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(self.conv(x) + x)
        return self.fc(x.mean((2, 3)))


def batches(count: int, *, labelled: bool = False) -> list[object]:
    generator = torch.Generator().manual_seed(0)
    found: list[object] = []
    for _ in range(count):
        images = torch.randn(8, 3, 8, 8, generator=generator)
        found.append((images, torch.arange(8) % 5) if labelled else images)
    return found


def small_net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture(scope="session")
def small_report() -> Report:
    """All sections but what only other machines have."""
    return report(
        small_net(), calibration=batches(4), evaluation=batches(2, labelled=True),
        targets=["onnxruntime", "tensorrt"], samples=32, trials=1, batches=[1], method=QUICK,
        name="<b>net</b>",
    )  # fmt: skip
