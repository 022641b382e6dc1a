"""A target beside ONNX Runtime, for the same file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import qdq_models as nets
import torch
from qdq_models import save

from quantkit.comparing import TargetParity, compare_target
from quantkit.errors import DataError, TargetError
from quantkit.targets.onnxruntime import OnnxRuntime
from quantkit.targets.tensorrt_rtx import TensorRTRTX


@dataclass(frozen=True, kw_only=True)
class Off(OnnxRuntime):
    """ONNX Runtime, with outputs that are off by some."""

    by: float = 0.0
    as_if: type = np.float32
    ran: list[int] = field(default_factory=list)

    def run(
        self, model: Path, batches: Sequence[Mapping[str, np.ndarray]]
    ) -> list[list[np.ndarray]]:
        self.ran.append(len(batches))
        outputs = OnnxRuntime(exact=True).run(model, batches)
        return [[(array + self.by).astype(self.as_if) for array in arrays] for arrays in outputs]


def rows(count: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(16, 64, generator=generator) for _ in range(count)]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save(nets.matmul(), tmp_path)


def only(outputs: tuple[tuple[TargetParity, ...], int]) -> TargetParity:
    ((output,), batches) = outputs
    assert batches == 3
    return output


def test_the_same_is_the_same_over_all_batches_in_one_run(model: Path) -> None:
    target = Off()
    output = only(compare_target(model, target, rows()))
    assert target.ran == [3]  # a target that builds does so once
    assert output.name
    assert (output.sqnr, output.largest, output.relative) == (math.inf, 0.0, 0.0)
    assert output.agreement == 1.0


def test_figures_are_those_of_their_definitions(model: Path) -> None:
    exact = [OnnxRuntime(exact=True).run(model, [{"x": x.numpy()}])[0][0] for x in rows()]
    y = np.stack(exact).astype(np.float64)
    off = np.float32(0.25)
    output = only(compare_target(model, Off(by=0.25), rows()))
    apart = (y.astype(np.float32) + off).astype(np.float64) - y
    assert output.sqnr == pytest.approx(10 * np.log10((y**2).sum() / (apart**2).sum()))
    assert output.largest == pytest.approx(np.abs(apart).max())
    assert output.relative == pytest.approx((np.abs(apart) / np.abs(y)).max())
    assert output.agreement == 1.0


def test_outputs_in_half_are_compared_as_numbers(model: Path) -> None:
    output = only(compare_target(model, Off(as_if=np.float16), rows()))
    assert 60 < output.sqnr < 90
    assert 0 < output.relative < 2e-3


def test_what_is_not_a_number_is_told_as_such(model: Path) -> None:
    output = only(compare_target(model, Off(by=math.nan), rows()))
    assert math.isnan(output.sqnr)
    assert math.isnan(output.relative)


def test_the_default_mode_of_onnx_runtime_stands_in_for_a_target(model: Path) -> None:
    output = only(compare_target(model, OnnxRuntime(), rows()))
    assert output.sqnr > 20


def test_data_that_do_not_fit_and_outputs_of_another_shape_are_errors(model: Path) -> None:
    with pytest.raises(DataError, match="the file takes x"):
        compare_target(model, Off(), [{"z": torch.ones(16, 64)}])

    class Cut(Off):
        def run(
            self, model: Path, batches: Sequence[Mapping[str, np.ndarray]]
        ) -> list[list[np.ndarray]]:
            return [[array[:1] for array in arrays] for arrays in super().run(model, batches)]

    with pytest.raises(TargetError, match=r"shapes \[\(1, 32\)\] on Cut, and \[\(16, 32\)\]"):
        compare_target(model, Cut(), rows())


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has an NVIDIA GPU")
def test_a_target_that_cannot_run_here_says_so(model: Path) -> None:
    with pytest.raises(TargetError, match="needs an NVIDIA GPU"):
        compare_target(model, TensorRTRTX(), rows())
