"""ReLU and Clip before a quantizer: what goes, what stays, and that no value changes."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantkit.onnx.clips import clip_in_integers, keep_clips, remove_implied_clips

quick = settings(max_examples=60, deadline=None)

ENDS = {"int8": (-128, 127), "uint8": (0, 255)}
BOUNDS = st.one_of(
    st.none(),
    st.floats(-20, 20, width=32),
    st.sampled_from([0.0, 6.0, -1.0, 1.0, -0.0, 1e9, -1e9]),
)


@st.composite
def cases(draw: st.DrawFn) -> tuple[str, float, int, float | None, float | None]:
    """A grid, and a Clip whose bounds may fall on its ends."""
    dtype = draw(st.sampled_from(list(ENDS)))
    lowest, highest = ENDS[dtype]
    zero = draw(st.one_of(st.sampled_from([lowest, 0, highest]), st.integers(lowest, highest)))
    scale = float(np.float32(draw(st.floats(2.0**-10, 1.0, width=32))))
    bounds = [draw(BOUNDS), draw(BOUNDS)]
    if draw(st.booleans()):
        at_ends = ((lowest - zero) * scale, (highest - zero) * scale)
        bounds = [float(np.float32(x * draw(st.sampled_from([1.0, 1.01, 0.99])))) for x in at_ends]
    low, high = bounds
    if low is not None and high is not None and low > high:
        low, high = high, low
    return dtype, scale, zero, low, high


def graph_of(text: str, opset: int = 19) -> ir.Model:
    """A model in ONNX's text form."""
    head = f'<ir_version: 9, opset_import: ["" : {opset}]>'
    return ir.serde.deserialize_model(onnx.parser.parse_model(f"{head} g {text}"))


def clip_then_quantize(
    dtype: str, scale: float, zero: int, low: float | None, high: float | None
) -> ir.Model:
    given = {name: bound for name, bound in (("low", low), ("high", high)) if bound is not None}
    values = "".join(f", float {name} = {{{bound!r}}}" for name, bound in given.items())
    inputs = [name if name in given else '""' for name in ("low", "high")]
    while inputs and inputs[-1] == '""':
        inputs.pop()
    return graph_of(
        f"(float[N] x) => (float[N] y) <float s = {{{scale!r}}}, {dtype} z = {{{zero}}}{values}>"
        f"{{ c = Clip({', '.join(['x', *inputs])}) q = QuantizeLinear(c, s, z)"
        " y = DequantizeLinear(q, s, z) }"
    )


def operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph if node.op_type != "DequantizeLinear"]


