"""What an engine inspector tells, written after NVIDIA's documentation and public reports.

No engine was inspected for these texts. The forms are those of
https://docs.nvidia.com/deeplearning/tensorrt/10.16.1/inference-library/engine-tools.html (10),
https://docs.nvidia.com/deeplearning/tensorrt/11.4.0/api/migration/tensorrt-10x-to-11x-IEngineInspector.html
(11), and of the TensorRT issues 4020 (a ResNet in 10.2) and 4397 (a transformer in 10.8).
"""

from __future__ import annotations

import json
from typing import Any

import pytest
import qdq_models as nets

from quantkit.targets._engine_coverage import coverage
from quantkit.targets._engine_layers import UNTOLD, kernel_for, precision
from quantkit.targets._rtx_graph import GraphReader
from quantkit.targets._tensorrt_layers import parse_information

SENTENCE = "Channel major INT8 format where channel % 16 == 0"


def tensor(form: str, name: str = "t", **more: Any) -> dict[str, Any]:
    return {
        "Name": name,
        "Location": "Device",
        "Dimensions": [1, 16, 8, 8],
        "Format/Datatype": form,
        **more,
    }


def convolution(name: str, form: str = SENTENCE, **more: Any) -> dict[str, Any]:
    """As TensorRT 8.5 to 10 tell of one that a Cask kernel computes."""
    return {
        "Name": name,
        "LayerType": "CaskConvolution",
        "Inputs": [tensor(form)],
        "Outputs": [tensor(form)],
        "ParameterType": "Convolution",
        "Weights": {"Type": "Int8", "Count": 2304},
        "Bias": {"Type": "Float", "Count": 16},
        "TacticName": "",
        "StreamId": 0,
        **more,
    }


def information(*layers: Any, **more: Any) -> str:
    return json.dumps({"Layers": list(layers), "Bindings": ["x", "y"], **more})


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("Thirty-two wide channel vectorized row major Int8 format.", "int8"),
        ("Row major Int8 format", "int8"),
        ("Int8", "int8"),
        (SENTENCE, "int8"),
        ("Row major linear FP32", "float32"),
        ("Float", "float32"),
        ("Channel major FP16 format where channel % 8 == 0", "float16"),
        ("Half(64,1:8,8,1)", "float16"),
        ("Row major linear BFloat16 format", "bfloat16"),
        ("Row major linear FP8 format", "fp8"),
        ("Row major linear UInt8 format", "uint8"),
        ("Row major linear Int64 format", "int64"),
        ("N/A due to dynamic shapes", ""),
        ("Unknown format", ""),
    ],
)
def test_formats_are_read_from_words_and_from_sentences(form: str, expected: str) -> None:
    (kernel,) = parse_information(information(convolution("conv", form)))
    assert [t.format for t in kernel.inputs + kernel.outputs] == [expected] * 2


@pytest.mark.parametrize("separator", ["\x1e", "\x1f", ""])
def test_nodes_are_read_from_the_metadata_whatever_parts_them(separator: str) -> None:
    names = ["/layer1/conv[0]/Conv", "/layer1/relu/Relu", "conv [1]"]
    metadata = separator.join(f"[ONNX Layer: {name}]" for name in names)
    text = information(convolution("fused", Metadata=metadata))
    assert parse_information(text)[0].nodes == tuple(names)
    # As the separators stand in the text of TensorRT: as they are.
    raw = text.replace("\\u001e", "\x1e").replace("\\u001f", "\x1f")
    assert parse_information(raw)[0].nodes == tuple(names)


def test_without_metadata_the_name_of_a_layer_names_its_nodes() -> None:
    layers = [
        convolution("W + /Q_w + /conv/Conv + /relu/Relu [profile 1]", Metadata=""),
        {
            "Name": "Reformatting CopyNode for Input Tensor 0 to /conv/Conv",
            "LayerType": "Reformat",
            "Inputs": [tensor("Row major linear FP32")],
            "Outputs": [tensor("Int8")],
        },
    ]
    first, copy = parse_information(information(*layers))
    assert first.nodes == ("W", "/Q_w", "/conv/Conv", "/relu/Relu")
    assert copy.nodes == ()


def test_a_convolution_of_tensorrt_10_runs_in_what_it_reads() -> None:
    text = information(convolution("conv1 + relu1"), convolution("conv2", "Half"))
    kernels = parse_information(text)
    for node, expected in (("conv1", "int8"), ("conv2", "int8 weights")):
        kernel = kernel_for(kernels, node)
        assert kernel is not None
        assert precision(kernel, quantized_weight=True) == expected
    assert precision(kernels[1], quantized_weight=False) == "float16"


@pytest.mark.parametrize(
    ("tactic", "weights", "expected"),
    [
        ("sm80_xmma_fprop_implicit_gemm_interleaved_i8i8_i8i32_f32_nchw_vect_c_32", "Int8", "int8"),
        ("sm80_xmma_fprop_implicit_gemm_interleaved_i8f32_i8i32_f32_n", "Int8", "int8"),
        ("sm89_xmma_gemm_e4m3bf16_e4m3f32_f32_tn_n", "FP8", "fp8"),
        ("sm80_xmma_fprop_implicit_gemm_f16f16_f16f16_f16_nhwckrsc_nhwc", "Half", "float16"),
        ("sm80_xmma_gemm_bf16bf16_bf16f32_f32_tn_n", "BFloat16", "bfloat16"),
        ("sm80_xmma_gemm_f32f32_tf32f32_f32_tn_n", "Float", "float32"),
        ("", "Int8", "int8"),
        ("", "Half", "float16"),
        ("cutlass_kernel", "", UNTOLD),
    ],
)
def test_with_dynamic_shapes_the_tactic_and_the_weights_tell(
    tactic: str, weights: str, expected: str
) -> None:
    """Then TensorRT 8.6 and 10 tell no format of any tensor."""
    more = {"Weights": {"Type": weights, "Count": 9}} if weights else {"Weights": None}
    text = information(convolution("conv", "N/A due to dynamic shapes", TacticName=tactic, **more))
    assert precision(parse_information(text)[0], quantized_weight=True) == expected


