"""The recipe's passes on an ONNX graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir

from quantkit.errors import RecipeError


def apply_passes(model: ir.Model, passes: Sequence[str]) -> None:
    """Run the passes of a recipe in place.

    Raises:
        RecipeError: one has no form for ONNX files.
    """
    for name in passes:
        if name not in _PASSES:
            raise RecipeError(
                f"the pass {name} has no form for ONNX files; quantize the PyTorch model that the "
                f"file was made of, or leave it out of passes (there are: {', '.join(_PASSES)})"
            )
    for name in passes:
        _PASSES[name](model)


def fold_batchnorm(model: ir.Model) -> int:
    """Fold each BatchNormalization into the layer before it; returns how many.

    The layer keeps its name and the exporter's notes on it, and its result the name that the
    batch-norm's had.
    """
    from onnxscript.rewriter import RewriteRuleSet
    from onnxscript.rewriter.rules import common

    layers = {}
    for node in model.graph:
        layer = node.inputs[0].producer() if node.inputs and node.inputs[0] else None
        if node.op_type == "BatchNormalization" and layer is not None:
            layers[node.outputs[0].name] = (layer.name, dict(layer.metadata_props))
    rules = RewriteRuleSet(
        [
            common.fuse_batchnorm_into_conv_rule,
            common.fuse_batchnorm_into_conv_transpose_rule,
            common.fuse_batchnorm_into_gemm_rule,
        ]
    )
    folded = rules.apply_to_model(model)
    for node in model.graph:
        found = layers.get(node.outputs[0].name)
        if found is not None and node.op_type != "BatchNormalization":
            node.name, notes = found
            node.metadata_props.clear()
            node.metadata_props.update(notes)
    return folded


_PASSES: dict[str, Callable[[ir.Model], int]] = {
    "fold_batchnorm": fold_batchnorm,
    "keep_batchnorm": fold_batchnorm,  # it is kept to train with, which a file does not
}
