"""What TensorRT-RTX says of schemes and options before any work; no SDK is needed."""

import pytest

from quantkit.spec import QuantSpec, Scheme
from quantkit.targets.tensorrt_rtx import TensorRTRTX

INT8 = QuantSpec(dtype="int8")


@pytest.mark.parametrize("text", ["8.6", "86", "SM86", "sm86"])
def test_a_capability_is_read_in_its_usual_spellings(text: str) -> None:
    assert TensorRTRTX(compute_capability=text) == TensorRTRTX(compute_capability="8.6")


def test_wrong_options_are_refused_at_birth() -> None:
    with pytest.raises(ValueError, match=r"'9\.0' is no target.*choose one of 7\.5"):
        TensorRTRTX(compute_capability="9.0")
    with pytest.raises(ValueError, match="timeout_s"):
        TensorRTRTX(timeout_s=0)
    with pytest.raises(ValueError, match="three shapes of one length"):
        TensorRTRTX(shapes={"x": ((1, 3), (2, 3), (4,))})


@pytest.mark.parametrize(
    ("weights", "activations", "capability", "expected"),
    [
        (QuantSpec(axis=0), INT8, "8.6", []),
        (QuantSpec(axis=0), None, "8.6", []),
        (QuantSpec(dtype="int4", axis=1, group_size=32), None, "8.6", []),
        (QuantSpec(dtype="fp8_e4m3"), QuantSpec(dtype="fp8_e4m3"), "8.9", []),
        (
            QuantSpec(dtype="fp8_e4m3"),
            QuantSpec(dtype="fp8_e4m3"),
            "8.6",
            ["error fp8-hardware", "error fp8-hardware"],
        ),
        (QuantSpec(axis=0), QuantSpec(symmetric=False), "8.6", ["error asymmetric"]),
        (QuantSpec(axis=0), QuantSpec(dtype="uint8"), "8.6", ["error uint8"]),
        (QuantSpec(axis=0), QuantSpec(axis=1), "8.6", ["warning per-channel-activations"]),
        (None, INT8, "8.6", ["warning activation-only"]),
        (QuantSpec(dtype="int4", axis=0), None, "8.6", ["warning int4-without-groups"]),
        (QuantSpec(axis=1, group_size=32), None, "8.6", ["warning int8-groups"]),
        (QuantSpec(axis=1, group_size=32), INT8, "8.6", ["error group-weights-with-activations"]),
        (QuantSpec(dtype="fp8_e4m3"), INT8, "8.9", ["error mixed-formats"]),
        (QuantSpec(dtype="int4", axis=1, group_size=32), None, "7.5", ["error int4-hardware"]),
        (QuantSpec(axis=0), INT8, "7.5", ["warning int8-in-part"]),
    ],
)
def test_schemes_are_judged_before_any_work(
    weights: QuantSpec | None, activations: QuantSpec | None, capability: str, expected: list[str]
) -> None:
    target = TensorRTRTX(compute_capability=capability)

    findings = target.refusals([Scheme(weights=weights, activations=activations)])

    assert [f"{f.severity} {f.code}" for f in findings] == expected
    for finding in findings:
        assert "int8" in finding.fix or "8.0" in finding.fix


def test_the_form_of_its_files_is_tensorrts() -> None:
    assert TensorRTRTX().form == "tensorrt"
