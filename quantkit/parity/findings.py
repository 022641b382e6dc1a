"""What is wrong with a file that leaves its simulation, and where that begins."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from quantkit.comparing import DEPLOYED
from quantkit.graph.abstract import COMPUTE
from quantkit.interfaces import Finding, Severity
from quantkit.model import QuantizedModel
from quantkit.onnx.parity import Closeness
from quantkit.onnx.taps import Taps

#: A step of a file that is given the simulation's tensors repeats its result better than this, in
#: dB. A zero-point that is one off costs an int8 tensor about 35 dB, a scale that is 1 % off 40;
#: values halfway between two points, which two runtimes may round apart, leave over 70.
DEPARTS = 50.0


def departure(
    name: str, kind: str, own: Closeness, known: Sequence[Finding], least: float
) -> Finding:
    """The first step that does not repeat the simulation; ``known``: what was found in the file."""
    told = next((f for f in known if f.where == name), None)
    what = "The result of this layer" if kind == "layer" else "This activation behind its Q/DQ"
    why = (
        f"{what} is the first where the file leaves the simulation: SQNR {own.sqnr:.1f} dB, "
        f"though it was given the simulation's tensors (under {least:g} dB it departs)."
    )
    likely = (
        "Its weight, its bias or the grid of either is not the model's."
        if kind == "layer"
        else "Its scale or zero-point is not the model's, or an operator before it differs."
    )
    return Finding(
        severity=Severity.ERROR,
        code="departs-from-simulation",
        where=name,
        why=f"{why} {f'Reason: {told.code}.' if told else likely}",
        fix="Export the file again from this model, and let nothing rewrite it after that.",
    )


def drift(tensors: Iterable[tuple[str, Closeness]]) -> Finding | None:
    """Errors that add up, where no step is wrong by itself: the first tensor that is far off."""
    for name, deployed in tensors:
        if not deployed.sqnr >= DEPLOYED:
            return Finding(
                severity=Severity.WARNING,
                code="deployment-drifts",
                where=name,
                why=f"From here on the deployed model is under {DEPLOYED:g} dB beside the "
                f"simulation ({deployed.sqnr:.1f}), though the file says the right thing at each "
                "step: the runtime computes something else here, or layers before amplify values "
                "that two runtimes round apart.",
                fix="Compare with another target; else leave the layers before it in more bits "
                "(`quantkit sensitivity` ranks them).",
            )
    return None


def missing(taps: Taps, model: QuantizedModel, quantized: Iterable[str]) -> list[Finding]:
    """Activations that the model quantizes and the file does not, or not for all that read them.

    Args:
        taps: of the file.
        model: the simulation.
        quantized: names of the activations behind its quantizers; ``relu for conv2`` where a
            tensor has several, such as padded ones.
    """
    found: list[Finding] = []
    computing = {d.op for d in model.plan.decisions if d.kind in COMPUTE}
    present = {tap.name for tap in taps.taps if tap.kind == "activation"}
    lost = [name.partition(" for ") for name in sorted(set(quantized) - present)]
    for tensor in model.plan.tensors:
        if tensor.role == "weight":
            continue
        readers = [edge for edge in tensor.edges if edge.op in computing]
        own = {reader for name, _, reader in lost if name == tensor.tensor}
        if own:
            given = {n.partition(" for ")[2] for n in present if n.startswith(f"{tensor.tensor} ")}
            others = [edge.op for edge in tensor.edges if edge.op not in given]
            names = ", ".join(sorted(own - {""}) or others)
            found.append(_missing(tensor.tensor, f"The file has no Q/DQ for it; {names} read it."))
            continue
        bare = [e.op for e in readers if taps.reads(e.op) and taps.read_by(e.op, e.index) is None]
        if bare:
            found.append(
                _missing(tensor.tensor, f"{', '.join(bare)} read it without its Q/DQ, in float.")
            )
    return found


def _missing(tensor: str, why: str) -> Finding:
    return Finding(
        severity=Severity.ERROR,
        code="missing-qdq",
        where=tensor,
        why=why,
        fix="Export the file again from this model, and let nothing rewrite it after that.",
    )
