"""Keep batch-norm while a quantized model trains, and fold it when the model is settled."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from quantkit.graph.batchnorm import foldable, keep
from quantkit.interfaces import Pass


@dataclass(frozen=True, kw_only=True)
class KeepBatchNorm(Pass):
    """The layer's weight becomes ``W * gamma / sqrt(variance + eps)``, computed at each step.

    So what is quantized is the weight that will be deployed, gamma and beta train, and the running
    statistics move with the model until batch-norm is frozen (Jacob et al. 2018, arXiv:1712.05877,
    section 3.2; Krishnamoorthi 2018, arXiv:1806.08342, section 3.2.2). In evaluation mode this is
    what ``fold_batchnorm`` makes, and ``settle`` and export fold it for good. It takes the place of
    ``fold_batchnorm``, in the same cases (transposed convolutions aside).

    A channel whose gamma is 0 stays as it is: its weights are 0 on the grid, and gamma has no
    gradient. A batch-norm with ``momentum=None`` is captured with momentum 0: its statistics stay.
    """

    def apply(self, graph: fx.GraphModule) -> int:
        """Rewrite every batch-norm that can be; returns how many."""
        count = 0
        for node in list(graph.graph.nodes):
            found = foldable(graph, node)
            if found is not None and found.axis == 0:
                keep(graph, found)
                count += 1
        if count:
            graph.graph.eliminate_dead_code()
            graph.recompile()
        return count
