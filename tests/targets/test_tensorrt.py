"""The flow of a TensorRT build with a fake SDK; and what is said where there is none."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_tensorrt
import numpy as np
import onnx
import pytest
import qdq_models as nets
import torch
from fake_tensorrt import batches_of, facts_of
from qdq_models import save

from quantkit.calibrators.tensorrt_entropy2 import TensorRTEntropy2
from quantkit.calibrators.tensorrt_minmax import TensorRTMinMax
from quantkit.comparing import compare_target
from quantkit.errors import DataError, MissingDependencyError, ModelFileError, TargetError
from quantkit.spec import QuantSpec, Scheme
from quantkit.targets.onnxruntime import OnnxRuntime
from quantkit.targets.tensorrt import TensorRT
from quantkit.tensorrt.cache import read_cache
from quantkit.tensorrt.fingerprint import Fingerprint
from quantkit.tensorrt.record import CacheRecord

MODEL = nets.float_net()


def images(count: int, batch: int = 1) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(batch, 8, 16, 16, generator=generator) for _ in range(count)]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save(MODEL, tmp_path)


@pytest.fixture
def dynamic(tmp_path: Path) -> Path:
    proto = onnx.ModelProto()
    proto.CopyFrom(MODEL)
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    return save(proto, tmp_path)


@pytest.fixture
def sdk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Installs a version, here and for child processes."""

    def install(version: str = "10.13.3.9", **behaviour: Any) -> Any:
        return fake_tensorrt.install(monkeypatch, tmp_path / "sdk", version, **behaviour)

    install()
    return install


def calibrated(cache: Path | None = None, data: object = None, **options: Any) -> TensorRT:
    return TensorRT(calibrator=TensorRTEntropy2(), data=data, cache=cache, **options)


# The calibrator route


def test_a_float_file_becomes_an_engine_and_a_cache(sdk: Any, model: Path, tmp_path: Path) -> None:
    cache, engine = tmp_path / "some.cache", tmp_path / "some.engine"
    data = images(3)

    report = calibrated(cache, data).build(model, engine)

    assert [b["x"].tobytes() for b in batches_of(engine)] == [x.numpy().tobytes() for x in data]
    assert cache.read_text() == facts_of(engine)["cache"]
    largest = np.float32(max(x.abs().max() for x in data))
    assert read_cache(cache).scales == {"x": float(largest / np.float32(127))}
    assert report.target == "tensorrt 10.13.3"
    assert report.findings == ()


def test_what_the_cache_was_made_for_lies_beside_it(sdk: Any, model: Path, tmp_path: Path) -> None:
    cache = tmp_path / "some.cache"
    calibrated(cache, images(3)).build(model, tmp_path / "some.engine")

    record = CacheRecord.read(cache)

    assert record is not None
    assert record.fingerprint == Fingerprint.of(model)
    assert (record.algorithm, record.batches) == ("EntropyCalibration2", 3)
    assert (record.tensorrt, record.data) == ("tensorrt 10.13.3", "list of 3")
    assert set(json.loads((tmp_path / "some.cache.json").read_text())) == {
        "fingerprint", "algorithm", "tensorrt", "data", "batches", "sha256"
    }  # fmt: skip


