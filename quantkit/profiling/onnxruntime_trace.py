"""Reads ONNX Runtime's profile, and from the graph that it made which layer each node is.

A profile is a list of events: ``cat`` is ``Session`` (``model_run`` is one run) or ``Node``,
whose name is that of a node of the optimized graph with ``_kernel_time`` behind it; ``ts`` and
``dur`` are whole microseconds, and ``args`` hold ``op_name`` and ``input_type_shape``.

https://onnxruntime.ai/docs/performance/tune-performance/profiling-tools.html
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import onnx

from quantkit.profiling.recording import Call, Recording
from quantkit.profiling.steps import Step, StepKind
from quantkit.targets._onnxruntime_graph import (
    COMPUTE,
    INTEGER_KERNELS,
    Kernel,
    attribute,
    input_name,
    label,
)

_KERNEL: Final = "_kernel_time"
_PRODUCTS: Final = COMPUTE | {"FusedConv", "NhwcFusedConv", "FusedGemm", "FusedMatMul"}
#: What a convolution takes in, and the end of the name of one in the blocked layout.
_ACTIVATIONS: Final = frozenset({"Relu", "LeakyRelu", "Clip", "Sigmoid", "Tanh", "HardSigmoid"})
_BLOCKED: Final = "_nchwc"
#: What stands before the name of a product that took in the activation behind it.
_FUSED: Final = "fused "
_JOINS: Final = frozenset({"Add", "Concat", "Sum", "QLinearAdd", "QLinearConcat"})
_REORDERS: Final = frozenset({"ReorderInput", "ReorderOutput"})
_KINDS: Final = {
    "QuantizeLinear": StepKind.QUANTIZE,
    "DequantizeLinear": StepKind.DEQUANTIZE,
    **dict.fromkeys(_PRODUCTS, StepKind.PRODUCT),
    **dict.fromkeys(_JOINS, StepKind.JOIN),
    **dict.fromkeys(_REORDERS, StepKind.REFORMAT),
}


@dataclass(frozen=True, kw_only=True)
class Names:
    """What the names of the optimized graph's nodes stand for.

    Attributes:
        nodes: the layer of a label: what quantkit wrote into the file, else the node's name.
        outputs: the layer that makes a tensor, with the activation behind it: convolutions in
            ONNX Runtime's own layout are named after what they make.
    """

    nodes: Mapping[str, str] = field(default_factory=dict)
    outputs: Mapping[str, str] = field(default_factory=dict)

    def layer(self, node: str) -> str:
        """The layer of a node of the optimized graph; empty where it is the runtime's own.

        Example:
            >>> names = Names(nodes={"qk5~": "conv1"})
            >>> names.layer("qk5~_token_1"), names.layer("fused qk5~"), names.layer("Transpose")
            ('conv1', 'conv1', '')
        """
        head, tilde, _ = node.removeprefix(_FUSED).partition("~")
        if tilde:
            return self.nodes.get(head + tilde, "")
        return self.outputs.get(node.removesuffix(_BLOCKED), "") if _BLOCKED in node else ""


def labelled(model: onnx.ModelProto) -> Names:
    """Give every node a label in place, by which nodes of the optimized graph are known."""
    layers = [
        next((p.value for p in node.metadata_props if p.key == "quantkit.layer"), "")
        for node in model.graph.node
    ]
    old = label(model)
    nodes = {k: layer or old[k] for k, layer in zip(old, layers, strict=True)}
    outputs: dict[str, str] = {}
    products: dict[str, str] = {}
    for node in model.graph.node:
        fused = products.get(input_name(node, 0)) if node.op_type in _ACTIVATIONS else None
        for name in node.output:
            outputs[name] = fused or nodes[node.name]
            if node.op_type in _PRODUCTS:
                products[name] = nodes[node.name]
    return Names(nodes=nodes, outputs=outputs)


def parse_profile(
    events: Sequence[Mapping[str, Any]], names: Names | None = None, *, skip: int = 0
) -> Recording:
    """The recording of a profile; without names, nodes are layers.

    Args:
        events: of the profile.
        names: of ``labelled``.
        skip: how many runs, the first, do not count.

    Raises:
        ValueError: it holds no node, or no run.

    Example:
        >>> found = parse_profile([
        ...     {"cat": "Node", "name": "conv1_kernel_time", "ts": 12, "dur": 30,
        ...      "args": {"op_name": "Conv", "input_type_shape": [{"float": [1, 3]}]}},
        ...     {"cat": "Session", "name": "model_run", "ts": 10, "dur": 40}])
        >>> [(call.layer, call.name, call.dtype) for call in found.calls]
        [('conv1', 'Conv', 'float')]
    """
    spans = sorted(
        (1e-6 * e["ts"], 1e-6 * (e["ts"] + e["dur"])) for e in events if e["name"] == "model_run"
    )[skip:]
    calls: list[Call] = []
    nodes = (e for e in events if e.get("cat") == "Node" and e["name"].endswith(_KERNEL))
    for event in sorted(nodes, key=lambda event: int(event["ts"])):
        start = 1e-6 * event["ts"]
        run = next((i for i, (begin, end) in enumerate(spans) if begin <= start <= end), None)
        if run is not None:
            node = event["name"].removesuffix(_KERNEL)
            calls.append(_call(event, node if names is None else names.layer(node), run, start))
    if not calls:
        raise ValueError("it holds no run of a model with its nodes")
    return Recording(device="cpu", calls=tuple(calls), runs=tuple(spans))


def _call(event: Mapping[str, Any], layer: str, run: int, start: float) -> Call:
    args = event.get("args", {})
    op = str(args.get("op_name", ""))
    types = [kind for told in args.get("input_type_shape", []) for kind in told]
    return Call(
        name=op,
        op=op,
        layer=layer,
        run=run,
        start=start,
        seconds=1e-6 * event["dur"],
        dtype=types[0] if types else "",
    )


def steps_of(
    optimized: onnx.ModelProto, names: Names, seconds: Mapping[str, float]
) -> tuple[Step, ...]:
    """The nodes of the graph that ONNX Runtime made, in order.

    Args:
        optimized: the graph.
        names: of ``labelled``.
        seconds: of each node, by its name.
    """
    graph = optimized.graph
    constants = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    return tuple(
        Step(
            name=node.name,
            layer=names.layer(node.name),
            op=node.op_type,
            kind=_kind(node, names),
            precision=_precision(node),
            inputs=tuple(name for name in node.input if name and name not in constants),
            outputs=tuple(name for name in node.output if name),
            channels=_channels(node, constants),
            seconds=seconds.get(node.name),
        )
        for node in graph.node
    )


def node_seconds(
    events: Sequence[Mapping[str, Any]], runs: int, *, skip: int = 0
) -> dict[str, float]:
    """The median time of each node of the optimized graph.

    Args:
        events: of the profile.
        runs: how many runs count.
        skip: how many runs before do not.
    """
    found: dict[str, list[float]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(_KERNEL):
            found[event["name"].removesuffix(_KERNEL)].append(1e-6 * event["dur"])
    return {
        name: sorted(times[skip:])[len(times[skip:]) // 2]
        for name, times in found.items()
        if len(times) >= runs
    }


def _kind(node: onnx.NodeProto, names: Names) -> StepKind:
    if node.op_type == "Transpose" and not names.layer(node.name):
        return StepKind.REFORMAT  # ONNX Runtime's own, around kernels of another layout
    return _KINDS.get(node.op_type, StepKind.OTHER)


def _precision(node: onnx.NodeProto) -> str:
    """What it multiplies in; of what is no product, whether its name says integers."""
    bits = attribute(node, "bits", None)
    if node.op_type in _PRODUCTS:
        told = Kernel(node.op_type, bits).precision
        return f"{told} weights" if bits is not None else told
    integer = node.op_type in INTEGER_KERNELS or node.op_type.startswith("QLinear")
    if integer or node.op_type == "DequantizeLinear":
        return "int8"
    return "float32"


def _channels(
    node: onnx.NodeProto, constants: Mapping[str, tuple[int, ...]]
) -> tuple[int, int] | None:
    """Input and output channels of one group, by the shape of the weight."""
    if node.op_type not in _PRODUCTS:
        return None
    position = 3 if node.op_type.startswith(("QLinear", "QGemm")) else 1
    shape = constants.get(input_name(node, position))
    if shape is None or len(shape) < 2:
        return None
    if "Conv" in node.op_type:
        return shape[1], shape[0] // int(attribute(node, "group", 1))
    across = bool(attribute(node, "transB", 0))
    return (shape[-1], shape[-2]) if across else (shape[-2], shape[-1])
