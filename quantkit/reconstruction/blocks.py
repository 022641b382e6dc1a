"""Cut a model into blocks: pieces that hand on one tensor, as residual blocks do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor, fx

from quantkit.model import LAYER, Layer, QuantizedModel
from quantkit.reconstruction.stream import Pieces

#: Layers without a residual around them are joined into blocks of so many at most.
MOST_JOINED = 4


@dataclass(frozen=True)
class Span:
    """Operators ``start`` to ``stop`` of a model, and the layers among them whose weights round.

    Attributes:
        name: the path that the layers have in common, or that of the only one.
        start, stop: indices into the operators of `Pieces`.
        layers: in order.
        output: the tensor that the block hands on; ``None`` where there are several.
    """

    name: str
    start: int
    stop: int
    layers: tuple[Layer, ...]
    output: fx.Node | None


def blocks_of(model: QuantizedModel, pieces: Pieces) -> list[Span]:
    """The whole model as blocks, each with at least one layer that has a weight to round.

    A block ends where all that later operators read of what layers have computed is one tensor.
    Layers in a row, without a residual around them, form one block where they lie in one module.
    """
    layers = {layer.node: layer for layer in model.layers() if layer.weight is not None}
    if not layers:
        return []
    cuts = [0, *_cuts(pieces, layers), len(pieces.nodes)]
    spans = [_span(pieces, layers, start, stop) for start, stop in pairwise(cuts)]
    return _joined(pieces, layers, [span for span in spans if span is not None])


def _cuts(pieces: Pieces, layers: dict[fx.Node, Layer]) -> list[int]:
    """The places, one before each layer that a block may begin with."""
    deep = _deep(pieces)
    cuts: list[int] = []
    possible: int | None = None
    since = False  # whether a layer has come since the last cut
    for place, node in enumerate(pieces.nodes):
        if node in layers:
            if since and possible is not None:
                cuts.append(possible)
            since, possible = True, None
        alive = [n for n in pieces.live(place + 1) if n in deep]
        if len(alive) == 1 and not _is_quantizer(alive[0]):
            possible = place + 1
    return cuts


def _deep(pieces: Pieces) -> set[fx.Node]:
    """What the first layer reads, and what depends on it: masks do not, and live beside all."""
    first = next(node for node in pieces.nodes if LAYER in node.meta)
    source = first.args[0]
    while isinstance(source, fx.Node) and _is_quantizer(source):
        source = source.args[0]
    found = {source} if isinstance(source, fx.Node) else set()
    for node in pieces.nodes:
        value = node.meta.get("val")
        numbers = isinstance(value, Tensor) and value.is_floating_point()
        if LAYER in node.meta or (numbers and any(n in found for n in node.all_input_nodes)):
            found.add(node)
    return found


def _is_quantizer(node: fx.Node) -> bool:
    return node.op == "call_module"


def _span(pieces: Pieces, layers: dict[fx.Node, Layer], start: int, stop: int) -> Span | None:
    own = tuple(layers[n] for n in pieces.nodes[start:stop] if n in layers)
    if not own:
        return None
    deep = _deep(pieces)
    alive = [n for n in pieces.live(stop) if n in deep] if stop < len(pieces.nodes) else []
    output = alive[0] if len(alive) == 1 else None
    if stop == len(pieces.nodes):
        out = next(n for n in pieces.model.graph.graph.nodes if n.op == "output")
        results = [n for n in out.all_input_nodes if n in pieces.index]
        output = results[0] if len(results) == 1 else None
    return Span(_common([layer.name for layer in own]), start, stop, own, output)


def _joined(pieces: Pieces, layers: dict[fx.Node, Layer], spans: list[Span]) -> list[Span]:
    """Neighbours of one layer each that lie in one module become one block."""
    found: list[Span] = []
    for span in spans:
        before = found[-1] if found else None
        if before is not None and before.stop != span.start:
            # Operators between them that hold no layer.
            span = _span(pieces, layers, before.stop, span.stop) or span
        if before is not None and len(span.layers) == 1 and _alike(before, span):
            joined = _span(pieces, layers, before.start, span.stop)
            if joined is not None:
                found[-1] = joined
                continue
        found.append(span)
    return found


def _alike(before: Span, span: Span) -> bool:
    """Whether both lie in one module, not the whole model, and are few enough together."""
    parents = {layer.name.rpartition(".")[0] for layer in (*before.layers, *span.layers)}
    return len(parents) == 1 and parents != {""} and len(before.layers) < MOST_JOINED


def _common(names: Sequence[str]) -> str:
    """The path that names have in common, by whole parts.

    Example:
        >>> _common(["blocks.1.conv1", "blocks.1.conv2"]), _common(["fc"])
        ('blocks.1', 'fc')
    """
    if len(names) == 1:
        return names[0]
    parts = [name.split(".") for name in names]
    same: list[str] = []
    for column in zip(*parts, strict=False):
        if len(set(column)) > 1:
            break
        same.append(column[0])
    return ".".join(same) or f"{names[0]} to {names[-1]}"
