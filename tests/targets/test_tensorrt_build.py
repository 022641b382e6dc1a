"""Builds of TensorRT in a child process, with a `tensorrt` of plain Python there."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import fake_tensorrt
import onnx
import pytest
import qdq_models as nets
import torch
from fake_tensorrt import facts_of
from qdq_models import save

from quantkit.errors import ExportError, MissingDependencyError, TargetError
from quantkit.interfaces import Severity
from quantkit.targets import _engine_timing, _tensorrt_gpu
from quantkit.targets._engine_process import Builder
from quantkit.targets.tensorrt import TensorRT
from quantkit.tensorrt.engine_record import EngineRecord
from quantkit.tensorrt.fingerprint import Fingerprint


@pytest.fixture
def sdk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Installs a version, here and for child processes."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    def install(version: str = "10.13.3.9", **behaviour: Any) -> Any:
        return fake_tensorrt.install(monkeypatch, tmp_path / "sdk", version, **behaviour)

    install()
    return install


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save(nets.conv_relu_conv(), tmp_path)


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    return tmp_path / "some.engine"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that PyTorch sees, to tell engines of different ones apart."""
    monkeypatch.setattr(_tensorrt_gpu, "this_gpu", lambda: (8, 6))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA A40")


def test_a_file_with_qdq_is_built_strongly_typed_and_tells_its_layers(
    sdk: Any, model: Path, engine: Path
) -> None:
    report = TensorRT().build(model, engine)

    facts = facts_of(engine)
    assert (facts["network_flags"], facts["flags"]) == (1 << 1, [])
    assert facts["verbosity"] == "DETAILED"
    assert (report.target, report.findings) == ("tensorrt 10.13.3", ())
    assert [(layer.node, layer.precision) for layer in report.layers] == [
        ("conv1", "int8"),
        ("conv2", "int8"),
    ]
    assert report.covered == report.planned == 2


@pytest.mark.parametrize(
    ("version", "flags", "int8"),
    [
        ("8.6.1", 0b01, ["INT8"]),
        ("9.3.0", 0b11, []),
        ("10.16.1.11", 0b10, []),
        ("11.4.0.106", 0b00, []),
    ],
)
def test_versions_differ_in_their_flags_and_in_what_their_inspector_tells(
    sdk: Any, model: Path, engine: Path, version: str, flags: int, int8: list[str]
) -> None:
    sdk(version)
    report = TensorRT().build(model, engine)
    facts = facts_of(engine)
    assert (facts["version"], facts["network_flags"], facts["flags"]) == (version, flags, int8)
    assert report.covered == 2


def test_options_reach_the_builder(sdk: Any, tmp_path: Path, engine: Path) -> None:
    sizes = ((1, 8, 16, 16), (2, 8, 16, 16), (4, 8, 16, 16))
    target = TensorRT(
        shapes={"x": sizes},
        workspace=1 << 28,
        optimization_level=1,
        version_compatible=True,
        hardware_compatible="ampere_plus",
    )
    report = target.build(save(nets.conv_relu_conv("batch"), tmp_path), engine)
    facts = facts_of(engine)
    assert facts["profiles"] == [{"x": [list(size) for size in sizes]}]
    assert facts["pools"] == {"WORKSPACE": 1 << 28}
    assert (facts["level"], facts["hardware"]) == (1, "AMPERE_PLUS")
    assert facts["flags"] == ["VERSION_COMPATIBLE"]
    assert report.covered == 2  # such an engine is loaded only by who allows code for the host


def test_nameless_nodes_are_told_apart(sdk: Any, tmp_path: Path, engine: Path) -> None:
    net = nets.conv_relu_conv()
    for node in net.graph.node:
        node.name = ""
    report = TensorRT().build(save(net, tmp_path), engine)
    assert report.covered == 2
    assert len({layer.node for layer in report.layers}) == 2


def test_a_float_file_without_a_calibrator_is_built_with_a_warning(
    sdk: Any, tmp_path: Path, engine: Path
) -> None:
    report = TensorRT().build(save(nets.float_net(), tmp_path), engine)
    (warning,) = report.findings
    assert (warning.severity, warning.code) == (Severity.WARNING, "float-model")
    assert {layer.precision for layer in report.layers} == {"float32"}
    assert engine.exists()


