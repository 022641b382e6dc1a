"""Write a quantized model as ONNX with explicit Q/DQ."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import get_args

import onnx_ir as ir
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

import quantkit
from quantkit import nvtx
from quantkit.errors import CaptureError, ExportError
from quantkit.files import replacing
from quantkit.graph.capture import recapture
from quantkit.graph.plan import Placement
from quantkit.interfaces import ExportForm
from quantkit.model import QuantizedModel
from quantkit.numerics import QParams
from quantkit.onnx import biases, clips, guards, limits, tidy
from quantkit.onnx.inserting import marked_copy
from quantkit.onnx.lower import lower, minimum_opset
from quantkit.onnx.marks import marked
from quantkit.onnx.quantized import QuantizedOnnx
from quantkit.recipe import Recipe
from quantkit.settling import settled

#: A protobuf holds at most 2 GB; larger weights go to a file beside it.
LARGEST_FILE = 2_000_000_000


@nvtx.phase("export")
def export_onnx(
    model: QuantizedModel | QuantizedOnnx,
    path: Path | str,
    *,
    form: ExportForm | None = None,
    external_data: bool | None = None,
) -> Path:
    """Write ``model`` as ONNX: integer weights, explicit zero-points, constant scales.

    Args:
        model: calibrated.
        path: of the file; written to a temporary one first, then renamed.
        form: ``tensorrt`` (int8, zero-point 0) or ``onnxruntime`` (the same grid in uint8 with
            zero-point 128, twice as fast on x86); the recipe's target if absent.
        external_data: weights in a file of their own, ``<path>.data``; if absent, over 2 GB.

    Raises:
        ExportError: the model is not calibrated, an operator has no ONNX form, or the file cannot
            be written.
    """
    path, form = Path(path), form or model.recipe.target
    if form not in get_args(ExportForm):
        raise ExportError(f"no form {form!r}; there are: {', '.join(get_args(ExportForm))}")
    model_ir = to_ir(model, form=form)
    _write(model_ir, path, external_data)
    return path


def to_ir(model: QuantizedModel | QuantizedOnnx, *, form: ExportForm) -> ir.Model:
    """The ONNX model in memory."""
    if form not in get_args(ExportForm):
        raise ExportError(f"no form {form!r}; there are: {', '.join(get_args(ExportForm))}")
    if isinstance(model, QuantizedOnnx):
        _need_grids(model.missing)
        kept = frozenset(str(n.name) for n in model.model.graph.all_nodes())
        return finish(
            marked_copy(model), model.grids, form, plan=model.plan, recipe=model.recipe, kept=kept
        )
    _need_grids([name for name, q in model.quantizers.items() if not q.calibrated])
    _need_float32(model)
    model = settled(model)
    training = model.training
    model.eval()
    try:
        exported = _export(model)
    finally:
        model.train(training)
    grids = {name: _on_cpu(q.qparams) for name, q in model.quantizers.items()}
    return finish(exported, grids, form, plan=model.plan, recipe=model.recipe)


def finish(
    exported: ir.Model,
    grids: Mapping[str, QParams],
    form: ExportForm,
    *,
    plan: Placement,
    recipe: Recipe,
    kept: AbstractSet[str] = frozenset(),
) -> ir.Model:
    """Write Q/DQ where the marks of a float graph stand, in place: one end for every way in.

    Args:
        exported: with marks at the plan's edges and layers.
        grids: of all tensors of the plan, by name.
        form: of the Q/DQ.
        plan: told in the file, as is the recipe.
        recipe: that made the plan.
        kept: names of nodes that stay as they are.
    """
    lower(exported, grids, form)
    tidy.pool_globally(exported.graph)
    tidy.fold_pads(exported.graph)
    limits.limits_in_integers(exported.graph, move=form == "onnxruntime")
    clips.remove_implied_clips(exported.graph)
    if form == "onnxruntime":
        clips.clip_in_integers(exported.graph)
        clips.keep_clips(exported.graph)
        biases.integer_biases(exported.graph)
        biases.widen_biases(exported.graph)
        guards.keep_in_float(exported.graph)
    guards.separate_weights(exported.graph)
    tidy.remove_unused(exported.graph)
    _add_reasons(exported, plan)
    tidy.name_nodes(exported.graph, kept)
    tidy.name_dimensions(exported.graph)
    exported.producer_name, exported.producer_version = "quantkit", quantkit.__version__
    exported.metadata_props.clear()
    exported.metadata_props.update(
        {
            "quantkit.version": quantkit.__version__,
            "quantkit.recipe": recipe.name,
            "quantkit.recipe.yaml": recipe.to_yaml(),
            "quantkit.form": form,
            "quantkit.plan": plan.to_json(),
        }
    )
    return exported


def _need_grids(missing: Sequence[str]) -> None:
    if missing:
        raise ExportError(
            f"the model is not calibrated ({missing[0]} and {len(missing) - 1} more have no grid); "
            "run calibrate(model, batches) first"
        )


def _need_float32(model: QuantizedModel) -> None:
    for name, parameter in model.graph.named_parameters():
        if parameter.is_floating_point() and parameter.dtype is not torch.float32:
            dtype = str(parameter.dtype).removeprefix("torch.")
            raise ExportError(
                f"{name} is {dtype}, and Q/DQ is written in float32; call model.float() before "
                "export"
            )


def _export(model: QuantizedModel) -> ir.Model:
    captured = model.capture
    opset = minimum_opset([t.spec for t in model.plan.tensors])
    graph = marked(model.graph)
    # The model may have moved since its capture.
    device = next((p.device for p in model.graph.parameters()), torch.device("cpu"))
    args, kwargs = pytree.tree_map_only(
        Tensor, lambda t: t.to(device), (captured.args, captured.kwargs)
    )
    with quiet_exporter():
        try:
            program = recapture(graph, args, kwargs, captured.dynamic_shapes)
            exported = torch.onnx.export(
                program, (), dynamo=True, opset_version=opset, optimize=False, verbose=False,
                input_names=list(captured.input_names),
            )  # fmt: skip
        except CaptureError as error:
            raise ExportError(f"the quantized graph does not export: {error}") from error
        except Exception as error:
            raise ExportError(_explain(error)) from error
        if exported is None:
            raise RuntimeError("torch.onnx.export returned nothing")
        exported.optimize()
    return exported.model


def _explain(error: Exception) -> str:
    """One line of the exporter's long report: the operator that it does not know."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return (
        f"no ONNX form: {lines[0][:300] if lines else type(cause).__name__}; replace the operator "
        "in the model by ones that ONNX has"
    )


