"""The builder's own texts: its list of kernels and its messages, stored from TensorRT-RTX 1.7.1."""

from quantkit.targets._engine_layers import kernel_for, precision
from quantkit.targets._rtx_findings import sentence
from quantkit.targets._rtx_layers import parse_layers


def tensor(name: str, sizes: str, datatype: str) -> str:
    return (
        f"{{ Name: {name}, Dimensions: [{sizes}], Strides: [64,1], StrideOrder: [1,0], "
        f"Datatype: {datatype}, Format: (Linear) Row major linear format }}"
    )


# Cut from a message of TensorRT-RTX 1.7.1.116; entries of Metadata are parted by ASCII 31.
LAYERS = (
    "Layers:\n"
    "Name: __myl_MulMinMaxRounCast_myl0_0, LayerType: kgen, Inputs: [ "
    f"{tensor('x', '16,64', 'Float')}], Constants: [ {tensor('__mye781_const', '1', 'Float')}], "
    f"Outputs: [ {tensor('__mye618mm1_o.1_2_myl0', '16,64', 'Int8')}], TacticName: "
    "__myl_MulMinMaxRounCast_0x3f775592fc0691b600bc325e1225ac11, StreamId: 0, "
    "Metadata: [ONNX Layer: qx_q]\n"
    f"Name: mm1_myl0_1, LayerType: gemm, Inputs: [ "
    f"{tensor('__mye618mm1_o.1_2_myl0', '16,64', 'Int8')}], Constants: [ "
    f"{tensor('w1_q_constantInt8_myl0', '64,128', 'Int8')}, "
    f"{tensor('__mye555mm1_alpha_myl0', '1', 'Float')}], Outputs: [ "
    f"{tensor('__myln_k_arg__bb1_3_myl0', '16,128', 'Float')}], TacticName: __myelin_CASK_STUB, "
    "StreamId: 0, Metadata: [ONNX Layer: mm1]\x1f[ONNX Layer: qx_dq]\x1f[ONNX Layer: w1_dq]\n"
    "Name: __myl_MulAdd_myl0_2, LayerType: kgen, Inputs: [ "
    f"{tensor('__myln_k_arg__bb1_3_myl0', '16,128', 'Float')}], Constants: [], Outputs: [ "
    f"{tensor('y', '16,128', 'Float')}], TacticName: __myl_MulAdd_0x4eae, StreamId: 0, "
    "Metadata: [ONNX Layer: mm1]\x1f[ONNX Layer: qx_dq]\n"
    "Name: __myl_CastMulCastFc_myl0_3, LayerType: runtime_fusion, Inputs: [ "
    f"{tensor('y', '16,128', 'Half')}], Constants: [ {tensor('__mye51', '1,128', 'Float')}, "
    f"{tensor('w2_q', '128,128', 'Int8')}], Outputs: [ {tensor('z', '16,128', 'Half')}], "
    "TacticName: , StreamId: 0, Metadata: [ONNX Layer: w2_dq]\x1f[ONNX Layer: mm2]\n"
    "\n"
    "I/O Tensors:\n"
    " Name: x, IOMode: Input, DataType: Float, Dimensions: [16,64], Location: Device\n"
)


def test_the_list_of_kernels_is_read_as_the_builder_writes_it() -> None:
    kernels = parse_layers(LAYERS)

    assert [kernel.layer_type for kernel in kernels] == ["kgen", "gemm", "kgen", "runtime_fusion"]
    assert kernels[1].nodes == ("mm1", "qx_dq", "w1_dq")
    assert kernels[1].constants[0].dimensions == ("64", "128")
    assert [tensor.format for tensor in kernels[0].inputs + kernels[0].outputs] == [
        "float32",
        "int8",
    ]


def test_a_node_belongs_to_its_product_and_not_to_an_epilogue() -> None:
    kernels = parse_layers(LAYERS)

    product = kernel_for(kernels, "mm1")
    assert product is kernels[1]
    assert precision(kernels[1], quantized_weight=True) == "int8"
    assert precision(kernels[2], quantized_weight=True) == "float32"
    assert kernel_for(kernels, "absent") is None


def test_small_weights_count_only_for_the_node_that_has_them() -> None:
    fused = parse_layers(LAYERS)[3]

    assert precision(fused, quantized_weight=True) == "int8 weights"
    assert precision(fused, quantized_weight=False) == "float16"


def test_the_names_of_onnx_nodes_do_not_make_a_kernel_what_it_is_not() -> None:
    renamed = LAYERS.replace("Name: mm1_myl0_1", "Name: attention_mha_gemm_myl0_1")
    epilogue = LAYERS.replace("Name: __myl_MulAdd_myl0_2", "Name: Conv_gemm_Sum_myl0_2")

    assert precision(parse_layers(renamed)[1], quantized_weight=True) == "int8"
    assert not parse_layers(epilogue)[2].is_product


def test_messages_lose_their_source_positions_and_keep_their_words() -> None:
    text = (
        "IBuilder::buildSerializedNetwork: Error Code 1: Myelin ([pass.cpp:1500: run_passes] "
        "Cannot compile for target(s) sm86, because the model contains HW-specific datatypes: "
        "fp8_e4m3. In compileGraph at /_src/optimizer/myelin/codeGenerator.cpp:2012)"
    )
    assert sentence(text) == (
        "Cannot compile for target(s) sm86, because the model contains HW-specific datatypes: "
        "fp8_e4m3."
    )
