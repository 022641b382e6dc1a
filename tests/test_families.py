"""Well-known model families go the whole way: quantized, exported, compared, built."""

from __future__ import annotations

import importlib.util
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path

import onnx_ir as ir
import pytest

from benchmarks.families import FAMILIES, Family
from benchmarks.models import EXACT, Result, measure, render
from quantkit.graph.abstract import Kind
from quantkit.model import QuantizedModel
from quantkit.onnx import export

#: How many attentions a family has; every one is to run fused, in INT8.
ATTENTIONS = {"bert": 2, "vit": 2, "swin": 4, "llama": 2, "whisper_encoder": 2}
#: Layers that the builder runs in float with INT8 weights: it fuses their bias instead.
BIAS_FUSED = {"swin": {"q_proj", "k_proj", "v_proj"}}

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason='TensorRT-RTX is not installed: pip install "quantkit[rtx]"',
)


def families(*names: str) -> pytest.MarkDecorator:
    """One test a family."""
    chosen = [f for f in FAMILIES if not names or f.name in names]
    marks = {True: [pytest.mark.slow], False: []}
    return pytest.mark.parametrize(
        "family", [pytest.param(f, id=f.name, marks=marks[f.slow]) for f in chosen]
    )


@pytest.fixture(autouse=True)
def _one_run_of_the_exporter(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Both forms from one run of torch's exporter, which takes most of the time."""
    run, made = export._export, {}

    def once(model: QuantizedModel) -> ir.Model:
        if model not in made:
            made[model] = run(model)
        return made[model].clone()

    monkeypatch.setattr(export, "_export", once)
    yield
    assert len(made) <= 1


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Family], Result]:
    """The whole way of a family, gone once."""
    results: dict[str, Result] = {}

    def of(family: Family) -> Result:
        if family.name not in results:
            results[family.name] = measure(family, tmp_path_factory.mktemp(family.name))
        return results[family.name]

    return of


@families()
def test_every_planned_layer_runs_in_int8_and_onnx_runtime_agrees(
    family: Family, measured: Callable[[Family], Result]
) -> None:
    result = measured(family)

    assert result.fidelity > 15
    for rows in result.parity.values():
        # The median: a row in which a tie is rounded the other way differs from there on, at the
        # worst as two independent roundings do: 3 dB below its own fidelity, which is some dB
        # from that of all rows.
        assert statistics.median(rows) > EXACT
        assert min(rows) > result.fidelity - 10
    assert result.engine.findings == ()
    assert [layer.node for layer in result.engine.layers if layer.precision != "int8"] == []
    assert result.engine.covered == result.engine.planned == result.layers
    assert {layer.node for layer in result.engine.layers} == set(result.plan.quantized)
    assert result.fused == result.attentions == ATTENTIONS.get(family.name, 0)


@families("swin")
def test_weight_only_quantizes_the_linear_layers_alone(family: Family, tmp_path: Path) -> None:
    result = measure(family, tmp_path, recipe="int8_weight_only", forms=("tensorrt",))

    kinds = {d.kind: d.quantized for d in result.plan.decisions if d.kind is not Kind.ADD}
    assert kinds.pop(Kind.LINEAR)
    assert not any(kinds.values())
    assert statistics.median(result.parity["tensorrt"]) > EXACT
    assert result.engine.planned == len(result.plan.quantized)
    floats = {
        layer.node.rpartition(".")[2]
        for layer in result.engine.layers
        if layer.quantized and layer.precision != "int8 weights"
    }
    assert floats == BIAS_FUSED.get(family.name, set())
    assert {f.code for f in result.engine.findings} == ({"runs-in-float"} if floats else set())


def test_the_page_says_of_each_family_what_is_quantized_and_why_not(
    measured: Callable[[Family], Result],
) -> None:
    whisper = next(f for f in FAMILIES if f.name == "whisper_encoder")
    result = measured(whisper)

    page = render({whisper.name: result}, {whisper.name: result})

    assert "| [Whisper encoder](#whisper-encoder) | 18 | 18 | 0 |" in page
    assert "| convolution 3 | 2 |" in page
    assert "| residual add | 4 | the residual stream" in page
