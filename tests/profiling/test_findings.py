"""Each finding: a planted case that triggers it, and a sound one that does not."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantkit.interfaces import Finding
from quantkit.profiling.findings import findings
from quantkit.profiling.kinds import Confidence, Unit, Work
from quantkit.profiling.report import KernelTime, Totals
from quantkit.profiling.steps import Step, StepKind

P, Q, DQ, R, J = (
    StepKind.PRODUCT,
    StepKind.QUANTIZE,
    StepKind.DEQUANTIZE,
    StepKind.REFORMAT,
    StepKind.JOIN,
)


def chain(*kinds: tuple[str, StepKind, str], ms: float = 1.0) -> list[Step]:
    """Steps one after the other, a millisecond each."""
    return [
        Step(
            name=name, layer=name, op=str(kind), kind=kind, precision=precision,
            inputs=(f"t{i}",), outputs=(f"t{i + 1}",), seconds=1e-3 * ms,
        )
        for i, (name, kind, precision) in enumerate(kinds)
    ]  # fmt: skip


def codes(found: tuple[Finding, ...]) -> list[str]:
    return [finding.code for finding in found]


def of_steps(steps: list[Step], device: str = "cpu") -> tuple[Finding, ...]:
    return findings("cuda" if device == "cuda" else "cpu", (), None, steps)


ISLAND = (
    ("a", P, "int8"), ("dq", DQ, "int8"), ("middle", P, "float32"), ("q", Q, "float32"),
    ("b", P, "int8"),
)  # fmt: skip


def test_a_float_layer_between_int8_ones_is_an_island_with_the_time_it_costs() -> None:
    found = of_steps(chain(*ISLAND))
    assert codes(found) == ["float-island"]
    assert found[0].where == "middle"
    assert "60.0 % of the time" in found[0].why
    assert "66.7 % of it for conversions" in found[0].why


@pytest.mark.parametrize(
    "steps",
    [
        chain(*[(n, k, "int8" if k is P else p) for n, k, p in ISLAND]),
        chain(*[(n, k, "float32") for n, k, _ in ISLAND]),
        chain(*ISLAND[:4]),  # float at the end: no int8 behind it
        chain(*ISLAND[1:]),
    ],
)
def test_a_model_without_float_in_its_midst_has_no_island(steps: list[Step]) -> None:
    assert "float-island" not in codes(of_steps(steps))


def test_neighbouring_float_layers_are_one_island() -> None:
    steps = chain(
        ("a", P, "int8"), ("dq", DQ, "int8"), ("m", P, "float32"), ("n", P, "float32"),
        ("q", Q, "float32"), ("b", P, "int8"),
    )  # fmt: skip
    found = of_steps(steps)
    assert [finding.where for finding in found] == ["m, n"]


def test_an_island_without_times_is_told_without_a_share() -> None:
    steps = [replace(step, seconds=None) for step in chain(*ISLAND)]
    (found,) = of_steps(steps)
    assert found.code == "float-island"
    assert "%" not in found.why


def joined(precision: str, *, quantized: bool = True) -> list[Step]:
    """Two int8 convolutions that are added, and what reads the sum."""
    low = precision == "int8"
    made = "y1" if low else "f1"
    steps = [
        Step(name="a", layer="a", op="conv", kind=P, precision="int8", inputs=("x",),
             outputs=("y1",), seconds=1.0),
        Step(name="add", layer="add", op="Add", kind=J, precision=precision,
             inputs=(made, "x" if low else "f2"), outputs=("s",), seconds=1.0),
    ]  # fmt: skip
    if not low:
        steps[1:1] = [
            Step(name=f"dq{i}", layer="", op="DQ", kind=DQ, precision="int8", inputs=(source,),
                 outputs=(f"f{i}",), seconds=1.0)
            for i, source in ((1, "y1"), (2, "x"))
        ]  # fmt: skip
    if quantized:
        steps.append(
            Step(name="q", layer="", op="Q", kind=Q, precision="float32", inputs=("s",),
                 outputs=("z",), seconds=1.0)
        )  # fmt: skip
    return steps


def test_an_add_between_dequantize_and_quantize_is_told_with_its_conversions() -> None:
    (found,) = of_steps(joined("float32"))
    assert (found.code, found.where) == ("int8-float-int8", "add")
    assert "dequantizes 2 of its inputs" in found.why
    assert "80.0 % of the time" in found.why


def test_an_integer_add_or_a_float_end_is_no_ping_pong() -> None:
    assert of_steps(joined("int8")) == ()
    assert of_steps(joined("float32", quantized=False)) == ()


def qdq_product(precision: str) -> list[Step]:
    steps = [
        Step(name=n, layer="", op="DQ", kind=DQ, precision="int8", inputs=(f"{n}.q",),
             outputs=(n,), seconds=1.0)
        for n in ("x", "w")
    ]  # fmt: skip
    product = Step(name="c", layer="c", op="Conv", kind=P, precision=precision,
                   inputs=("x", "w"), outputs=("y",), seconds=2.0)  # fmt: skip
    return [*steps, product]


def test_a_quantized_product_that_multiplies_in_float_is_told() -> None:
    (found,) = of_steps(qdq_product("float32"))
    assert (found.code, found.where) == ("runs-in-float", "c")
    assert "100.0 % of the time" in found.why
    assert of_steps(qdq_product("int8")) == ()


def test_reformats_are_told_from_a_share_of_the_time_on() -> None:
    steps = chain(("a", P, "float32"), ("r", R, "float32"), ("b", P, "float32"))
    (found,) = of_steps(steps)
    assert (found.code, found.where) == ("reformats", "a, b")
    assert "33.3 % of the time" in found.why
    assert "channels" not in found.fix  # that is for tensor cores
    (on_gpu,) = findings("cuda", (), None, steps)
    assert "multiples of 16 or 32" in on_gpu.fix
    steps[1] = replace(steps[1], seconds=1e-5)
    assert of_steps(steps) == ()


def test_channels_that_tensor_cores_pad_are_told_on_gpus_alone() -> None:
    odd = chain(("a", P, "int8"), ("b", P, "int8"))
    odd = [replace(odd[0], channels=(3, 24)), replace(odd[1], channels=(24, 32))]
    found = of_steps(odd, "cuda")
    assert codes(found) == ["odd-channels", "odd-channels"]
    assert found[0].why.startswith("24 output channels, no multiple of 16")  # not its 3 inputs
    assert "32 input" in found[1].fix
    assert of_steps(odd) == ()


@pytest.mark.parametrize(
    ("precision", "channels"),
    [
        ("int8", (16, 32)),
        ("float16", (24, 8)),
        ("float32", (3, 5)),
        ("int8", (1, 3)),
        ("int8 weights", (24, 24)),
    ],
)
def test_channels_that_fit_or_do_not_matter_are_not_told(
    precision: str, channels: tuple[int, int]
) -> None:
    steps = [replace(s, channels=channels) for s in chain(("a", P, precision), ("b", P, precision))]
    assert of_steps(steps, "cuda") == ()


def kernel(**changes: object) -> KernelTime:
    plain = KernelTime(
        name="k", layer="conv1", op="aten::conv2d", unit=Unit.TENSOR_CORES,
        confidence=Confidence.CERTAIN, dtype="fp16", work=Work.CONVOLUTION, family="cuDNN",
        why="", calls=1.0, seconds=0.5, share=0.5, blocks_per_sm=4.0,
    )  # fmt: skip
    return replace(plain, **changes)  # type: ignore[arg-type]


def test_products_on_cuda_cores_are_told_and_those_on_tensor_cores_are_not() -> None:
    slow = kernel(unit=Unit.CUDA_CORES, dtype="fp32")
    (found,) = findings("cuda", [slow, kernel()], None)
    assert (found.code, found.where) == ("cuda-cores", "conv1")
    assert "50.0 %" in found.why
    assert findings("cuda", [kernel()], None) == ()
    assert findings("cuda", [replace(slow, work=Work.ELEMENTWISE)], None) == ()


def test_kernels_with_fewer_blocks_than_multiprocessors_are_told() -> None:
    (found,) = findings("cuda", [kernel(blocks_per_sm=0.25)], None)
    assert found.code == "batch-too-small"
    assert "0.25 a multiprocessor" in found.why
    assert findings("cuda", [kernel(blocks_per_sm=1.0)], None) == ()
    assert findings("cuda", [kernel(blocks_per_sm=None)], None) == ()


def test_reformatting_kernels_are_told_where_no_steps_are_known() -> None:
    (found,) = findings("cuda", [kernel(work=Work.REFORMAT, share=0.1)], None)
    assert found.code == "reformats"
    assert findings("cuda", [kernel(work=Work.REFORMAT, share=0.01)], None) == ()


def whole(busy: float, launch: float | None = None) -> Totals:
    return Totals(
        runs=3, wall_s=1.0, profiled_s=1.2, busy_s=busy, quickest_s=1.0, least_busy_s=busy,
        launch_s=launch,
    )  # fmt: skip


def test_a_gpu_that_waits_is_launch_bound_and_one_that_works_is_not() -> None:
    (found,) = findings("cuda", (), whole(0.3, 0.1))
    assert found.code == "launch-bound"
    assert "70.0 %" in found.why
    assert codes(findings("cuda", (), whole(0.6, 0.7))) == ["launch-bound"]
    assert findings("cuda", (), whole(0.95, 0.1)) == ()


def test_a_processor_that_runs_between_operators_is_told() -> None:
    (found,) = findings("cpu", (), whole(0.4))
    assert found.code == "overhead-bound"
    assert "60.0 %" in found.why
    assert findings("cpu", (), whole(0.9)) == ()


def test_what_a_larger_batch_gains_is_told_only_as_measured() -> None:
    (found,) = findings("cpu", (), None, walls={1: [1e-3, 5e-3], 4: [2e-3]})
    assert found.code == "batch-too-small"
    assert "50 % less" in found.why
    assert findings("cpu", (), None, walls={1: [1e-3], 4: [3.9e-3]}) == ()
    assert findings("cpu", (), None, walls={1: [1e-3]}) == ()


def test_the_costliest_finding_comes_first() -> None:
    steps = chain(*ISLAND)
    walls = {1: [1.0], 4: [0.1]}
    assert codes(findings("cpu", (), None, steps, walls)) == ["batch-too-small", "float-island"]


@given(st.lists(st.sampled_from(["int8", "float32"]), min_size=1, max_size=7))
def test_a_chain_has_as_many_islands_as_runs_of_float_inside(precisions: list[str]) -> None:
    steps = chain(*[(f"l{i}", P, p) for i, p in enumerate(precisions)])
    runs = [key for key, _ in itertools.groupby(precisions)]
    inside = runs[1:-1]
    assert codes(of_steps(steps)).count("float-island") == inside.count("float32")
