"""What TensorRT-RTX's builder makes of files in half: no kernel is left that reads float32."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
import qdq_models
from exported_models import Exported
from onnx import TensorProto, helper, numpy_helper
from onnx_models import model_of, saved, weight

import small_models
from benchmarks import half_forms
from benchmarks.half import float32_reads, in_int8, kernels
from quantkit.onnx.half import Precision, to_half
from quantkit.targets._engine_layers import Kernel
from quantkit.targets.tensorrt_rtx import TensorRTRTX

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason='TensorRT-RTX is not installed: pip install "quantkit[rtx]"',
)
make = helper.make_node
PRECISIONS: tuple[Precision, ...] = ("float16", "bfloat16")


def built(path: Path, gpu: str = "8.6") -> tuple[Kernel, ...]:
    return kernels(path, TensorRTRTX(compute_capability=gpu, progress=False))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Q/DQ files, written by quantkit, of a residual network and of a transformer layer."""
    folder = tmp_path_factory.mktemp("half")
    models = {"resnet": small_models.resnet(), "encoder": small_models.encoder()}
    files = {
        name: Exported.of(model, model.inputs(8), folder / name, forms=("tensorrt",))
        for name, model in models.items()
    }
    return lambda name: files[name].paths["tensorrt"]


@pytest.mark.parametrize("gpu", ["8.6", "12.0"])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", ["resnet", "encoder"])
def test_nothing_but_the_input_and_integer_sums_is_read_in_float32(
    exported: Callable[[str], Path], name: str, precision: Precision, gpu: str, tmp_path: Path
) -> None:
    to_half(exported(name), tmp_path / "half.onnx", precision=precision)
    assert float32_reads(built(tmp_path / "half.onnx", gpu))["float32"] == []


@pytest.mark.parametrize("name", ["resnet", "encoder"])
def test_planned_layers_all_stay_in_int8(
    exported: Callable[[str], Path], name: str, tmp_path: Path
) -> None:
    before = TensorRTRTX(progress=False).inspect(exported(name))
    for precision in PRECISIONS:
        to_half(exported(name), tmp_path / "half.onnx", precision=precision)
        after = TensorRTRTX(progress=False).inspect(tmp_path / "half.onnx")
        assert after.findings == ()
        assert after.covered == after.planned == before.planned > 0
        assert [x.precision for x in after.layers] == [x.precision for x in before.layers]


def test_the_file_in_float32_leaves_islands(exported: Callable[[str], Path]) -> None:
    assert float32_reads(built(exported("encoder")))["float32"] != []