# What is refused, and what crashes


def test_what_the_parser_refuses_is_an_error_at_its_node(
    sdk: Any, tmp_path: Path, engine: Path
) -> None:
    path = save(nets.custom_operator(), tmp_path)
    with pytest.raises(TargetError, match="mystery: Plugin not found"):
        TensorRT().build(path, engine)
    found = [f for f in TensorRT().inspect(path).findings if f.where == "mystery"]
    assert [(f.severity, f.code) for f in found] == [(Severity.ERROR, "custom-operator")]
    assert not engine.exists()


def test_what_is_known_to_be_wrong_is_refused_before_tensorrt_is_asked(
    sdk: Any, tmp_path: Path, engine: Path
) -> None:
    with pytest.raises(TargetError, match="zero-point is not 0"):
        TensorRT().build(save(nets.shifted_zero(), tmp_path), engine)


def test_a_crash_of_the_builder_is_an_error_and_ends_no_more_than_the_child(
    sdk: Any, model: Path, engine: Path
) -> None:
    sdk(crash="build")
    engine.write_bytes(b"an old one")
    with pytest.raises(TargetError, match=r"The builder crashed \(SIGSEGV\) in its child process"):
        TensorRT().build(model, engine)
    assert engine.read_bytes() == b"an old one"
    assert not list(engine.parent.glob(".some.engine*"))


def test_a_crash_of_the_inspector_costs_the_report_and_not_the_engine(
    sdk: Any, model: Path, engine: Path
) -> None:
    sdk(crash="inspect")
    (finding,) = TensorRT().build(model, engine).findings
    assert (finding.severity, finding.code) == (Severity.INFO, "coverage-unknown")
    assert "while the engine was inspected (SIGSEGV)" in finding.why
    assert facts_of(engine)["crash"] == "inspect"


def test_a_refused_network_keeps_the_old_engine(sdk: Any, model: Path, engine: Path) -> None:
    sdk(broken=True)
    engine.write_bytes(b"an old one")
    with pytest.raises(TargetError, match="No kernel was found"):
        TensorRT().build(model, engine)
    assert engine.read_bytes() == b"an old one"


def test_a_machine_where_tensorrt_does_not_start_is_told_so(
    sdk: Any, model: Path, engine: Path
) -> None:
    sdk(null=True)
    with pytest.raises(TargetError, match="only on a machine with an NVIDIA GPU"):
        TensorRT().build(model, engine)
    (finding,) = [f for f in TensorRT().inspect(model).findings if f.code == "not-parsed"]
    assert finding.severity is Severity.WARNING


def test_a_tensorrt_that_only_this_process_finds_is_missed_there(
    sdk: Any, model: Path, engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt.module())
    with pytest.raises(MissingDependencyError, match="TensorRT cannot be loaded"):
        TensorRT().build(model, engine)


def test_a_build_that_takes_too_long_is_stopped(sdk: Any, model: Path, engine: Path) -> None:
    with pytest.raises(TargetError, match=r"longer than 0\.01 s"):
        TensorRT(timeout_s=0.01).build(model, engine)


def test_sizes_for_an_input_that_is_not_there_are_refused(
    sdk: Any, model: Path, engine: Path
) -> None:
    with pytest.raises(TargetError, match="shapes names y, but the inputs of the model are x"):
        TensorRT(shapes={"y": ((1,), (1,), (1,))}).build(model, engine)


