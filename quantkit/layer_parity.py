"""Float, simulated and deployed, layer by layer: where does the file leave what was simulated?

Each tensor is compared twice. *From the model's inputs on*, errors add up: what is far off at the
end may have begun anywhere. *By itself*, each step of the file is given the simulation's tensors,
so that what it does wrong is seen there and nowhere behind; without a fault both are equal, but
for the rounding of a float product and for values that lie halfway between two points of a grid.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from quantkit import batches as batches_of
from quantkit.interfaces import Target
from quantkit.model import QuantizedModel
from quantkit.onnx.facts import FileFacts, read_proto
from quantkit.onnx.taps import Taps
from quantkit.parity.comparison import Comparison
from quantkit.parity.findings import DEPARTS, departure, drift, missing
from quantkit.parity.grid_faults import grid_faults
from quantkit.parity.result import LayerParity as LayerParity
from quantkit.parity.result import TensorParity as TensorParity
from quantkit.parity.values import Interior
from quantkit.progress import track
from quantkit.settling import settled
from quantkit.workflow import prepare


def compare_layers(
    model: Path | str,
    simulated: QuantizedModel,
    data: Iterable[Any],
    *,
    floating: QuantizedModel | None = None,
    samples: int = 64,
    target: Target | None = None,
    min_sqnr: float = DEPARTS,
) -> LayerParity:
    """Compare a file with the quantized model that it was made of, at every layer and grid.

    ONNX Runtime runs the file in its exact mode. It keeps its integer kernels while activations
    behind Q/DQ are read; for the results of layers, which those kernels do not put out, it runs a
    second time without.

    Args:
        model: the ONNX file, written by ``export_onnx``.
        simulated: the model that it was written of.
        data: batches, as for ``quantize``.
        floating: the same model in float (`float_twin`): tells how far simulation is from that.
        samples: about how many to compare: batches are taken until there are as many.
        target: where the file is run as well, if it is not ONNX Runtime.
        min_sqnr: a step whose own result is under this, in dB, departs.

    Raises:
        ModelFileError: there is no such file, or it is no ONNX file.
        DataError: the data do not fit, or are empty.
        NotRunError: the file does not load in ONNX Runtime.
        TargetError: the file fails on the data, or does not run on ``target``.

    Example:
        >>> import tempfile, torch, quantkit as qk
        >>> net = torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.ReLU())
        >>> batches = [torch.randn(8, 32)]
        >>> qmodel = qk.quantize(net, "int8_cpu", calibration=batches)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = qk.export_onnx(qmodel, f"{folder}/net.onnx")
        ...     found = compare_layers(file, qmodel, batches)
        >>> found.departs is None, [tensor.name for tensor in found.tensors]
        (True, ['input', '0'])
    """
    started = time.perf_counter()
    path, simulated = Path(model), settled(simulated)
    taps = Taps(read_proto(path))
    inside = Interior(simulated)
    known = [tap for tap in taps.taps if tap.name in inside.names(tap.kind)]
    comparison = Comparison(path, FileFacts.of(path), taps, known, target)
    twin = None if floating is None else Interior(floating)
    calls = _first(data, samples)
    for call, there in track(
        zip(calls, comparison.on_target(calls), strict=True), "comparing layers", total=len(calls)
    ):
        values = None if twin is None else twin.run(*call)
        comparison.update(call, inside.run(*call), values, there)
    tensors = comparison.result(centered=simulated.recipe.centers)
    lost = missing(taps, simulated, inside.names("activation"))
    faults = grid_faults(taps.model, path.parent, simulated)
    first = next((t for t in tensors if not t.own.sqnr >= min_sqnr), None)
    findings = [*lost, *faults]
    if first is not None:
        findings.append(departure(first.name, first.kind, first.own, findings, min_sqnr))
    elif (drifted := drift((t.name, t.deployed) for t in tensors)) is not None:
        findings.append(drifted)
    on_target = drift((t.name, t.target) for t in tensors if t.target is not None)
    if on_target is not None and on_target.where not in {f.where for f in findings}:
        findings.append(on_target)
    return LayerParity(
        tensors=tuple(tensors),
        departs=None if first is None else first.name,
        findings=tuple(findings),
        samples=sum(map(batches_of.samples_of, calls)),
        seconds=time.perf_counter() - started,
        ran_on=None if target is None else type(target).__module__.rpartition(".")[2],
        notes=tuple(comparison.notes(inside)),
    )


def _first(data: Iterable[Any], samples: int) -> list[batches_of.Call]:
    """Whole batches, until there are so many samples."""
    calls: list[batches_of.Call] = []
    for call in batches_of.as_batches(data):
        calls.append(call)
        if sum(map(batches_of.samples_of, calls)) >= samples:
            break
    return calls


def float_twin(
    model: Any, quantized: QuantizedModel, calibration: Iterable[Any] | None = None
) -> QuantizedModel:
    """The float model with the tensors that a quantized one has: the recipe's passes run over it.

    Args:
        model: the float model, as it was given to ``quantize``.
        quantized: what ``quantize`` made of it.
        calibration: the data it was calibrated on, which some passes look at.

    Raises:
        DataError: a pass looks at data, and there are none.
    """
    captured = quantized.capture
    twin = prepare(
        model, quantized.recipe, example_inputs=captured.args, example_kwargs=captured.kwargs,
        dynamic_shapes=captured.dynamic_shapes, calibration=calibration,
    )  # fmt: skip
    twin.simulate(False)
    return twin
