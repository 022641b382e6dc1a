"""A model without the numbers in its weights: for questions whose answers do not depend on them.

A parser that takes a Conv takes it whatever its weight holds. So large tensors are stored as
external data in one file of zeros, which takes no room on a disk; a question about a model of
many gigabytes is then one about a few kilobytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from onnx import GraphProto, ModelProto, NodeProto, TensorProto
from onnx.external_data_helper import ExternalDataInfo, load_external_data_for_tensor

from quantkit.errors import ModelFileError
from quantkit.onnx.tensor_types import bytes_of, subgraphs

#: Tensors of up to so many bytes keep their values: they may be shapes, axes or bounds.
SMALL: Final = 4096
ZEROS: Final = "zeros.bin"
_PAGE: Final = 4096


def without_weights(model: ModelProto, origin: Path, folder: Path) -> None:
    """Take the values out of the large tensors of a model, in place.

    The scales and zero-points of grids keep theirs, whatever their size.

    Args:
        model: as it was read, its external data not loaded.
        origin: the file that it was read from, beside which its external data lies.
        folder: where the zeros are written; where the model must be saved to be whole.

    Raises:
        ModelFileError: external data of the model is missing.
    """
    end = 0
    kept = set(_parameters(model.graph))
    for tensor in _stored(model.graph):
        size = bytes_of(tensor.data_type, tensor.dims)
        external = tensor.data_location == TensorProto.EXTERNAL
        if external:
            _require_data(tensor, origin)
        if size is not None and size > SMALL and tensor.name not in kept:
            _point_to_zeros(tensor, end, size)
            # One place for each: TensorRT knows weights by their address, and wants one size of it.
            end += -(-size // _PAGE) * _PAGE
        elif external:
            load_external_data_for_tensor(tensor, str(origin.parent))
            tensor.data_location = TensorProto.DEFAULT
            tensor.ClearField("external_data")
    with (folder / ZEROS).open("wb") as file:
        file.truncate(end)


def _parameters(graph: GraphProto) -> Iterator[str]:
    """The names of scales and zero-points."""
    for node in graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            yield from node.input[1:]
        for inner in subgraphs(node):
            yield from _parameters(inner)


def _stored(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        yield from _constant(node)
        for inner in subgraphs(node):
            yield from _stored(inner)


def _constant(node: NodeProto) -> Iterator[TensorProto]:
    """The value of a Constant whose data lies outside; others are read with the file as it is."""
    for attribute in node.attribute:
        if attribute.HasField("t") and attribute.t.data_location == TensorProto.EXTERNAL:
            yield attribute.t


def _require_data(tensor: TensorProto, origin: Path) -> None:
    info = ExternalDataInfo(tensor)
    file = origin.parent / info.location
    needed = (info.offset or 0) + (info.length or 0)
    if not file.is_file() or file.stat().st_size < needed:
        raise ModelFileError(
            f"{origin}: the values of {tensor.name} are to be in {info.location}, which is missing "
            "or cut off; keep that file beside the model"
        )


def _point_to_zeros(tensor: TensorProto, start: int, size: int) -> None:
    name, kind, dims = tensor.name, tensor.data_type, list(tensor.dims)
    tensor.Clear()
    tensor.name, tensor.data_type = name, kind
    tensor.dims.extend(dims)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", ZEROS), ("offset", str(start)), ("length", str(size))):
        tensor.external_data.add(key=key, value=value)
