"""Reads the list of kernels that the TensorRT-RTX builder logs, the message ``Layers:``.

The list exists when the profiling verbosity is DETAILED and the logger takes VERBOSE messages.
It names for each kernel the tensors with their formats and the ONNX nodes that it computes.
"""

from __future__ import annotations

import re

from quantkit.targets._engine_layers import FORMATS, Kernel, TensorInfo

_HEAD = re.compile(r"^Name: (?P<name>.*?), LayerType: (?P<type>.*?), Inputs: \[")
_LISTS = re.compile(r", Inputs: \[(.*?)\], Constants: \[(.*?)\], Outputs: \[(.*?)\], TacticName: ")
_TENSOR = re.compile(r"Name: (.*?), Dimensions: \[([^\]]*)\].*?, Datatype: (.*?), Format: ")
#: Entries are parted by ASCII unit and record separators (which ``str.splitlines`` cuts at).
_METADATA = re.compile(r"\[ONNX Layer: (.*?)\](?=[\x1e\x1f]|\s*$)")


def parse_layers(message: str) -> tuple[Kernel, ...]:
    r"""The kernels of a ``Layers:`` message, in execution order.

    Example:
        >>> line = (
        ...     "Name: conv1_myl0_1, LayerType: correlation, Inputs: [ { Name: x, Dimensions: "
        ...     "[1,8,4,4], Strides: [], Datatype: Int8, Format: (NHWC) }], Constants: [], "
        ...     "Outputs: [], TacticName: , StreamId: 0, Metadata: [ONNX Layer: conv1]"
        ... )
        >>> kernel, = parse_layers("Layers:\n" + line)
        >>> kernel.nodes, kernel.inputs[0].format
        (('conv1',), 'int8')
    """
    return tuple(
        kernel for line in message.split("\n") if (kernel := _parse_line(line)) is not None
    )


def _parse_line(line: str) -> Kernel | None:
    head, lists = _HEAD.match(line), _LISTS.search(line)
    if head is None or lists is None:
        return None  # the heading, and the tables after the list
    inputs, constants, outputs = (_tensors(text) for text in lists.groups())
    metadata = line[line.rfind(", Metadata: ") :]
    return Kernel(
        name=head["name"],
        layer_type=head["type"],
        inputs=inputs,
        constants=constants,
        outputs=outputs,
        nodes=tuple(dict.fromkeys(_METADATA.findall(metadata))),
    )


def _tensors(text: str) -> tuple[TensorInfo, ...]:
    return tuple(
        TensorInfo(
            name=name,
            dimensions=tuple(size.strip() for size in sizes.split(",")),
            format=FORMATS.get(word, word.lower()),
        )
        for name, sizes, word in _TENSOR.findall(text)
    )
