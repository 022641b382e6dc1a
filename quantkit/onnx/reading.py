"""Read a float ONNX file in one form, whoever exported it: one opset, constants folded, named."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from quantkit.errors import ModelFileError
from quantkit.onnx.opsets import NEWEST_SAFE, lower_opset, raise_opset
from quantkit.onnx.plain import make_plain

#: Everything behind this reads the forms of opset 18 (axes of ReduceMean as an input, say).
OLDEST_OPSET = 18
#: A protobuf holds at most 2 GB; larger weights go to a file beside it.
LARGEST_FILE = 1_500_000_000
#: Constants that grow beyond so many elements (an expanded mask) stay computed.
LARGEST_FOLDED = 1 << 18
#: What makes no more of its inputs than they are; folded whatever the size: a transposed weight
#: is a weight.
_NOT_GROWING = frozenset(
    {"Transpose", "Reshape", "Cast", "Squeeze", "Unsqueeze", "Identity", "Flatten", "Neg", "Sqrt",
     "Reciprocal"}
)  # fmt: skip
_QUANTIZED = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear",
                        "ConvInteger", "MatMulInteger"})  # fmt: skip
_HALF = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
#: Whose constants are weights; others may hold infinity with good reason, such as masks.
_WEIGHTED = frozenset(
    {"Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization", "LayerNormalization",
     "InstanceNormalization", "GroupNormalization", "RMSNormalization", "LSTM", "GRU", "RNN",
     "Gather"}
)  # fmt: skip


def read_onnx(source: Path | str | ir.Model, *, opset: int = OLDEST_OPSET) -> ir.Model:
    """A float model, ready to be described and quantized; ``source`` is not changed.

    Functions are inlined, constants are initializers, shapes are inferred, nodes and values have
    unique names, and attention has one form (see `plain`). Weights outside the file are read when
    they are needed.

    Args:
        source: a file, or a model in memory.
        opset: the lowest that is wanted, 18 or more.

    Raises:
        ModelFileError: it cannot be read, is quantized already, is of 16-bit floats, holds NaN or
            infinity in its weights, or is of an opset that cannot be converted.

    Example:
        >>> graph = ir.Graph([], [], nodes=[], opset_imports={"": 18})
        >>> read_onnx(ir.Model(graph, ir_version=10)).opset_imports[""]
        18
    """
    name = "the model" if isinstance(source, ir.Model) else str(source)
    model = source.clone() if isinstance(source, ir.Model) else _load(Path(source))
    _require_float(model, name)
    with quiet():
        common.InlinePass()(model)
        _convert(model, name, opset)
        common.RemoveInitializersFromInputsPass()(model)
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        common.LiftSubgraphInitializersToMainGraphPass()(model)
        _fold(model)
        common.RemoveUnusedNodesPass()(model)
        common.ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(model)
        common.NameFixPass()(model)
        common.TopologicalSortPass()(model)
    _require_finite(model, name)
    make_plain(model.graph)
    lower_opset(model, max(opset, NEWEST_SAFE))
    return model


def save(model: ir.Model, path: Path) -> None:
    """Write a model for a runtime on this machine; weights beside it where a protobuf is full."""
    size = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value)
    if size > LARGEST_FILE:
        ir.save(model, path, external_data=f"{path.name}.data")
        return
    ir.external_data.load_to_model(model)
    ir.save(model, path)


def _load(path: Path) -> ir.Model:
    try:
        model = ir.load(path)
    except OSError as error:
        raise ModelFileError(
            f"{path}: cannot be read ({error.strerror}); give the path of an ONNX file"
        ) from error
    except Exception as error:  # protobuf and onnx_ir raise errors of their own
        raise ModelFileError(
            f"{path}: not an ONNX file ({' '.join(str(error).split())[:200]}); export it first"
        ) from error
    _require_weights(model, path)
    return model


def _require_weights(model: ir.Model, path: Path) -> None:
    """Refuse a model that was moved without the file of its weights, or with half of it."""
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if not isinstance(tensor, ir.ExternalTensor):
            continue
        file = Path(tensor.path)
        if not file.is_file():
            raise ModelFileError(
                f"{path}: its weights lie in {file}, which is not there; put that beside it"
            )
        if file.stat().st_size < (tensor.offset or 0) + tensor.nbytes:
            raise ModelFileError(
                f"{path}: its weights lie in {file}, which ends before {value.name}; copy it "
                "again, or export the model again"
            )


def _require_float(model: ir.Model, name: str) -> None:
    for node in _all_nodes(model):
        if node.op_type in _QUANTIZED or node.op_type.startswith("QLinear"):
            raise ModelFileError(
                f"{name}: is quantized already (it has {node.op_type} {node.name}); give the float "
                "file that it was made from"
            )
    values = [*model.graph.inputs, *model.graph.initializers.values()]
    for value in values:
        if value.dtype in _HALF:
            kind = str(value.dtype).lower()
            raise ModelFileError(
                f"{name}: {value.name} is {kind}, and Q/DQ is written in float32; export the model "
                "in float32"
            )


def _all_nodes(model: ir.Model) -> Iterator[ir.Node]:
    yield from model.graph.all_nodes()
    for function in model.functions.values():
        yield from function.all_nodes()


def _convert(model: ir.Model, name: str, opset: int) -> None:
    if "ai.onnx" in model.graph.opset_imports and "" not in model.graph.opset_imports:
        model.graph.opset_imports[""] = model.graph.opset_imports.pop("ai.onnx")
    raise_opset(model, max(opset, OLDEST_OPSET), name)


def _fold(model: ir.Model) -> None:
    from onnxscript import optimizer

    def should_fold(node: ir.Node) -> bool | None:
        return True if node.op_type in _NOT_GROWING else None

    largest = max((v.const_value.size for v in model.graph.initializers.values() if v.const_value),
                  default=0)  # fmt: skip
    optimizer.fold_constants(
        model, onnx_shape_inference=True, should_fold=should_fold,
        output_size_limit=max(largest, LARGEST_FOLDED),
    )  # fmt: skip


def _require_finite(model: ir.Model, name: str) -> None:
    """Refuse a model that training broke."""
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is None or tensor.dtype not in {ir.DataType.FLOAT, ir.DataType.DOUBLE}:
            continue
        if not any(_is_layer(use.node) for use in value.uses()):
            continue
        array = tensor.numpy()
        if bad := int(array.size - np.isfinite(array).sum()):
            raise ModelFileError(
                f"{name}: {value.name} holds NaN or infinity in {bad} of {array.size} values; "
                "export weights of before the training diverged"
            )


def _is_layer(node: ir.Node) -> bool:
    """Whether a node's constants are weights; the bias of a product is added behind it."""
    if node.op_type != "Add":
        return node.op_type in _WEIGHTED
    makers = [value.producer() for value in node.inputs if value is not None]
    # Not a product of two activations: what is added to that is a mask.
    return any(
        maker is not None
        and maker.op_type == "MatMul"
        and any(value is not None and value.is_initializer() for value in maker.inputs)
        for maker in makers
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Mute the converters' and inference's own log: what matters is raised."""
    loggers = [logging.getLogger(name) for name in ("onnx_ir", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