def _add_reasons(exported: ir.Model, plan: Placement) -> None:
    """A layer left in float carries the plan's reason, for reports that have only the file."""
    reasons = {d.op: d for d in plan.decisions if not d.quantized}
    for node in exported.graph:
        decision = reasons.get(node.metadata_props.get("quantkit.layer", ""))
        if decision is not None:
            node.metadata_props["quantkit.reason"] = decision.reason


def _on_cpu(qparams: QParams) -> QParams:
    return replace(qparams, scale=qparams.scale.cpu(), zero_point=qparams.zero_point.cpu())


def _write(model: ir.Model, path: Path, external_data: bool | None) -> None:
    size = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value)
    if external_data is None:
        external_data = size > LARGEST_FILE
    if not external_data:
        ir.external_data.load_to_model(model)  # weights may still lie beside the file they are of
        with replacing(path) as temporary:
            ir.save(model, temporary)
        return
    data = path.with_name(f"{path.name}.data")
    # The block's end renames the data first: the model makes the pair whole.
    with replacing(path) as temporary, replacing(data) as temporary_data:
        ir.save(model, temporary, external_data=temporary_data.name)
        _rename_external(temporary, temporary_data.name, data.name)


def _rename_external(path: Path, old: str, new: str) -> None:
    """The model names its data file; that one is about to be renamed."""
    import onnx

    proto = onnx.load(path, load_external_data=False)
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location" and entry.value == old:
                entry.value = new
    onnx.save(proto, path)


@contextmanager
def quiet_exporter() -> Iterator[None]:
    """Mute the exporter's own warnings (torchvision, deprecations): no user can act on them."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
