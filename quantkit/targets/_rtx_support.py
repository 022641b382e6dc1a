"""What the parser of TensorRT-RTX says of all parts of a model, one after the other.

It checks operators and attributes of all nodes, and then imports them; but it imports no further
than to the first node that it cannot, and nothing where the check found one. So the file is checked
first, with an operator before it that no parser has; then each engine of the split is imported
alone. What is refused leaves, the rest is split again, and engines that are new are asked for,
until it takes every one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from onnx import ModelProto, NodeProto, ValueInfoProto, helper

from quantkit.interfaces import Finding, Severity
from quantkit.onnx import flow
from quantkit.partitioning import split
from quantkit.targets._engine_process import Builder, Outcome, run_builder
from quantkit.targets._engine_request import Request
from quantkit.targets._rtx_findings import from_outcome, sentence
from quantkit.targets._rtx_graph import GraphReader
from quantkit.targets._rtx_ways import told_better
from quantkit.tensorrt.settings import Settings

#: An operator that no parser has.
_MARK = "quantkit.NoOperator"
#: Asks the parser for a model.
Ask = Callable[[ModelProto], Outcome]
#: What the linter says of operators that it does not know: of those the parser is asked.
_DOUBTED = frozenset({"custom-operator", "dynamic-quantization", "qoperator-form"})


@dataclass(frozen=True, kw_only=True)
class Verdicts:
    """What is refused of a model, and what was asked.

    Attributes:
        refused: of each node that no engine can hold, why.
        verified: for the nodes of each engine that was asked for alone: whether the parser takes
            it; ``None`` where it could not be asked.
        notes: findings on the whole file.
    """

    refused: Mapping[str, Finding]
    verified: Mapping[tuple[str, ...], bool | None]
    notes: tuple[Finding, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Question:
    """A model, and what is known of it before the parser is asked.

    Attributes:
        model: every node with a name of its own, sorted.
        label: the name of its file.
        owners: of nodes in bodies of others, the node of the graph that they are in.
        values: the types of its tensors.
        known: the linter's errors, by node.
        smallest: the least number of operators of an engine; smaller ones are asked for as well,
            to find what is refused in them.
    """

    model: ModelProto
    label: str
    values: Mapping[str, ValueInfoProto]
    owners: Mapping[str, str] = field(default_factory=dict)
    known: Mapping[str, Finding] = field(default_factory=dict)
    smallest: int = 1


def examine(question: Question, ask: Ask) -> Verdicts:
    """Split, ask for each engine, leave out what is refused, and again, until none is."""
    refused = {n: f for n, f in question.known.items() if f.code not in _DOUBTED}
    refused |= _checked(question, refused, ask)
    refused |= _strange(question, refused)
    verified: dict[tuple[str, ...], bool | None] = {}
    while True:
        steps = flow.flow(question.model.graph, refused)
        every = [e for size in (1, question.smallest) for e in split(steps, size).engines]
        engines = dict.fromkeys(tuple(steps[i].name for i in e.steps) for e in every)
        fresh = [names for names in engines if names not in verified]
        parts = {n: flow.part(question.model, n, question.values) for n in fresh}
        verified |= dict.fromkeys(fresh)
        asked = {names: part for names, part in parts.items() if part is not None}
        if not asked:
            return Verdicts(refused=refused, verified=verified)
        if _takes_all(list(asked.values()), ask):
            verified |= dict.fromkeys(asked, True)
            continue
        for names, part in asked.items():
            outcome = ask(part)
            if outcome.ended == "timeout":
                note = _too_slow(question.label, outcome.seconds)
                return Verdicts(refused=refused, verified=verified, notes=(note,))
            verified[names] = outcome.built
            if not outcome.built:
                refused |= _refusals(question, part, names, outcome, ask)


def _takes_all(parts: Sequence[ModelProto], ask: Ask) -> bool:
    """Whether the parser takes several parts; one question is quicker than many."""
    whole = flow.joined(parts) if len(parts) > 1 else None
    return whole is not None and ask(whole).built


def parser(folder: Path, *, timeout_s: float, progress: bool) -> Ask:
    """Asks TensorRT-RTX's parser in a child process: a crash is told, not shared.

    Args:
        folder: where external data lies.
        timeout_s: seconds for all questions together.
        progress: show a progress bar, on a terminal.
    """
    from quantkit.targets.tensorrt_rtx import INSTALL

    builder = Builder(
        module="tensorrt_rtx",
        title="TensorRT-RTX's parser",
        product="TensorRT-RTX",
        install=INSTALL,
    )
    deadline = time.monotonic() + timeout_s

    def ask(model: ModelProto) -> Outcome:
        file = folder / "part.onnx"
        file.write_bytes(model.SerializeToString())
        request = Request(model=file, engine=None, settings=Settings())
        left = max(deadline - time.monotonic(), 0.0)
        return run_builder(builder, request, timeout_s=left, progress=progress)

    return ask


def _checked(question: Question, refused: Container[str], ask: Ask) -> dict[str, Finding]:
    """What the parser's check of all nodes finds; the linter's word for it, where it has one."""
    whole = ModelProto()
    whole.CopyFrom(question.model)
    whole.graph.ClearField("node")
    whole.graph.node.append(helper.make_node(_MARK, [], [_MARK], _MARK, domain="quantkit"))
    whole.graph.node.extend(question.model.graph.node)
    # The check does not look into bodies, nor at the tensors that nodes read.
    whole.graph.node.extend(map(_loose, flow.inner_nodes(question.model.graph)))
    outcome = ask(whole)
    if not any(refusal.node == _MARK for refusal in outcome.refusals):
        # It did not come so far: it is left to the questions that follow, and to the linter.
        return {n: f for n, f in question.known.items() if f.code in _DOUBTED}
    told = _told(question, whole, outcome)
    return {
        name: question.known.get(name, finding)
        for name, finding in told.items()
        if name != _MARK and name not in refused
    }


def _told(question: Question, asked: ModelProto, outcome: Outcome) -> dict[str, Finding]:
    """Why nodes are refused, by their names; those in a body by the node that has it."""
    inside = {node.name: node for node in (*asked.graph.node, *flow.inner_nodes(asked.graph))}
    told: dict[str, Finding] = {}
    # Of an outcome without refusals that function tells of the builder.
    said = from_outcome(outcome, GraphReader(asked), question.label, 0.0)
    for finding in said if outcome.refusals else ():
        if finding.where in inside:
            finding = told_better(finding, inside[finding.where])
            finding = on_owner(finding, question.owners)
            told.setdefault(finding.where, finding)
    return told


def on_owner(finding: Finding, owners: Mapping[str, str]) -> Finding:
    """A finding on a node in the body of another, as one on that other."""
    if finding.where not in owners:
        return finding
    why = f"In its body, {finding.where}: {finding.why}"
    return replace(finding, where=owners[finding.where], why=why)


def _loose(node: NodeProto) -> NodeProto:
    """A copy that no tensor ties to other nodes."""
    copy = NodeProto()
    copy.CopyFrom(node)
    for names, side in ((copy.input, "reads"), (copy.output, "makes")):
        names[:] = [name and f"{node.name} {side} {k}" for k, name in enumerate(names)]
    return copy


def _strange(question: Question, refused: Iterable[str]) -> dict[str, Finding]:
    """The nodes that read tensors of types that no engine has."""
    found = flow.of_other_types(question.model, question.values)
    return {
        node: Finding(
            severity=Severity.ERROR,
            code="tensor-type",
            where=node,
            why=f"It reads {tensor!r}, of type {kind}, and an engine holds no such tensors.",
            fix="Give the model what this node makes of it as an input, or cast it to float or "
            "int32 before the engine.",
        )
        for node, (tensor, kind) in found.items()
        if node not in refused
    }


def _refusals(
    question: Question, part: ModelProto, names: tuple[str, ...], outcome: Outcome, ask: Ask
) -> dict[str, Finding]:
    """Why the parser does not take a part: one finding or more, each on a node of it."""
    told = _told(question, part, outcome)
    if told:
        return told
    name = _culprit(question, names, outcome, ask)
    node = next(node for node in part.graph.node if node.name == name)
    return {name: told_better(_unexplained(name, outcome), node)}


def _culprit(question: Question, names: tuple[str, ...], outcome: Outcome, ask: Ask) -> str:
    """The last node of the shortest beginning of a part that ends as the part does."""
    good, bad = 0, len(names)
    while bad - good > 1:
        middle = (good + bad) // 2
        beginning = flow.part(question.model, names[:middle], question.values)
        ended = None if beginning is None else ask(beginning)
        if ended is not None and not ended.built and (ended.ended or not outcome.ended):
            bad = middle
        else:
            good = middle
    return names[bad - 1]


def _unexplained(name: str, outcome: Outcome) -> Finding:
    crashed = outcome.ended is not None
    said = next((sentence(refusal.why) for refusal in outcome.refusals), "")
    return Finding(
        severity=Severity.ERROR,
        code="parser-crash" if crashed else "unsupported-operator",
        where=name,
        why=f"The parser crashes ({outcome.ended}) on it, in its child process."
        if crashed
        else said or "The parser does not take it here, and gives no reason.",
        fix="Export it in another form, or leave it to ONNX Runtime between two engines.",
    )


def _too_slow(label: str, seconds: float) -> Finding:
    return Finding(
        severity=Severity.ERROR,
        code="parser-timeout",
        where=label,
        why=f"The parser had not answered when its time was over, after {seconds:.0f} s more.",
        fix="Raise timeout_s; what was not asked is told as such.",
    )