@pytest.mark.parametrize(
    ("named", "index", "visible"),
    [(None, 1, "1"), ("3,5", 1, "5"), ("GPU-a,GPU-b", 0, "GPU-a"), ("", 0, "0")],
)
def test_the_child_sees_the_device_that_is_used_here(
    monkeypatch: pytest.MonkeyPatch, named: str | None, index: int, visible: str
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if named is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    builder = Builder(module="m", title="m", product="m", install="m", device=index)
    assert builder.environment()["CUDA_VISIBLE_DEVICES"] == visible


# The timing cache


def test_the_timing_cache_is_written_and_serves_the_next_build(
    sdk: Any, model: Path, engine: Path, tmp_path: Path
) -> None:
    target = TensorRT(timing_cache=tmp_path / "timing.cache")
    assert target.build(model, engine).findings == ()
    assert facts_of(engine)["known"] == []
    assert target.build(model, engine).findings == ()
    assert "conv1" in facts_of(engine)["known"]


@pytest.mark.parametrize(
    "text", [b"no timing cache at all", b'timing {"device": "another GPU", "kernels": ["conv1"]}']
)
def test_a_file_that_is_no_timing_cache_of_this_gpu_is_left_as_it_is(
    sdk: Any, model: Path, engine: Path, tmp_path: Path, text: bytes
) -> None:
    timing = tmp_path / "timing.cache"
    timing.write_bytes(text)
    (finding,) = TensorRT(timing_cache=timing).build(model, engine).findings
    assert (finding.code, finding.where) == ("timing-cache-ignored", "timing.cache")
    assert timing.read_bytes() == text
    assert facts_of(engine)["known"] is None


def test_timings_that_another_build_has_written_meanwhile_are_kept(
    sdk: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "timing.cache"
    config = sdk().IBuilderConfig("this GPU")
    file = _engine_timing.attach(config, path, print)
    assert file is not None
    file.cache.kernels.add("ours")  # type: ignore[attr-defined]  # of the plain tensorrt
    path.write_bytes(b'timing {"device": "this GPU", "kernels": ["theirs"]}')
    file.save(config, print)
    assert json.loads(path.read_bytes().removeprefix(b"timing "))["kernels"] == ["ours", "theirs"]


# Records, and engines that were built before


def test_the_record_beside_an_engine_says_what_it_is(sdk: Any, model: Path, engine: Path) -> None:
    report = TensorRT(workspace=1 << 20).build(model, engine)
    record = EngineRecord.read(engine)
    assert record is not None
    assert record.model == Fingerprint.of(model)
    assert (record.built_by, record.gpu) == ("tensorrt 10.13.3", "not seen by PyTorch")
    assert record.layers == report.layers
    assert record.options["pools"] == {"WORKSPACE": 1 << 20}
    assert json.loads(EngineRecord.path(engine).read_text())["sha256"] == record.sha256


def test_the_same_build_is_done_once(
    sdk: Any, model: Path, engine: Path, tmp_path: Path, gpu: None
) -> None:
    target = TensorRT(engine_cache=tmp_path / "engines")
    first = target.build(model, engine)
    sdk(crash="build")  # whoever builds now does not come back
    again = target.build(model, tmp_path / "again.engine")
    assert again.layers == first.layers
    (finding,) = again.findings
    assert (finding.severity, finding.code) == (Severity.INFO, "engine-from-cache")
    assert (tmp_path / "again.engine").read_bytes() == engine.read_bytes()
    record = EngineRecord.read(tmp_path / "again.engine")
    assert record is not None
    assert record.gpu == "NVIDIA A40 (8.6)"


@pytest.mark.parametrize("changed", ["weights", "option", "version", "GPU", "plan"])
def test_another_build_is_another_engine(
    sdk: Any,
    model: Path,
    engine: Path,
    tmp_path: Path,
    gpu: None,
    monkeypatch: pytest.MonkeyPatch,
    changed: str,
) -> None:
    folder = tmp_path / "engines"
    TensorRT(engine_cache=folder).build(model, engine)
    if changed == "weights":
        save(nets.conv_relu_conv(), tmp_path)  # the same graph, other weights
    if changed == "plan":
        proto = onnx.load(model)
        proto.metadata_props.add(key="quantkit.plan", value="{}")
        onnx.save(proto, model)
    if changed == "version":
        sdk("10.16.1")
    if changed == "GPU":
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA A10")
    level = 1 if changed == "option" else None
    report = TensorRT(engine_cache=folder, optimization_level=level).build(model, engine)
    assert report.findings == ()
    assert len(list(folder.glob("*.engine"))) == 2


def test_an_engine_of_another_machine_is_no_hit_unless_it_is_trusted(
    sdk: Any, model: Path, engine: Path, tmp_path: Path, gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "engines"
    TensorRT(engine_cache=folder).build(model, engine)
    monkeypatch.setenv("QUANTKIT_STATE", str(tmp_path / "another"))
    trusting = TensorRT(engine_cache=folder, trust_engine=True).build(model, engine)
    assert [f.code for f in trusting.findings] == ["engine-from-cache"]
    assert not (tmp_path / "another").exists()  # to take it is not to have built it
    assert TensorRT(engine_cache=folder).build(model, engine).findings == ()
    assert len(list((tmp_path / "another" / "engines").iterdir())) == 1


def test_an_engine_that_was_changed_in_the_cache_is_built_again(
    sdk: Any, model: Path, engine: Path, tmp_path: Path, gpu: None
) -> None:
    target = TensorRT(engine_cache=tmp_path / "engines")
    target.build(model, engine)
    (kept,) = (tmp_path / "engines").glob("*.engine")
    whole = kept.read_bytes()
    kept.write_bytes(whole[:-5])
    assert target.build(model, engine).findings == ()
    assert engine.read_bytes() == kept.read_bytes() == whole
    EngineRecord.path(kept).write_text("{}")
    assert target.build(model, engine).findings == ()


def test_a_cache_that_cannot_be_written_costs_nothing_but_the_cache(
    sdk: Any, model: Path, engine: Path, tmp_path: Path, gpu: None
) -> None:
    (tmp_path / "file").write_text("no folder")
    (finding,) = TensorRT(engine_cache=tmp_path / "file").build(model, engine).findings
    assert (finding.severity, finding.code) == (Severity.WARNING, "engine-not-kept")
    assert engine.exists()


def test_without_a_gpu_engines_are_not_kept(
    sdk: Any, model: Path, engine: Path, tmp_path: Path
) -> None:
    (finding,) = TensorRT(engine_cache=tmp_path / "engines").build(model, engine).findings
    assert (finding.severity, finding.code) == (Severity.INFO, "engine-not-cached")
    assert not (tmp_path / "engines").exists()


def test_an_engine_that_cannot_be_remembered_is_built_with_a_warning(
    sdk: Any, model: Path, engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("QUANTKIT_STATE", str(tmp_path / "file"))
    (finding,) = TensorRT().build(model, engine).findings
    assert finding.code == "engine-not-remembered"
    assert "QUANTKIT_STATE" in finding.fix


def test_an_output_that_is_a_folder_is_refused(sdk: Any, model: Path, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(ExportError, match="it is no folder"):
        TensorRT().build(model, tmp_path / "folder")
    with pytest.raises(TargetError, match="its folder does not exist"):
        TensorRT(timing_cache=tmp_path / "none" / "t").build(model, tmp_path / "some.engine")


# With a real builder


@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason='TensorRT-RTX is not installed: pip install "quantkit[rtx]"',
)
def test_a_real_builder_takes_every_step_of_a_build(
    tmp_path: Path, engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of TensorRT-RTX, under TensorRT's name: it has the same classes, and needs no GPU."""
    folder = tmp_path / "sdk"
    folder.mkdir()
    (folder / "tensorrt.py").write_text("from tensorrt_rtx import *\n__version__ = '11.0.0'\n")
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    sizes = ((1, 8, 16, 16), (2, 8, 16, 16), (4, 8, 16, 16))
    target = TensorRT(shapes={"x": sizes}, workspace=1 << 28, optimization_level=2)
    try:
        report = target.build(save(nets.conv_relu_conv("batch"), tmp_path), engine)
        crashed = target.inspect(save(nets.computed_scale(), tmp_path))
    finally:
        sys.modules.pop("tensorrt", None)
    assert [(layer.node, layer.precision) for layer in report.layers] == [
        ("conv1", "int8"),
        ("conv2", "int8"),
    ]
    assert report.findings == ()
    assert engine.stat().st_size > 10_000
    assert "computed-scale" in {finding.code for finding in crashed.findings}