def test_the_cache_is_used_again_and_no_batch_is_read(
    sdk: Any, model: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "some.cache"
    calibrated(cache, images(3)).build(model, tmp_path / "first.engine")
    before = {f.name: f.stat().st_mtime_ns for f in tmp_path.glob("some.cache*")}

    def untouchable() -> Iterator[torch.Tensor]:
        raise AssertionError("a batch was read")
        yield

    for data in (untouchable(), None):
        report = calibrated(cache, data).build(model, tmp_path / "second.engine")
        assert report.findings == ()
        facts = facts_of(tmp_path / "second.engine")
        assert (facts["batches"], facts["cache"]) == ([], cache.read_text())

    assert {f.name: f.stat().st_mtime_ns for f in tmp_path.glob("some.cache*")} == before


def test_a_cache_of_another_model_is_refused_before_anything_is_built(
    sdk: Any, model: Path, tmp_path: Path
) -> None:
    cache, engine = tmp_path / "some.cache", tmp_path / "some.engine"
    calibrated(cache, images(2)).build(model, engine)
    before = engine.read_bytes()
    save(nets.float_net(), tmp_path)  # the same graph, other weights

    with pytest.raises(ModelFileError, match=r"other weights of the same graph\. Delete it"):
        calibrated(cache, images(2)).build(model, engine)

    assert engine.read_bytes() == before
    calibrated(cache, trust_cache=True).build(model, engine)
    assert batches_of(engine) == []


def test_a_cache_of_another_tool_is_used_only_if_it_is_trusted(
    sdk: Any, model: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "some.cache"
    cache.write_text("TRT-101303-EntropyCalibration2\nx: 3c010a14\n")

    with pytest.raises(ModelFileError, match=r"nothing tells its model .*--trust-cache"):
        calibrated(cache, images(2)).build(model, tmp_path / "some.engine")
    assert not (tmp_path / "some.engine").exists()
    calibrated(cache, trust_cache=True).build(model, tmp_path / "some.engine")
    assert facts_of(tmp_path / "some.engine")["cache"] == cache.read_text()


def test_a_cache_that_was_replaced_or_is_of_another_algorithm_is_refused(
    sdk: Any, model: Path, tmp_path: Path
) -> None:
    cache, engine = tmp_path / "some.cache", tmp_path / "some.engine"
    calibrated(cache, images(2)).build(model, engine)

    minmax = TensorRT(calibrator=TensorRTMinMax(), data=images(2), cache=cache)
    with pytest.raises(ModelFileError, match="EntropyCalibration2, the calibrator is MinMaxCal"):
        minmax.build(model, engine)
    cache.write_bytes(cache.read_bytes() + b"y: 3c010a14\n")
    with pytest.raises(ModelFileError, match="it was changed after its record"):
        calibrated(cache, images(2)).build(model, engine)
    CacheRecord.path(cache).write_text("{}")
    with pytest.raises(ModelFileError, match="not the record of a calibration cache"):
        calibrated(cache, images(2)).build(model, engine)


def test_a_cache_that_tensorrt_does_not_take_is_told(sdk: Any, model: Path, tmp_path: Path) -> None:
    cache = tmp_path / "some.cache"
    calibrated(cache, images(2)).build(model, tmp_path / "some.engine")
    sdk(header="TRT-101600")

    report = calibrated(cache, images(3)).build(model, tmp_path / "some.engine")

    assert "cache-not-taken" in {f.code for f in report.findings}
    assert read_cache(cache).version == "101600"
    record = CacheRecord.read(cache)
    assert record is not None
    assert record.batches == 3
    sdk(header="TRT-101700")
    with pytest.raises(DataError, match="did not take the calibration cache"):
        calibrated(cache).build(model, tmp_path / "some.engine")


def test_an_error_in_the_data_is_raised_and_no_file_is_written(
    sdk: Any, model: Path, tmp_path: Path
) -> None:
    cache, engine = tmp_path / "some.cache", tmp_path / "some.engine"
    engine.write_bytes(b"a good engine")

    def failing() -> Iterator[torch.Tensor]:
        yield from images(2)
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        calibrated(cache, failing()).build(model, engine)

    assert engine.read_bytes() == b"a good engine"
    assert not cache.exists()
    assert not CacheRecord.path(cache).exists()


@pytest.mark.parametrize(
    ("data", "why"),
    [
        ([(torch.zeros(1, 8, 16, 16), torch.zeros(1))], "takes 1: x: float32"),
        ([torch.zeros(1, 8, 16, 16), torch.zeros(1, 8, 16, 15)], r"batch 1.*\(1, 8, 16, 15\)"),
        ([{"image": torch.zeros(1, 8, 16, 16)}], "the inputs \\[image\\], the network takes 1"),
        ([], "no batch"),
    ],
)
def test_data_that_does_not_fit_is_refused(
    sdk: Any, model: Path, tmp_path: Path, data: object, why: str
) -> None:
    with pytest.raises(DataError, match=why):
        calibrated(None, data).build(model, tmp_path / "some.engine")
    assert not (tmp_path / "some.engine").exists()


def test_batches_are_cut_to_what_a_fixed_network_takes(
    sdk: Any, model: Path, tmp_path: Path
) -> None:
    (data,) = images(1, batch=5)
    calibrated(None, [data]).build(model, tmp_path / "some.engine")
    got = [b["x"] for b in batches_of(tmp_path / "some.engine")]
    assert np.array_equal(np.concatenate(got), data.numpy())
    assert len(got) == 5


def test_a_dynamic_network_is_calibrated_in_batches_of_the_datas_size(
    sdk: Any, dynamic: Path, tmp_path: Path
) -> None:
    data = [*images(2, batch=4), *images(1, batch=3)]

    report = calibrated(None, data).build(dynamic, tmp_path / "some.engine")

    facts = facts_of(tmp_path / "some.engine")
    assert [b["x"].shape[0] for b in batches_of(tmp_path / "some.engine")] == [4, 4]
    assert facts["calibration_profile"]["x"][1] == [4, 8, 16, 16]
    (profile,) = facts["profiles"]
    assert [shape[0] for shape in profile["x"]] == [1, 8, 32]
    rest = next(f for f in report.findings if f.code == "calibration-rest")
    assert "last 3 samples fill no batch of 4" in rest.why


def test_a_cache_needs_a_profile_too_but_no_data(sdk: Any, dynamic: Path, tmp_path: Path) -> None:
    cache = tmp_path / "some.cache"
    sizes = {"x": ((1, 8, 16, 16), (2, 8, 16, 16), (4, 8, 16, 16))}
    calibrated(cache, images(2, batch=4)).build(dynamic, tmp_path / "some.engine")
    calibrated(cache, shapes=sizes).build(dynamic, tmp_path / "some.engine")
    facts = facts_of(tmp_path / "some.engine")
    assert facts["calibration_profile"]["x"][1] == [2, 8, 16, 16]
    assert facts["profiles"] == [{"x": [list(size) for size in sizes["x"]]}]


def test_a_build_that_fails_keeps_the_ranges_but_writes_no_engine(
    sdk: Any, model: Path, tmp_path: Path
) -> None:
    sdk(broken=True)
    cache, engine = tmp_path / "some.cache", tmp_path / "some.engine"
    with pytest.raises(TargetError, match="No kernel was found"):
        calibrated(cache, images(2)).build(model, engine)
    assert not engine.exists()
    assert read_cache(cache).scales.keys() == {"x"}


def test_a_crash_while_it_calibrates_ends_no_more_than_the_child(
    sdk: Any, model: Path, tmp_path: Path
) -> None:
    sdk(crash="build")
    cache, engine = tmp_path / "some.cache", tmp_path / "some.engine"
    with pytest.raises(TargetError, match=r"The builder crashed \(SIGSEGV\)"):
        calibrated(cache, images(2)).build(model, engine)
    assert not engine.exists()
    assert not cache.exists()


def test_ctrl_c_in_the_data_ends_the_child_and_is_raised(
    sdk: Any, model: Path, tmp_path: Path
) -> None:
    def interrupted() -> Iterator[torch.Tensor]:
        yield from images(1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrated(tmp_path / "some.cache", interrupted()).build(model, tmp_path / "some.engine")
    assert not (tmp_path / "some.cache").exists()


@pytest.mark.parametrize(
    ("raised", "kind", "why"),
    [
        ("OutOfMemoryError('no memory')", TargetError, "OutOfMemoryError: no memory.*smaller"),
        ("MissingDependencyError('run pip')", MissingDependencyError, "^run pip$"),
    ],
)
def test_what_goes_wrong_with_memory_in_the_child_is_raised_here(
    sdk: Any, model: Path, tmp_path: Path, raised: str, kind: type[Exception], why: str
) -> None:
    module = tmp_path / "sdk" / "tensorrt.py"
    module.write_text(
        module.read_text()
        + "from quantkit.errors import *\nclass OutOfMemoryError(Exception): pass\n"
        + f"def refuse(kind):\n    raise {raised}\nbuffers.open_buffers = refuse\n"
    )
    with pytest.raises(kind, match=why):
        calibrated(None, images(2)).build(model, tmp_path / "some.engine")


# One path for both


def test_a_calibrator_for_a_file_with_qdq_is_refused(sdk: Any, tmp_path: Path) -> None:
    path = save(nets.conv_relu_conv(), tmp_path)
    target = calibrated(None, images(1))
    with pytest.raises(TargetError, match="TensorRT ignores a calibrator"):
        target.build(path, tmp_path / "some.engine")
    assert "calibrator-ignored" in {f.code for f in target.inspect(path).findings}
    assert not (tmp_path / "some.engine").exists()


def test_layers_that_a_calibrator_has_quantized_are_told(
    sdk: Any, model: Path, tmp_path: Path
) -> None:
    report = calibrated(None, images(2)).build(model, tmp_path / "some.engine")
    assert [(layer.node, layer.precision, layer.reason) for layer in report.layers] == [
        ("conv1", "int8", ""),
        ("conv2", "int8", ""),
    ]


def test_a_file_for_a_calibrator_is_inspected_without_its_data(
    sdk: Any, model: Path, tmp_path: Path
) -> None:
    def untouchable() -> Iterator[torch.Tensor]:
        raise AssertionError("a batch was read")
        yield

    report = calibrated(None, untouchable()).inspect(model)
    assert "parsed, not built" in next(
        f.why for f in report.findings if f.code == "coverage-unknown"
    )
    assert report.ok


def test_since_tensorrt_11_a_calibrator_is_refused_with_the_way_to_qdq(
    sdk: Any, model: Path, tmp_path: Path
) -> None:
    sdk("11.4.0.106")
    with pytest.raises(TargetError) as raised:
        calibrated(None, images(1)).build(model, tmp_path / "some.engine")
    for part in ("tensorrt 11.4.0", "since TensorRT 11 (June 2026)", "quantkit quantize",
                 "quantkit migrate", 'pip install "tensorrt<11"'):  # fmt: skip
        assert part in str(raised.value)
    assert not (tmp_path / "some.engine").exists()


# Without an SDK


@pytest.fixture(params=["no package", "only a folder of that name", "no libnvinfer"])
def absent(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: Any
) -> None:
    """`tensorrt` cannot be had, in each of the ways in which that happens."""
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    if request.param == "no package":
        monkeypatch.setitem(sys.modules, "tensorrt", None)
        return
    package = tmp_path_factory.mktemp("path") / "tensorrt"
    package.mkdir()
    if request.param == "no libnvinfer":
        why = "libnvinfer.so.10: cannot open shared object file"
        (package / "__init__.py").write_text(f"raise ImportError({why!r})")
    monkeypatch.syspath_prepend(package.parent)


def test_its_absence_is_explained(absent: None, model: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingDependencyError, match=r'pip install "tensorrt<11"'):
        TensorRT().build(model, tmp_path / "some.engine")


def test_inspection_goes_as_far_as_it_can_without_it(absent: None, tmp_path: Path) -> None:
    path = save(nets.shifted_zero(), tmp_path)
    report = TensorRT().inspect(path)
    assert not report.ok
    assert {f.code for f in report.findings} >= {"nonzero-zero-point", "not-parsed"}


def test_what_is_wrong_with_the_file_is_told_before_tensorrt_is_missed(
    absent: None, model: Path, tmp_path: Path
) -> None:
    with pytest.raises(ModelFileError, match=r"no ONNX file .*none\.onnx"):
        TensorRT().build(tmp_path / "none.onnx", tmp_path / "some.engine")
    model.write_bytes(b"no model at all")
    with pytest.raises(TargetError, match="not an ONNX file"):
        TensorRT().build(model, tmp_path / "some.engine")
    assert [f.code for f in TensorRT().inspect(model).findings] == ["unreadable-model"]
    with pytest.raises(TargetError, match="its folder does not exist"):
        TensorRT().build(model, tmp_path / "none" / "some.engine")


def test_running_without_a_gpu_names_the_alternative(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(TargetError, match=r"needs an NVIDIA GPU.*onnxruntime"):
        TensorRT().run(model, [])
    engine = model.with_suffix(".engine")
    engine.write_bytes(b"of somebody else")
    with pytest.raises(TargetError, match=r"loading it runs what is in it.*trust_engine=True"):
        TensorRT().run(engine, [])
    with pytest.raises(TargetError, match="needs an NVIDIA GPU"):
        TensorRT(trust_engine=True).run(engine, [])


def test_a_cache_that_is_not_there_needs_data(model: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"some\.cache is not there, and no data is given"):
        calibrated(tmp_path / "some.cache").build(model, tmp_path / "some.engine")


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"data": [1]}, "data given, and no calibrator"),
        ({"cache": Path("a"), "data": [1]}, "data and cache given, and no calibrator"),
        ({"calibrator": TensorRTEntropy2()}, "needs data, or a cache"),
        ({"buffers": "numpy"}, "buffers must be torch or pycuda"),
        ({"shapes": {"x": ((1,), (1,))}}, "three shapes"),
        ({"compute_capability": "nine"}, "no compute capability"),
        ({"shapes": {"x": ((2,), (1,), (3,))}}, "must grow from the smallest"),
        ({"workspace": 0}, "workspace must be 1 byte or more"),
        ({"optimization_level": 6}, "from 0 to 5, got 6"),
        ({"hardware_compatible": "turing"}, "ampere_plus or same_compute_capability"),
        ({"timeout_s": 0.0}, "timeout_s must be more than 0"),
    ],
)
def test_wrong_options_are_refused_at_birth(options: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        TensorRT(**options)


def test_schemes_are_judged_by_the_gpu_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    fp8 = Scheme(weights=QuantSpec(dtype="fp8_e4m3"), activations=QuantSpec(dtype="fp8_e4m3"))
    codes = {f.code for f in TensorRT(compute_capability="A100").refusals([fp8])}
    assert codes == {"fp8-hardware"}
    assert TensorRT(compute_capability="9.0").refusals([fp8]) == []
    assert TensorRT().refusals([fp8]) == []


def test_convolutions_on_turing_are_no_warning_here() -> None:
    int8 = Scheme(weights=QuantSpec(axis=0), activations=QuantSpec())
    assert TensorRT(compute_capability="T4").refusals([int8]) == []


# With all of it


@pytest.mark.gpu
def test_a_real_build_calibrates_runs_and_uses_its_cache_again(model: Path, tmp_path: Path) -> None:
    tensorrt = pytest.importorskip("tensorrt", reason='needs pip install "tensorrt<11"')
    if not hasattr(tensorrt, "IInt8EntropyCalibrator2"):
        pytest.skip(f"TensorRT {getattr(tensorrt, '__version__', '?')} has no calibrator")
    cache = tmp_path / "some.cache"
    calibrated(cache, images(8)).build(model, tmp_path / "first.engine")
    text = cache.read_bytes()
    assert read_cache(cache).algorithm == "EntropyCalibration2"
    report = calibrated(cache).build(model, tmp_path / "second.engine")
    assert "cache-not-taken" not in {f.code for f in report.findings}
    assert cache.read_bytes() == text
    (outputs,) = calibrated(cache).run(model, [{"x": images(1)[0].numpy()}])
    assert np.isfinite(outputs[0]).all()


@pytest.mark.gpu
def test_a_real_engine_of_qdq_runs_in_int8_as_onnx_runtime_does(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt", reason="needs pip install tensorrt")
    path = save(nets.conv_relu_conv("batch"), tmp_path)
    sizes = ((1, 8, 16, 16), (2, 8, 16, 16), (4, 8, 16, 16))
    target = TensorRT(
        shapes={"x": sizes},
        workspace=1 << 30,
        timing_cache=tmp_path / "timing.cache",
        engine_cache=tmp_path / "engines",
    )
    engine = tmp_path / "some.engine"
    report = target.build(path, engine)
    assert report.covered == report.planned == 2, report
    assert (tmp_path / "timing.cache").stat().st_size > 0
    again = target.build(path, tmp_path / "again.engine")
    assert "engine-from-cache" in {finding.code for finding in again.findings}

    data = [*images(2, batch=1), *images(2, batch=4), *images(1, batch=3)]
    for graph in (False, True):
        (output,), batches = compare_target(path, replace(target, cuda_graph=graph), data)
        assert batches == 5
        assert output.sqnr > 30, output
        with TensorRT(cuda_graph=graph).runner(engine) as runner:
            for x in data:
                on_device = x.cuda()
                (out,) = runner({"x": on_device}).values()
                (expected,) = OnnxRuntime(exact=True).run(path, [{"x": x.numpy()}])[0]
                close = np.abs(out.cpu().numpy() - expected).max() / np.abs(expected).max()
                assert close < 0.05