def test_codes_of_weights_are_the_same(exported: Callable[[str], Path], tmp_path: Path) -> None:
    to_half(exported("resnet"), tmp_path / "half.onnx")
    before, after = (
        {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
        for path in (exported("resnet"), tmp_path / "half.onnx")
    )
    codes = [name for name, array in before.items() if name.endswith("weight_quantized")]
    assert len(codes) == 7
    assert all(np.array_equal(before[name], after[name]) for name in codes)


def test_maxima_of_codes_stay_int8_in_bfloat16(tmp_path: Path) -> None:
    path = qdq_models.save(qdq_models.behind_maxpool(), tmp_path)
    report = to_half(path, tmp_path / "half.onnx", precision="bfloat16")
    assert {kept.node for kept in report.kept} == {"between", "conv"}
    assert [f.code for f in report.findings] == ["ranges-not-seen"]
    found = built(tmp_path / "half.onnx")
    assert sum(map(in_int8, found)) == 1
    assert float32_reads(found)["float32"] == []


def int4_channels() -> onnx.ModelProto:
    """int8 activations and int4 weights."""
    net = qdq_models.Net(16, 64)
    w = net.weight((64, 128), "w", axis=1, dtype=ml_dtypes.int4)
    return net.done(net.node("MatMul", [net.qdq("x", "dx"), w], "matmul"))


@pytest.mark.parametrize(
    "net",
    [
        qdq_models.attention,
        qdq_models.weight_only,
        qdq_models.int4_groups,
        int4_channels,
    ],
)
def test_forms_keep_their_low_precision(net: Callable[[], onnx.ModelProto], tmp_path: Path) -> None:
    path = qdq_models.save(net(), tmp_path)
    to_half(path, tmp_path / "half.onnx")
    target = TensorRTRTX(progress=False)
    before, after = target.inspect(path), target.inspect(tmp_path / "half.onnx")
    assert after.findings == before.findings == ()
    assert [x.precision for x in after.layers] == [x.precision for x in before.layers]


def test_fp8_keeps_its_format(tmp_path: Path) -> None:
    to_half(qdq_models.save(qdq_models.fp8(), tmp_path), tmp_path / "half.onnx")
    target = TensorRTRTX(compute_capability="8.9", progress=False)
    assert [x.precision for x in target.inspect(tmp_path / "half.onnx").layers] == ["fp8"]


# What the rules rest on


def chain(nodes: Sequence[onnx.NodeProto], constants: dict[str, Any]) -> onnx.ModelProto:
    """A product, ``nodes`` from ``a`` to ``b``, and a product."""
    arrays = {"w": weight(64, 64), "v": weight(64, 64, seed=1), **constants}
    stored = {n: np.asarray(a, None if isinstance(a, np.ndarray) else np.float32)
              for n, a in arrays.items()}  # fmt: skip
    all_nodes = [make("MatMul", ["x", "w"], ["a"], "first"), *nodes,
                 make("MatMul", ["b", "v"], ["y"], "last")]  # fmt: skip
    return model_of(all_nodes, {"x": [128, 64]}, {"y": [128, 64]}, stored, opset=18)


def normalization() -> onnx.ModelProto:
    nodes = [
        make("ReduceMean", ["a", "axes"], ["mean"], "mean"),
        make("Sub", ["a", "mean"], ["d"], "center"),
        make("Mul", ["d", "d"], ["square"], "square"),
        make("ReduceMean", ["square", "axes"], ["variance"], "variance"),
        make("Add", ["variance", "epsilon"], ["sum"], "epsilon"),
        make("Sqrt", ["sum"], ["root"], "root"),
        make("Div", ["d", "root"], ["b"], "divide"),
    ]
    return chain(nodes, {"axes": np.int64([-1]), "epsilon": 1e-12})


def test_a_normalization_in_float32_is_one_kernel_between_half(tmp_path: Path) -> None:
    report = to_half(saved(normalization(), tmp_path / "float.onnx"), tmp_path / "half.onnx")
    assert len(report.kept) == 7
    found = built(tmp_path / "half.onnx")
    assert float32_reads(found)["float32"] == []
    (kernel,) = [k for k in found if "root" in k.nodes]
    assert {"mean", "square", "epsilon", "divide"} <= set(kernel.nodes)
    assert {t.format for t in (*kernel.inputs, *kernel.outputs)} == {"float16"}


def large(factor: float) -> onnx.ModelProto:
    nodes = [make("Relu", ["a"], ["r"], "relu"), make("MatMul", ["r", "big"], ["b"], "kept")]
    return chain(nodes, {"big": weight(64, 64) * np.float32(factor)})


def test_a_product_that_stays_in_float32_is_guarded(tmp_path: Path) -> None:
    """Between two Casts the builder would run it in half: weights beyond 65504 become infinite."""
    report = to_half(saved(large(1e6), tmp_path / "float.onnx"), tmp_path / "half.onnx")
    assert [kept.node for kept in report.kept] == ["kept"]
    (kernel,) = [k for k in built(tmp_path / "half.onnx") if k.is_product and "kept" in k.nodes]
    assert kernel.inputs[0].format == "float32"
    bare = onnx.load(tmp_path / "half.onnx")
    (guard,) = [n for n in bare.graph.node if n.op_type == "Max"]
    bare.graph.node.remove(guard)
    for node in bare.graph.node:
        node.input[:] = [guard.input[0] if i == guard.output[0] else i for i in node.input]
    found = built(saved(bare, tmp_path / "bare.onnx"))
    (kernel,) = [k for k in found if k.is_product and "kept" in k.nodes]
    assert kernel.inputs[0].format == "float16"


@pytest.mark.parametrize("operator", ["MatMul", "Gemm"])
def test_scales_in_half_would_leave_raw_sums_in_half(operator: str, tmp_path: Path) -> None:
    """The reason why scales stay float32: five products of codes may exceed 65504."""
    wanted = {half_forms.FORMS[0]: "float16", half_forms.FORMS[1]: "float32"}
    for form, sums in wanted.items():
        model = half_forms.network(operator, "float16", form, form)
        (kernel,) = [k for k in built(saved(model, tmp_path / "form.onnx")) if in_int8(k)]
        assert kernel.outputs[0].format == sums, form


def test_float_models_are_half_throughout(tmp_path: Path) -> None:
    path = qdq_models.save(qdq_models.float_net(), tmp_path)
    assert float32_reads(built(path))["float32"] != []
    to_half(path, tmp_path / "half.onnx", keep_io=False)
    formats = {t.format for k in built(tmp_path / "half.onnx") for t in (*k.inputs, *k.outputs)}
    assert formats == {"float16"}
    info = onnx.load(tmp_path / "half.onnx").graph.input[0]
    assert info.type.tensor_type.elem_type == TensorProto.FLOAT16
