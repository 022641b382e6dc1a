"""The sizes of all tensors of a model for one batch size, and from them the work of its layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, fx

from quantkit.errors import DataError, ModelFileError
from quantkit.graph.abstract import Graph
from quantkit.graph.aten import Description, describe
from quantkit.profiling.work import ModelWork, Size, count


def work_of(model: fx.GraphModule | Description, *, batch: int = 1) -> ModelWork:
    """The work of each layer of a captured model.

    Args:
        model: ``Capture.module``, or its description.
        batch: samples in a batch; taken where the first dimension of an input is dynamic.

    Raises:
        DataError: the batch is not positive.

    Example:
        >>> import torch
        >>> from quantkit.graph.capture import capture
        >>> net = capture(torch.nn.Linear(8, 4), (torch.randn(2, 8),)).module
        >>> work_of(net, batch=16).flops
        1024
    """
    description = model if isinstance(model, Description) else describe(model)
    return count(description.graph, sizes_of(description, batch=batch), batch)


def sizes_of(description: Description, *, batch: int = 1) -> dict[str, Size]:
    """The sizes of a captured model's tensors by name, symbols of the batch replaced by ``batch``.

    Dimensions that are dynamic otherwise have the size that they had in the example inputs. What
    depends on the data's values is left out.
    """
    _require_batch(batch)
    known = dict(_symbols(description, batch))
    sizes: dict[str, Size] = {}
    for name, node in description.node_of_value.items():
        value = _tensor(node)
        shape = None if value is None else _known_shape(value, known)
        if value is not None and shape is not None:
            sizes[name] = Size(shape, value.element_size(), value.is_floating_point())
    return sizes


def work_of_onnx(
    path: Path | str, *, batch: int = 1, dims: Mapping[str, int] | None = None
) -> ModelWork:
    """The work of each layer of an ONNX file, by ONNX's own inference of shapes.

    Args:
        path: of a float file or of one with Q/DQ.
        batch: taken where the first dimension of an input is dynamic.
        dims: sizes of other dynamic dimensions, by their names in the file.

    Raises:
        ModelFileError: the file is not readable, or its shapes contradict each other.
        DataError: the batch is not positive.
    """
    graph, sizes = onnx_sizes(Path(path), batch=batch, dims=dims)
    return count(graph, sizes, batch)


def onnx_sizes(
    path: Path, *, batch: int = 1, dims: Mapping[str, int] | None = None
) -> tuple[Graph, dict[str, Size]]:
    """The abstract graph of an ONNX file, and the sizes of its tensors by name."""
    import onnx
    import onnx_ir as ir

    from quantkit.onnx.describing import describe_onnx

    _require_batch(batch)
    try:
        proto = onnx.load(str(path), load_external_data=False)
        _fix_inputs(proto, batch, dims or {})
        # What the file says of shapes inside was written for a dynamic batch.
        del proto.graph.value_info[:]
        proto = onnx.shape_inference.infer_shapes(proto, data_prop=True)
        described = describe_onnx(ir.serde.deserialize_model(proto).graph)
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read ({error}); name an ONNX file") from error
    except Exception as error:  # protobuf's, onnx's and onnx-ir's errors have no common base
        raise ModelFileError(
            f"{path}: its shapes cannot be told ({str(error).splitlines()[0]}); check it with "
            "onnx.checker"
        ) from error
    sizes: dict[str, Size] = {}
    for name, value in described.value_of.items():
        shape = described.graph.values[name].shape
        known = value.shape is not None and all(isinstance(s, int) for s in shape)
        if known and value.dtype is not None and value.dtype.bitwidth:
            wide = value.dtype.bitwidth / 8
            floating = described.graph.values[name].floating
            sizes[name] = Size(tuple(int(s) for s in shape if s is not None), wide, floating)
    return described.graph, sizes


def layers_of_nodes(path: Path) -> dict[str, str]:
    """The layer that each node of an ONNX file is described as, by the node's own name.

    Runtimes print the names of nodes; layers are called by the modules that they came from.
    """
    import onnx
    import onnx_ir as ir

    from quantkit.onnx.describing import describe_onnx

    graph = ir.serde.deserialize_model(onnx.load(str(path), load_external_data=False)).graph
    found = describe_onnx(graph).node_of_op
    return {str(node.name): layer for layer, node in found.items() if node.name}


def _fix_inputs(proto: Any, batch: int, dims: Mapping[str, int]) -> None:
    constants = {tensor.name for tensor in proto.graph.initializer}
    for given in proto.graph.input:
        if given.name in constants:
            continue
        for place, dim in enumerate(given.type.tensor_type.shape.dim):
            if dim.HasField("dim_value"):
                continue
            size = dims.get(dim.dim_param, batch if place == 0 else None)
            if size is not None:
                dim.dim_value = size
    for made in proto.graph.output:
        made.type.tensor_type.ClearField("shape")


def _require_batch(batch: int) -> None:
    if batch < 1:
        raise DataError(f"a batch of {batch} samples has no work; choose 1 or more")


def _symbols(description: Description, batch: int) -> Iterator[tuple[Any, int]]:
    """The symbols of dynamic dimensions of inputs, and the size that each stands for."""
    for node in description.node_of_value.values():
        value = node.meta.get("val")
        if node.op != "placeholder" or not isinstance(value, Tensor):
            continue
        sizes: tuple[Any, ...] = tuple(value.shape)  # mypy takes a symbol for an int
        for place, size in enumerate(sizes):
            if not isinstance(size, int) and size.node.expr.is_symbol:
                hint = size.node.hint
                if place == 0 or hint is not None:
                    yield size.node.expr, batch if place == 0 else int(hint)


def _known_shape(value: Tensor, known: Mapping[Any, int]) -> tuple[int, ...] | None:
    shape: list[int] = []
    sizes: tuple[Any, ...] = tuple(value.shape)
    for size in sizes:
        if isinstance(size, int):
            shape.append(size)
            continue
        resolved = size.node.expr.xreplace(known)
        if not (isinstance(resolved, int) or resolved.is_number):
            return None
        shape.append(int(resolved))
    return tuple(shape)


def _tensor(node: fx.Node) -> Tensor | None:
    value: Any = node.meta.get("val")
    if value is None and node.op == "get_attr":
        value = node.graph.owning_module
        for part in str(node.target).split("."):
            value = getattr(value, part)
    if isinstance(value, (list, tuple)):
        value = next((v for v in value if isinstance(v, Tensor)), None)
    return value if isinstance(value, Tensor) else None
