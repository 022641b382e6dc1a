"""Engines of TensorRT-RTX as files: what they hold, and how they are written."""

import importlib.util
import re
from pathlib import Path

import pytest
import qdq_models as nets
import torch
from onnx import numpy_helper
from qdq_models import save

from quantkit.errors import TargetError
from quantkit.targets.tensorrt_rtx import TensorRTRTX
from quantkit.tensorrt import trust
from quantkit.tensorrt.engine_record import EngineRecord
from quantkit.tensorrt.fingerprint import Fingerprint

needs_sdk = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason='TensorRT-RTX is not installed: pip install "quantkit[rtx]"',
)


@needs_sdk
def test_the_engine_holds_the_int8_weights_byte_for_byte(tmp_path: Path) -> None:
    model = nets.conv_relu_conv()
    output = tmp_path / "model.engine"

    report = TensorRTRTX().build(save(model, tmp_path), output)

    engine = output.read_bytes()
    assert report.covered == 2
    for tensor in model.graph.initializer:
        if tensor.name in ("w1_q", "w2_q"):
            krsc = numpy_helper.to_array(tensor).transpose(0, 2, 3, 1)
            assert engine.count(krsc.tobytes()) == 1
            assert (krsc + 1).tobytes() not in engine


@needs_sdk
def test_a_refused_build_leaves_the_old_engine_and_no_other_file(tmp_path: Path) -> None:
    model = save(nets.shifted_zero(), tmp_path)
    output = tmp_path / "model.engine"
    output.write_bytes(b"old")

    with pytest.raises(TargetError, match=r"d1_q: Non-zero zero point .* Fix: "):
        TensorRTRTX().build(model, output)

    assert output.read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.engine", "model.onnx"]
    with pytest.raises(TargetError, match="folder does not exist"):
        TensorRTRTX().build(model, tmp_path / "nowhere" / "model.engine")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has an NVIDIA GPU")
def test_running_without_a_gpu_is_explained(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="needs an NVIDIA GPU"):
        TensorRTRTX().run(tmp_path / "model.onnx", [])


@needs_sdk
def test_an_engine_has_its_record_beside_it_and_is_known_here(tmp_path: Path) -> None:
    model, output = save(nets.matmul(), tmp_path), tmp_path / "model.engine"
    report = TensorRTRTX().build(model, output)
    record = EngineRecord.read(output)
    assert record is not None
    assert re.fullmatch(r"tensorrt_rtx \d+\.\d+\.\d+\.\d+", record.built_by)
    assert (record.gpu, record.model) == ("SM86", Fingerprint.of(model))
    assert record.layers == report.layers
    assert trust.is_known(record.sha256)
    assert trust.hash_file(output) == record.sha256


def test_an_engine_of_somebody_else_is_not_run_without_trust(tmp_path: Path) -> None:
    engine = tmp_path / "found.engine"
    engine.write_bytes(b"found")
    with pytest.raises(TargetError, match=r"found\.engine is not loaded.*trust_engine=True"):
        TensorRTRTX().run(engine, [])
