"""What a rounding or correction makes of a model is kept only where the outputs are no worse."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from quantkit import cli
from quantkit._cli_show import _finite
from quantkit.batches import Call
from quantkit.keeping import Judge, parted
from quantkit.model import Judged, QuantizedModel
from quantkit.passes._biases import put_bias
from quantkit.passes.correct_bias import CorrectBias
from quantkit.recipe import PlugIn, Recipe
from quantkit.reconstruction.problem import LayerProblem
from quantkit.rounding.gptq import Gptq
from quantkit.workflow import quantize, resolve_recipe

DATA = [torch.randn(8, 32, generator=torch.Generator().manual_seed(i)) for i in range(8)]


def network(*, bias: bool = True) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(32, 64, bias=bias), nn.ReLU(), nn.Linear(64, 32, bias=bias)
    ).eval()


def recipe(*passes: str, rounding: str = "nearest", bits: int = 4) -> Recipe:
    found = resolve_recipe("int8_ptq").model_dump()
    found["scheme"]["weights"]["bits"] = bits
    return Recipe.model_validate(found | {"passes": passes, "rounding": rounding})


def states_are_equal(one: QuantizedModel, other: QuantizedModel) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(
        torch.equal(first[name], second[name]) for name in first
    )


def test_a_rounding_that_helps_is_kept_and_says_what_it_was_worth() -> None:
    model = quantize(network(), recipe(rounding="gptq"), calibration=DATA)
    (judged,) = model.judged
    assert (judged.step, judged.kept) == ("gptq", True)
    assert judged.after > judged.before
    assert not states_are_equal(model, quantize(network(), recipe(), calibration=DATA))


def test_a_rounding_that_harms_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def harm(self: Gptq, problem: LayerProblem) -> tuple[Tensor, Tensor]:
        return problem.snap(problem.weight).neg(), problem.step

    monkeypatch.setattr(Gptq, "round", harm)
    model = quantize(network(), recipe(rounding="gptq"), calibration=DATA)
    nearest = quantize(network(), recipe(), calibration=DATA)
    assert not model.judged[0].kept
    assert "so it was not kept" in str(model.judged[0])
    x = torch.cat(DATA)
    with torch.no_grad():
        assert torch.equal(model(x), nearest(x))


@pytest.mark.parametrize("bias", [True, False])
def test_a_correction_that_harms_is_taken_back_with_the_biases_that_it_made(
    bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def harm(self: CorrectBias, model: QuantizedModel, calls: Sequence[Call]) -> int:
        for layer in model.layers():
            channels = layer.node.meta["val"].shape[-1]
            put_bias(model.graph, layer.node, layer.weight_source, torch.full((channels,), 9.0))
        model.graph.recompile()
        return 2

    monkeypatch.setattr(CorrectBias, "apply", harm)
    model = quantize(network(bias=bias), recipe("correct_bias"), calibration=DATA)
    assert [judged.kept for judged in model.judged] == [False]
    plain = quantize(network(bias=bias), recipe(), calibration=DATA)
    assert states_are_equal(model, plain)
    assert [n.name for n in model.graph.graph.nodes] == [n.name for n in plain.graph.graph.nodes]


def test_no_step_sees_the_calls_that_judge_it(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    told: list[Tensor] = []

    def look(self: CorrectBias, model: QuantizedModel, calls: Sequence[Call]) -> int:
        seen.extend(args[0] for args, _ in calls)
        return 0

    judge_of = Judge.of

    def note(model: QuantizedModel, calls: Sequence[Call], constants: Any = None) -> Judge:
        told.extend(args[0] for args, _ in calls)
        return judge_of(model, calls, constants)

    monkeypatch.setattr(CorrectBias, "apply", look)
    monkeypatch.setattr(Judge, "of", staticmethod(note))
    quantize(network(), recipe("correct_bias"), calibration=DATA)
    assert len(seen) == 6
    assert len(told) == 2
    assert not any(torch.equal(a, b) for a in seen for b in told)


def test_the_float_outputs_are_those_of_before_rounding() -> None:
    both = recipe("correct_bias", rounding="gptq")
    model = quantize(network(), both, calibration=DATA)
    first, second = model.judged
    assert (first.step, second.step) == ("gptq", "correct_bias")
    assert second.before == pytest.approx(first.after, abs=0.2)  # but for the rounding of biases
    x, net = torch.cat([DATA[3], DATA[7]]), network()
    with torch.no_grad():
        expected = net(x)
        noise = float((model(x) - expected).square().sum() / expected.square().sum())
    found = second.after if second.kept else second.before
    assert found == pytest.approx(-10 * math.log10(noise), abs=0.01)


def test_outputs_that_are_not_numbers_are_worse_than_any() -> None:
    model = quantize(network(), recipe(), calibration=DATA)
    judge = Judge.of(model, parted([((x,), {}) for x in DATA])[1])
    with judge.over(model, "spoils"), torch.no_grad():
        next(model.layers()).bias.fill_(math.nan)  # type: ignore[union-attr]
    assert not model.judged[0].kept
    assert math.isfinite(judge.noise(model))


def test_outputs_that_are_classes_judge_nothing() -> None:
    class Classes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x).argmax(1)  # type: ignore[no-any-return]

    model = quantize(Classes().eval(), recipe(rounding="gptq"), calibration=DATA)
    assert model.judged == ()
    nearest = quantize(Classes().eval(), recipe(), calibration=DATA)
    assert not states_are_equal(model, nearest)


def test_what_is_infinite_is_null_in_json() -> None:
    assert _finite({"step": "gptq", "before": math.inf, "after": 30.0, "kept": False}) == {
        "step": "gptq", "before": None, "after": 30.0, "kept": False,
    }  # fmt: skip


def test_a_shift_that_changes_nothing_is_not_judged() -> None:
    centered = resolve_recipe("int8_centered")
    assert PlugIn(name="center") in centered.passes
    assert quantize(network(), centered, calibration=DATA).judged == ()


def test_the_command_tells_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.export.save(torch.export.export(network(), (DATA[0],)), "net.pt2")
    (tmp_path / "recipe.yaml").write_text(recipe("correct_bias", rounding="gptq").to_yaml())
    np.savez("rows.npz", input=torch.cat(DATA).numpy())
    (tmp_path / "rows.yaml").write_text("{source: rows.npz, inputs: {input: {}}, batch_size: 8}")
    command = shlex.split("quantize net.pt2 --recipe recipe.yaml --data rows.yaml -o a.onnx")
    assert cli.main(command) == 0
    out = capsys.readouterr().out
    assert "gptq: " in out
    assert " dB" in out
    assert cli.main([*command, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["judged"]
    assert [step["step"] for step in told] == ["gptq", "correct_bias"]
    assert set(told[0]) == set(Judged.__dataclass_fields__)