def run(model: ir.Model, *inputs: np.ndarray) -> list[np.ndarray]:
    """ONNX Runtime without its own rewrites."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    model = model.clone()
    for index, node in enumerate(model.graph):
        node.name = f"node{index}"  # ONNX Runtime wants names, each of its own
    proto = ir.serde.serialize_model(model)
    onnx.checker.check_model(proto, full_check=True)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options)
    names = [value.name for value in session.get_inputs()]
    return [np.asarray(y) for y in session.run(None, dict(zip(names, inputs, strict=True)))]


def samples(scale: float, low: float | None, high: float | None) -> np.ndarray:
    """Values across the grid, far beyond it, and around the bounds."""
    around = [b + d * scale for b in (low, high) if b is not None for d in (-1, -0.5, 0, 0.5, 1)]
    wide = np.linspace(-400 * scale, 400 * scale, 801)
    return np.array([*wide, *around, -1e10, 1e10, 0.0], np.float32)


@quick
@given(cases())
def test_a_clip_goes_exactly_where_the_grid_saturates_at_its_bounds(
    case: tuple[str, float, int, float | None, float | None],
) -> None:
    dtype, scale, zero, low, high = case
    model = clip_then_quantize(*case)
    x = samples(scale, low, high)
    (before,) = run(model, x)
    changed = remove_implied_clips(model.graph)
    (after,) = run(model, x)
    np.testing.assert_array_equal(after, before)
    lowest, highest = ENDS[dtype]
    plain = np.clip(np.rint(x / np.float32(scale)), lowest - zero, highest - zero)
    if operators(model) == ["QuantizeLinear"]:
        assert changed == 1
    else:
        # It was needed: some value is quantized otherwise without it.
        assert (plain * np.float32(scale) != before).any()
    if operators(model)[0] == "Relu":
        assert low == 0


@quick
@given(cases())
def test_a_clip_behind_its_quantizer_gives_the_same_integers(
    case: tuple[str, float, int, float | None, float | None],
) -> None:
    dtype, scale, _, low, high = case
    model = clip_then_quantize(*case)
    x = samples(scale, low, high)
    (before,) = run(model, x)
    moved = clip_in_integers(model.graph)
    (after,) = run(model, x)
    np.testing.assert_array_equal(after, before)
    assert moved == (dtype == "uint8")  # ONNX Runtime fuses no other
    assert operators(model)[0] == ("QuantizeLinear" if moved else "Clip")


RELU = """(float[N] x) => (float[N] y, float[N] y2)
<float s = {0.1}, uint8 z = {0}, uint8 m = {128}>
{ r = Relu(x) q = QuantizeLinear(r, s, z) q2 = QuantizeLinear(r, s, m)
  y = DequantizeLinear(q, s, z) y2 = DequantizeLinear(q2, s, m) }"""


def test_a_relu_stays_where_one_of_its_quantizers_needs_it() -> None:
    model = graph_of(RELU)
    assert remove_implied_clips(model.graph) == 0
    assert operators(model) == ["Relu", "QuantizeLinear", "QuantizeLinear"]


def test_a_relu_follows_each_of_its_quantizers_in_integers() -> None:
    model = graph_of(RELU)
    x = np.linspace(-20, 40, 100, dtype=np.float32)
    before = run(model, x)
    assert clip_in_integers(model.graph) == 1
    assert sorted(operators(model)) == ["Clip", "Clip", "QuantizeLinear", "QuantizeLinear"]
    for found, expected in zip(run(model, x), before, strict=True):
        np.testing.assert_array_equal(found, expected)


KEPT = {
    "the output of the graph": """(float[N] x) => (float[N] r, uint8[N] y)
        <float s = {0.1}, uint8 z = {0}> { r = Relu(x) y = QuantizeLinear(r, s, z) }""",
    "read by another operator": """(float[N] x) => (float[N] e, uint8[N] y)
        <float s = {0.1}, uint8 z = {0}>
        { r = Relu(x) e = Exp(r) y = QuantizeLinear(r, s, z) }""",
    "a grid for each channel": """(float[N, 2] x) => (uint8[N, 2] y)
        <float[2] s = {0.1, 0.2}, uint8[2] z = {0, 0}>
        { r = Relu(x) y = QuantizeLinear<axis = 1>(r, s, z) }""",
    "no quantizer behind": "(float[N] x) => (float[N] y) { r = Relu(x) y = Exp(r) }",
    "a bound known only at run time": """(float[N] x, float b) => (uint8[N] y)
        <float s = {0.1}, uint8 z = {0}> { r = Clip(x, b) y = QuantizeLinear(r, s, z) }""",
    "another domain": """(float[N] x) => (uint8[N] y) <float s = {0.1}, uint8 z = {0}>
        { r = other.Relu(x) y = QuantizeLinear(r, s, z) }""",
}


@pytest.mark.parametrize("case", KEPT)
@pytest.mark.parametrize("rewrite", [remove_implied_clips, clip_in_integers, keep_clips])
def test_a_clip_stays_that_is_not_only_the_quantizers(case: str, rewrite: object) -> None:
    model = graph_of(KEPT[case])
    before = [(node.op_type, [v and v.name for v in node.inputs]) for node in model.graph]
    assert rewrite(model.graph) == 0  # type: ignore[operator]
    after = [(node.op_type, [v and v.name for v in node.inputs]) for node in model.graph]
    assert after == before


@pytest.mark.parametrize(
    ("clip", "expected"),
    [
        ("Relu(x)", ["Max", "QuantizeLinear"]),
        ("Clip(x, low, high)", ["Max", "Min", "QuantizeLinear"]),
        ('Clip(x, "", high)', ["Min", "QuantizeLinear"]),
        ("Clip(x)", ["QuantizeLinear"]),
    ],
)
def test_before_fp8_a_clip_is_written_as_max_and_min(clip: str, expected: list[str]) -> None:
    model = graph_of(
        "(float[N] x) => (float[N] y)"
        "<float s = {0.1}, float zero = {0.0}, float low = {0.0}, float high = {6.0}>"
        f"{{ z = Cast<to = 17>(zero) c = {clip} q = QuantizeLinear(c, s, z)"
        " y = DequantizeLinear(q, s, z) }"
    )
    (cast,) = (node for node in model.graph if node.op_type == "Cast")
    cast.outputs[0].dtype = ir.DataType.FLOAT8E4M3FN
    x = np.linspace(-20, 20, 100, dtype=np.float32)
    (before,) = run(model, x)
    assert keep_clips(model.graph) == 1
    assert [operator for operator in operators(model) if operator != "Cast"] == expected
    (after,) = run(model, x)
    np.testing.assert_array_equal(after, before)


def test_before_integers_of_8_bits_a_clip_is_kept_as_it_is() -> None:
    model = graph_of(RELU)
    assert keep_clips(model.graph) == 0


def test_the_name_and_the_notes_of_a_clip_pass_to_what_takes_its_place() -> None:
    model = graph_of(
        "(float[N] x) => (uint8[N] y) <float s = {0.1}, uint8 z = {10}, float l = {0.0},"
        " float h = {100.0}> { c = Clip(x, l, h) y = QuantizeLinear(c, s, z) }"
    )
    clip = model.graph.node(0)
    clip.name, clip.metadata_props["quantkit.note"] = "layer1/Clip", "kept"
    assert remove_implied_clips(model.graph) == 1
    relu = model.graph.node(0)
    assert (relu.op_type, relu.name, relu.metadata_props["quantkit.note"]) == (
        "Relu", "layer1/Clip", "kept",
    )  # fmt: skip
    (y,) = run(model, np.array([-5.0, 3.0, 200.0], np.float32))
    assert y.tolist() == [10, 40, 255]


def test_integers_that_the_graph_puts_out_are_clipped_where_they_were() -> None:
    model = graph_of(
        "(float[N] x) => (uint8[N] y) <float s = {0.1}, uint8 z = {128}>"
        "{ r = Relu(x) y = QuantizeLinear(r, s, z) }"
    )
    assert clip_in_integers(model.graph) == 0
    (y,) = run(model, np.array([-5.0, 3.0], np.float32))
    assert y.tolist() == [128, 158]


@pytest.mark.parametrize("rewrite", [remove_implied_clips, clip_in_integers])
def test_a_grid_for_the_only_channel_is_one_for_the_tensor(rewrite: object) -> None:
    model = graph_of(
        "(float[N, 1] x) => (float[N, 1] y) <float[1] s = {0.1}, uint8[1] z = {0}>"
        "{ r = Relu(x) q = QuantizeLinear<axis = 1>(r, s, z)"
        " y = DequantizeLinear<axis = 1>(q, s, z) }"
    )
    x = np.linspace(-20, 40, 100, dtype=np.float32).reshape(-1, 1)
    (before,) = run(model, x)
    assert rewrite(model.graph) == 1  # type: ignore[operator]
    assert "Relu" not in operators(model)
    np.testing.assert_array_equal(run(model, x)[0], before)
