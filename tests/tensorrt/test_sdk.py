"""Which TensorRT is here, and what its version means."""

from __future__ import annotations

import sys

import fake_tensorrt
import pytest

from quantkit import plugins
from quantkit.errors import TargetError
from quantkit.interfaces import EngineCalibrator
from quantkit.tensorrt.cache import DEFAULT_VERSION
from quantkit.tensorrt.sdk import load_sdk


@pytest.mark.parametrize(
    ("text", "version", "number"),
    [
        ("8.6.1", (8, 6, 1), 8601),
        ("8.5.3.1", (8, 5, 3), 8503),
        ("10.9.0.34", (10, 9, 0), 100900),
        ("10.13.3.9", (10, 13, 3), DEFAULT_VERSION),
        ("10.16.1.post1", (10, 16, 1), 101601),
    ],
)
def test_a_version_is_written_as_caches_have_it(
    monkeypatch: pytest.MonkeyPatch, text: str, version: tuple[int, ...], number: int
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt.module(text))
    sdk = load_sdk()
    assert (sdk.version, sdk.number) == (version, number)


def test_what_is_too_old_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt.module("8.4.3"))
    with pytest.raises(TargetError, match=r"tensorrt 8\.4\.3 is too old"):
        load_sdk()


@pytest.mark.parametrize("name", plugins.names_of("calibrators", EngineCalibrator))
def test_each_calibrator_of_engines_names_its_class_and_algorithm(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    kind = plugins.find("calibrators", name, EngineCalibrator)()
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt.module())
    base = load_sdk().calibrator_base(kind)
    assert (base.__name__, base.algorithm) == (kind.base, kind.algorithm)
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt.module("11.0.0"))
    with pytest.raises(TargetError, match=f"11.0.0 has no {kind.base}: .* Q/DQ"):
        load_sdk().calibrator_base(kind)
