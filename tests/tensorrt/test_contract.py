"""NVIDIA's own binding calls our calibrators as it should; no GPU and no TensorRT is needed.

The binding is real (the wheel `tensorrt-cu13-bindings`); the libraries that it links to are
empty ones, compiled here, and the calls that TensorRT would make are made in its place.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest
import qdq_models as nets
import tensorrt_vtable
from qdq_models import save

COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")


def _missing() -> str | None:
    try:
        found = version("tensorrt-cu13-bindings")
    except PackageNotFoundError:
        return "needs the wheel: pip install tensorrt-cu13-bindings==10.13.3.9"
    if not found.startswith("10."):
        return f"needs bindings of TensorRT 10, here are those of {found}"
    return None if COMPILER else "needs a C compiler (cc, gcc or clang)"


pytestmark = pytest.mark.skipif(_missing() is not None, reason=_missing() or "")


@pytest.fixture(scope="module")
def drive(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Callable[..., Any]:
    """Runs a scenario of `tensorrt_vtable` in a process of its own."""
    assert COMPILER is not None
    folder = tmp_path_factory.mktemp("libraries")
    source = folder / "empty.c"
    source.write_text(
        "".join(f"void *{name}(void) {{ return 0; }}\n" for name in tensorrt_vtable.ENTRY_POINTS)
    )
    for name in tensorrt_vtable.LIBRARIES:
        options = ["-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", str(folder / name)]
        subprocess.run([COMPILER, *options, str(source)], check=True)
    paths = os.pathsep.join([str(root), str(root / "tests")])

    def run(scenario: str, *arguments: str) -> Any:
        program = [sys.executable, "-P", tensorrt_vtable.__file__, str(folder), scenario]
        done = subprocess.run(
            [*program, *arguments],
            env=os.environ | {"PYTHONPATH": paths},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


def test_every_batch_arrives_byte_for_byte_and_then_the_end(drive: Callable[..., Any]) -> None:
    told = drive("serve")
    sent = [
        [row[name].numpy().tobytes().hex() for name in ("index", "image: a")]
        for row in tensorrt_vtable.batches()
    ]
    assert told == {"batch_size": 2, "got": sent, "after": None}


def test_an_exception_is_the_end_of_the_data_for_the_binding_and_raised_by_us(
    drive: Callable[..., Any],
) -> None:
    told = drive("error")
    assert told["served"] == [True, False, False]
    assert told["raised"] == "the disk is gone"
    assert told["written"] == 0


def test_the_cache_goes_out_and_in_as_it_is(drive: Callable[..., Any]) -> None:
    told = drive("cache")
    text = tensorrt_vtable.CACHE.decode()
    assert told == {"none": None, "written": [[text, 3]], "read": text}


def test_each_calibrator_is_the_one_of_its_name(drive: Callable[..., Any]) -> None:
    assert drive("algorithms") == ["ENTROPY_CALIBRATION_2", "MINMAX_CALIBRATION"]


def test_a_build_where_tensorrt_does_not_start_is_told_so(
    drive: Callable[..., Any], tmp_path: Path
) -> None:
    save(nets.float_net(), tmp_path)
    told = drive("build", str(tmp_path))
    assert "tensorrt 10.13.3 does not start" in told
    assert "NVIDIA GPU" in told


def test_the_bindings_alone_are_no_tensorrt() -> None:
    assert importlib.util.find_spec("tensorrt_bindings") is not None
    spec = importlib.util.find_spec("tensorrt")
    if spec is not None and spec.origin is not None:
        pytest.skip("TensorRT itself is installed")
    from quantkit.errors import MissingDependencyError
    from quantkit.tensorrt.sdk import load_sdk

    with pytest.raises(MissingDependencyError, match="TensorRT cannot be loaded"):
        load_sdk()
