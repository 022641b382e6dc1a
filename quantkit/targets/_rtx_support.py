"""What the parser of TensorRT-RTX says of a whole file or of a part of it; nothing is built."""

from __future__ import annotations

import tempfile
from pathlib import Path

from onnx import ModelProto

from quantkit.interfaces import Finding, Severity
from quantkit.targets import _rtx_findings
from quantkit.targets._engine_process import Builder, Outcome, run_builder
from quantkit.targets._engine_request import Request
from quantkit.targets._rtx_graph import GraphReader
from quantkit.tensorrt.settings import Settings

#: What to do about an operator that the parser does not take.
_WAYS = {
    "DynamicQuantizeLinear": "Calibrate static scales: quantkit quantize writes such Q/DQ.",
    "QLinearConv": "Write the file in Q/DQ form: quantkit quantize does, from the float file.",
    "QLinearMatMul": "Write the file in Q/DQ form: quantkit quantize does, from the float file.",
    "MatMulInteger": "Write MatMul between Q/DQ: quantkit quantize does, from the float file.",
    "ConvInteger": "Write Conv between Q/DQ: quantkit quantize does, from the float file.",
    "Unique": "Compute it before the engine, or leave it to ONNX Runtime between two engines.",
    "StringNormalizer": "Prepare text before the model: an engine holds no strings.",
    "TfIdfVectorizer": "Prepare text before the model: an engine holds no strings.",
    "SequenceConstruct": "Export with one tensor: stack what the sequence holds.",
    "SequenceAt": "Export with one tensor, and take the part by Gather or Slice.",
    "SplitToSequence": "Export with Split, whose outputs are tensors.",
    "ConcatFromSequence": "Export with Concat of the tensors.",
    "Optional": "Export the model for the one case that is deployed.",
    "Multinomial": "Draw the numbers before the engine, and give them as an input.",
    "Bernoulli": "Draw the numbers before the engine, and give them as an input.",
    "Det": "Leave it to ONNX Runtime, or write it out for the one size that is used.",
    "DFT": "Write it as a MatMul with the matrix of the transform, which is constant.",
    "STFT": "Write it as a Conv with the windowed transform as its weight.",
    "MelWeightMatrix": "Fold it: its inputs are constants of the model.",
    "ImageDecoder": "Decode before the model, with NVIDIA DALI for instance.",
    "RegexFullMatch": "Prepare text before the model: an engine holds no strings.",
}


def ask(path: Path, proto: ModelProto, *, timeout_s: float, progress: bool) -> Outcome:
    """What the parser says of a model, in a child process: a crash is told, not shared.

    Args:
        path: of the file, beside which its external data lies.
        proto: what is asked for: the whole of it or a part.
        timeout_s: seconds after which the parser is stopped.
        progress: show a progress bar, on a terminal.

    Raises:
        MissingDependencyError: TensorRT-RTX is not installed.
    """
    from quantkit.targets.tensorrt_rtx import INSTALL

    builder = Builder(
        module="tensorrt_rtx",
        title="TensorRT-RTX's parser",
        product="TensorRT-RTX",
        install=INSTALL,
    )
    with tempfile.TemporaryDirectory() as folder:
        named = Path(folder) / "part.onnx"
        named.write_bytes(proto.SerializeToString())
        request = Request(model=path, proto=named, engine=None, settings=Settings())
        return run_builder(builder, request, timeout_s=timeout_s, progress=progress)


def refused(outcome: Outcome, reader: GraphReader, model: str, timeout_s: float) -> list[Finding]:
    """The findings of what the parser refuses, each with a way out of its own."""
    operators = {node.name: node.op_type for node in reader.nodes}
    found = _rtx_findings.from_outcome(outcome, reader, model, timeout_s)
    return [_with_way(finding, operators.get(finding.where, "")) for finding in found]


def _with_way(finding: Finding, operator: str) -> Finding:
    if finding.code != "unsupported-operator" or not operator:
        return finding
    fix = _WAYS.get(
        operator,
        f"Replace {operator} by standard operators that compute the same, write a plugin for it, "
        "or leave it to ONNX Runtime between two engines.",
    )
    return Finding(
        severity=Severity.ERROR, code=finding.code, where=finding.where, why=finding.why, fix=fix
    )
