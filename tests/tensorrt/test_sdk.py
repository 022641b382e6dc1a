"""Which TensorRT is here, and what its version means."""

from __future__ import annotations

import json
import sys

import fake_tensorrt
import pytest

from quantkit import plugins
from quantkit.errors import TargetError
from quantkit.interfaces import EngineCalibrator
from quantkit.tensorrt.cache import DEFAULT_VERSION
from quantkit.tensorrt.sdk import load_sdk
from quantkit.tensorrt.settings import BuildOptions, Settings


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


ALL = BuildOptions(
    workspace=1,
    optimization_level=0,
    version_compatible=True,
    hardware_compatible="same_compute_capability",
)


@pytest.mark.parametrize(
    ("text", "option", "options"),
    [
        ("8.5.3", "optimization_level", BuildOptions(optimization_level=3)),
        ("8.5.3", "version_compatible", BuildOptions(version_compatible=True)),
        (
            "8.6.1",
            "hardware_compatible",
            BuildOptions(hardware_compatible="same_compute_capability"),
        ),
    ],
)
def test_what_a_version_does_not_have_is_refused_by_its_name(
    monkeypatch: pytest.MonkeyPatch, text: str, option: str, options: BuildOptions
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt.module(text))
    with pytest.raises(TargetError, match=f"tensorrt {text} has no .*, which {option} needs"):
        load_sdk().settings(options, calibrated=False, quantized=True)
    load_sdk().settings(BuildOptions(workspace=1 << 20), calibrated=False, quantized=True)


def test_settings_go_to_a_child_process_and_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt.module())
    made = load_sdk().settings(ALL, calibrated=False, quantized=True)
    assert Settings.of(json.loads(json.dumps(made.plain()))) == made
