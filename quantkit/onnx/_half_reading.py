"""Reads an ONNX file for its conversion to half, in a form that names every type; writes it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnx import helper
from onnx_ir.passes import common

from quantkit.errors import ExportError, ModelFileError
from quantkit.onnx._half_format import HalfFormat
from quantkit.onnx._half_graph import constant, graphs, is_float
from quantkit.onnx.edit import add_constant
from quantkit.onnx.facts import read_proto
from quantkit.onnx.folding import fold_batchnorm
from quantkit.onnx.opsets import opset_of, raise_opset
from quantkit.onnx.reading import LARGEST_FILE, quiet

#: The first in which DequantizeLinear has a scale of one type and a result of another.
TYPED_GRIDS = 23
#: The first in which a batch-norm's scale, mean and variance are inputs of a form to fold.
_FOLDABLE = 9


def read(path: Path) -> ir.Model:
    """A model whose functions are inlined, whose constants are initializers, with all types.

    Batch-norms become part of the layer before them, or a product and a sum: their variance and
    epsilon would be the first to leave the range of half.

    Raises:
        ModelFileError: there is no such file, it is no ONNX file, or its weights are not there.
    """
    read_proto(path)
    model = ir.load(path)
    try:
        ir.external_data.load_to_model(model)
    except (OSError, ValueError) as error:
        raise ModelFileError(
            f"{path}: its weights outside the file cannot be read ({error}); put their file beside "
            "it, or export the model again"
        ) from error
    with quiet():
        common.InlinePass()(model)
        common.RemoveInitializersFromInputsPass()(model)
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        common.LiftSubgraphInitializersToMainGraphPass()(model)
        common.OutputFixPass()(model)
        infer_types(model)
        if opset_of(model) >= _FOLDABLE:
            fold_batchnorm(model)
        for graph, _ in graphs(model.graph):
            _plain_batchnorms(model.graph, graph)
        common.RemoveUnusedNodesPass()(model)
    return model


def infer_types(model: ir.Model) -> None:
    """Find out the types of values that the file does not tell; names and order are made valid."""
    common.NameFixPass()(model)
    common.TopologicalSortPass()(model)
    common.ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(model)


def raise_for(model: ir.Model, half: HalfFormat, name: str) -> None:
    """Convert to the lowest opset in which the half file can be said, in place.

    Raises:
        ModelFileError: there is no way to it.
    """
    grids = any(n.op_type == "DequantizeLinear" for n in model.graph.all_nodes())
    wanted = max(half.opset, TYPED_GRIDS if grids else 0)
    if opset_of(model) < wanted:
        with quiet():
            raise_opset(model, wanted, name)
            infer_types(model)
    opsets = [helper.make_opsetid("", opset_of(model))]
    model.ir_version = max(model.ir_version, helper.find_min_ir_version_for(opsets))


def write(model: ir.Model, path: Path) -> None:
    """Write a file, with its weights beside it where a protobuf is full; a failure costs none.

    Raises:
        ExportError: the folder is missing or cannot be written to.
    """
    size = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value)
    external = f"{path.name}.data" if size > LARGEST_FILE else None
    try:
        # In the folder of the output: only within one file system is a rename atomic.
        with tempfile.TemporaryDirectory(prefix=".quantkit-", dir=path.parent) as folder:
            ir.save(model, Path(folder) / path.name, external_data=external)
            # Weights first: the model file makes the whole valid.
            for file in sorted(Path(folder).iterdir(), key=lambda f: f.name == path.name):
                os.replace(file, path.parent / file.name)
    except OSError as error:
        raise ExportError(
            f"{path}: cannot be written ({error.strerror}); choose a folder that exists and that "
            "you may write to"
        ) from error


def _plain_batchnorms(main: ir.Graph, graph: ir.Graph) -> None:
    """A batch-norm of constants as the product and the sum that it is."""
    for node in list(graph):
        if node.op_type != "BatchNormalization" or len(node.inputs) < 5:
            continue
        arrays = [constant(value) for value in node.inputs[1:5]]
        source, out = node.inputs[0], node.outputs[0]
        training = node.attributes.get("training_mode")
        rank = None if source is None or source.shape is None else len(source.shape)
        if any(a is None for a in arrays) or rank is None or not is_float(source):
            continue
        if training is not None and training.as_int():
            continue
        scale, bias, mean, variance = (np.asarray(a, np.float64) for a in arrays)
        epsilon = node.attributes.get("epsilon")
        factor = scale / np.sqrt(variance + (1e-5 if epsilon is None else epsilon.as_float()))
        shape = (-1, *[1] * (rank - 2))
        pair = {"scale": factor, "bias": bias - mean * factor}
        factors = [
            add_constant(main, f"{node.name}_{n}", a.reshape(shape).astype(np.float32))
            for n, a in pair.items()
        ]
        product = ir.node("Mul", [source, factors[0]], name=f"{node.name}/Mul")
        total = ir.node("Add", [product.outputs[0], factors[1]], name=node.name)
        product.outputs[0].name = f"{out.name}_scaled"
        for new in (product.outputs[0], total.outputs[0]):
            new.type, new.shape = out.type, out.shape
        total.metadata_props.update(node.metadata_props)
        graph.insert_before(node, [product, total])
        out.replace_all_uses_with(total.outputs[0], replace_graph_outputs=True)
        graph.remove(node, safe=True)
        total.outputs[0].name = out.name