def test_fused_kernels_of_tensorrt_10_tell_their_nodes() -> None:
    product = {
        "Name": "/encoder/MatMul_myl0_7",
        "LayerType": "gemm",
        "Inputs": [tensor("Int8", "x")],
        "Outputs": [tensor("Half")],
        "TacticName": "sm80_xmma_gemm_i8f16_i8i32_f32_tn_n",
        "StreamId": 0,
        "Metadata": "[ONNX Layer: /encoder/MatMul][ONNX Layer: /encoder/Add]",
    }
    norm = {
        **product,
        "Name": "__myl_AddCastMeanSubMul_myl0_8",
        "LayerType": "kgen",
        "Inputs": [tensor("Half")],
        "TacticName": "__myl_AddCastMeanSubMul_0xf2543c36ff9f104bbb1655b0183afb47",
        "Metadata": "[ONNX Layer: /encoder/Add]\x1e[ONNX Layer: /encoder/MatMul]",
    }
    kernels = parse_information(information(norm, product))
    kernel = kernel_for(kernels, "/encoder/MatMul")
    assert kernel is kernels[1]
    assert precision(kernel, quantized_weight=True) == "int8"


def test_tensorrt_11_tells_datatype_and_format_apart_and_has_constants() -> None:
    def split(name: str, word: str, sizes: list[int]) -> dict[str, Any]:
        return {
            "Name": name,
            "Dimensions": sizes,
            "Strides": [1],
            "StrideOrder": [0],
            "Datatype": word,
            "Format": "(Linear) Row major linear format",
        }

    only_weights = {
        "Name": "__myl_CastMulCastFc_myl0_3",
        "LayerType": "runtime_fusion",
        "Inputs": [split("x", "Half", [16, 128])],
        "Constants": [split("s", "Float", [128]), split("w", "Int8", [128, 128])],
        "Outputs": [split("y", "Half", [16, 128])],
        "TacticName": "",
        "StreamId": 0,
        "Metadata": "[ONNX Layer: w_dq]\x1f[ONNX Layer: product]",
    }
    text = json.dumps(
        {"Layers": [only_weights], "I/O Tensors": [{"Name": "x", "DataType": "Half"}]}
    )
    (kernel,) = parse_information(text)
    assert kernel.nodes == ("w_dq", "product")
    assert precision(kernel, quantized_weight=True) == "int8 weights"
    assert precision(kernel, quantized_weight=False) == "float16"


@pytest.mark.parametrize(
    "text",
    ["", "no JSON", "[]", "{}", '{"Layers": null}', '{"Layers": 3}', '{"Layers": [null, 7]}'],
)
def test_what_is_not_understood_is_no_list(text: str) -> None:
    assert parse_information(text) == ()


@pytest.mark.parametrize(
    "layer",
    [{}, {"Name": None, "Inputs": {}, "Outputs": "x", "Weights": []}, {"Inputs": [None, {"a": 1}]}],
)
def test_a_layer_of_another_form_has_no_formats(layer: dict[str, Any]) -> None:
    (kernel,) = parse_information(information(layer))
    assert precision(kernel, quantized_weight=True) == UNTOLD


# To the report


def report(*layers: Any) -> list[tuple[str, str, str]]:
    reader = GraphReader(nets.conv_relu_conv())
    told, findings = coverage(reader, parse_information(information(*layers)), built=True)
    assert {f.where for f in findings} == {x.node for x in told if x.precision.startswith("float")}
    return [(x.node, x.precision, x.reason) for x in told]


def test_each_layer_of_the_file_gets_its_kernel_and_its_reason() -> None:
    assert report(convolution("w1 + conv1 + relu"), convolution("conv2")) == [
        ("conv1", "int8", ""),
        ("conv2", "int8", ""),
    ]
    _, (_, runs, reason) = report(
        convolution("conv1"), convolution("conv2", "Float", Weights={"Type": "Float", "Count": 9})
    )
    assert runs == "float32"
    assert "chose a kernel in float" in reason


def test_layers_in_a_region_that_is_not_told_count_as_neither() -> None:
    """As TensorRT 8 tells of what Myelin compiles: one layer for all, named after its ends."""
    region = {
        "Name": "{ForeignNode[conv1...out]}",
        "LayerType": "Myelin",
        "Inputs": [],
        "Outputs": [],
    }
    assert report(region) == [
        ("conv1", UNTOLD, "the engine does not tell the formats of this layer's kernel"),
        ("conv2", UNTOLD, "the engine does not tell the formats of this layer's kernel"),
    ]


def test_names_alone_tell_no_formats() -> None:
    assert [runs for _, runs, _ in report("conv1 + relu", "conv2")] == [UNTOLD, UNTOLD]


def test_a_layer_that_no_kernel_names_was_removed() -> None:
    _, (_, runs, reason) = report(convolution("conv1"))
    assert (runs, reason) == ("none", "the builder removed it: its result is constant or unused")
