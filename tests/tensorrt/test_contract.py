"""NVIDIA's own binding calls our calibrators as it should; no GPU and no TensorRT is needed.

The binding is real (the wheel `tensorrt-cu13-bindings`); the libraries that it links to are
empty ones, compiled here, and the calls that TensorRT would make are made in its place.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import qdq_models as nets
import real_tensorrt
import tensorrt_vtable
from qdq_models import save


@pytest.fixture(scope="module")
def told(bindings: Callable[[int], Path]) -> dict[str, Any]:
    """What came of each scenario of `tensorrt_vtable`."""
    found: dict[str, Any] = real_tensorrt.run(bindings(10), "tensorrt_vtable.py", "everything")
    return found


def test_every_batch_arrives_byte_for_byte_and_then_the_end(told: dict[str, Any]) -> None:
    sent = [
        [row[name].numpy().tobytes().hex() for name in ("index", "image: a")]
        for row in tensorrt_vtable.batches()
    ]
    assert told["serve"] == {"batch_size": 2, "got": sent, "after": None}


def test_an_exception_is_the_end_of_the_data_for_the_binding_and_kept_by_us(
    told: dict[str, Any],
) -> None:
    assert told["error"]["served"] == [True, False, False]
    assert told["error"]["raised"] == "the disk is gone"
    assert told["error"]["written"] == 0


def test_the_cache_goes_out_and_in_as_it_is(told: dict[str, Any]) -> None:
    text = tensorrt_vtable.CACHE.decode()
    assert told["cache"] == {"none": None, "written": [[text, 3]], "read": text}


def test_each_calibrator_is_the_one_of_its_name(told: dict[str, Any]) -> None:
    assert told["algorithms"] == ["ENTROPY_CALIBRATION_2", "MINMAX_CALIBRATION"]


def test_a_build_where_tensorrt_does_not_start_is_told_so(
    bindings: Callable[[int], Path], tmp_path: Path
) -> None:
    save(nets.float_net(), tmp_path)
    told = real_tensorrt.run(bindings(10), "tensorrt_vtable.py", "build", str(tmp_path))
    assert "tensorrt 10.13.3 does not start" in told
    assert "NVIDIA GPU" in told


@pytest.mark.skipif(real_tensorrt.missing(10) is not None, reason=real_tensorrt.missing(10) or "")
def test_the_bindings_alone_are_no_tensorrt() -> None:
    assert importlib.util.find_spec("tensorrt_bindings") is not None
    spec = importlib.util.find_spec("tensorrt")
    if spec is not None and spec.origin is not None:
        pytest.skip("TensorRT itself is installed")
    from quantkit.errors import MissingDependencyError
    from quantkit.tensorrt.sdk import load_sdk

    with pytest.raises(MissingDependencyError, match="TensorRT cannot be loaded"):
        load_sdk()
