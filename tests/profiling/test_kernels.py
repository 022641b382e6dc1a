"""Every kernel name of the list is told right, and what no name tells is not guessed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from quantkit.profiling._clue import Clue
from quantkit.profiling._dtypes import DTYPES
from quantkit.profiling._units import UNITS
from quantkit.profiling._works import FAMILIES, WORKS
from quantkit.profiling.kernels import Confidence, Dtype, KernelKind, Unit, Work, classify

LIST: list[dict[str, Any]] = yaml.safe_load(
    Path(__file__).with_name("kernel_names.yaml").read_text(encoding="utf-8")
)
LABELS: dict[str, dict[str, str]] = {
    kernel["name"]: kernel["is"] for group in LIST for kernel in group["kernels"]
}
CLUES: tuple[Clue[Any], ...] = (*FAMILIES, *WORKS, *UNITS, *DTYPES)
PARTS = sorted({part for name in LABELS for part in re.findall(r"\w+|\W", name)})


def with_label(**label: str) -> Iterator[str]:
    return (name for name, known in LABELS.items() if label.items() <= known.items())


@pytest.mark.parametrize("name", LABELS)
def test_a_name_of_the_list_is_told_right(name: str) -> None:
    kind = classify(name)
    told = {field: str(getattr(kind, field)) for field in LABELS[name]}
    assert told == LABELS[name], kind.why


def test_the_list_has_many_names_and_each_once() -> None:
    names = [kernel["name"] for group in LIST for kernel in group["kernels"]]
    assert len(names) >= 60
    assert [name for name, count in Counter(names).items() if count > 1] == []


def test_most_names_have_an_address_and_none_is_without_a_source() -> None:
    names = Counter(
        {group["source"]: len(group["kernels"]) for group in LIST if group["source"].strip()}
    )
    assert names.total() == len(LABELS)
    with_address = sum(n for source, n in names.items() if source.startswith("https://"))
    assert with_address >= 120
    others = [source for source in names if not source.startswith("https://")]
    assert [s for s in others if not re.match(r"GitHub, stored file \d+: \w", s)] == []


@pytest.mark.parametrize(
    "label",
    [
        {"family": "CUTLASS", "dtype": "int8", "unit": "tensor-cores"},
        {"family": "xmma", "dtype": "int8", "unit": "tensor-cores"},
        {"family": "cuDNN", "dtype": "int8", "unit": "cuda-cores"},
        {"family": "cuDNN", "dtype": "fp16", "unit": "tensor-cores"},
        {"family": "CUTLASS", "dtype": "fp32", "unit": "cuda-cores"},
        {"family": "cuBLAS", "dtype": "fp32", "unit": "cuda-cores"},
        {"family": "cuBLAS", "dtype": "fp8_e4m3"},
        {"family": "cuBLAS", "dtype": "bf16"},
        {"family": "cuBLASLt"},
        {"family": "FlashAttention", "work": "attention"},
        {"family": "Myelin"},
        {"family": "PyTorch", "work": "elementwise"},
        {"family": "TensorRT", "work": "reformat"},
        {"family": "Triton"},
        {"family": "cuDNN", "dtype": "tf32"},
        {"dtype": "fp64", "unit": "tensor-cores"},
        {"dtype": "fp64", "unit": "cuda-cores"},
        {"dtype": "int4"},
        {"family": ""},
    ],
    ids=" ".join,
)
def test_the_list_has_more_than_a_token_of(label: dict[str, str]) -> None:
    assert list(with_label(**label)) != []


@pytest.mark.parametrize("kinds", [Unit, Work], ids=["units", "works"])
def test_the_list_has_every_one_of_the(kinds: type[Unit] | type[Work]) -> None:
    field = kinds.__name__.lower()
    on_gpus = [kind for kind in kinds if kind not in {Unit.CPU, Unit.VNNI, Unit.AMX}]
    assert {known[field] for known in LABELS.values()} == {str(kind) for kind in on_gpus}


@pytest.mark.parametrize(
    "chip",
    ["maxwell_", "volta_", "turing_", "ampere_", "sm75_", "sm80_", "sm89_", "sm90_", "sm100"],
)
def test_the_list_has_kernels_for(chip: str) -> None:
    assert any(chip in name for name in LABELS)


def test_cuda_cores_and_tensor_cores_are_known_by_few_letters() -> None:
    units = [classify(f"ampere_{core}_128x64_nn").unit for core in ("sgemm", "s1688gemm_bf16")]
    assert units == [Unit.CUDA_CORES, Unit.TENSOR_CORES]


@pytest.mark.parametrize(
    "name",
    [
        "",
        "_Z",
        "_Z99999999999999999999x",
        "kernel",
        "my_sgemm_wmma_m16n16k16",  # the words of a product, and nobody knows whose
        "matmul_kernel",
        "int8_gemm_tensorop",
        "aten::mm",  # an operator, not a kernel
        "Kernel2",  # as nsys shortens every kernel of CUTLASS
        "cudaLaunchKernel",
    ],
)
def test_a_name_that_is_not_known_stays_unknown_in_everything(name: str) -> None:
    kind = classify(name)
    assert (kind.unit, kind.dtype, kind.family, kind.work, kind.confidence) == (
        Unit.UNKNOWN,
        Dtype.UNKNOWN,
        "",
        Work.UNKNOWN,
        Confidence.UNKNOWN,
    )


def test_winograd_without_a_matrix_instruction_is_no_more_than_likely() -> None:
    names = [name for name in LABELS if "winograd" in name and "maxwell" not in name]
    assert len(names) >= 3
    assert {classify(name).confidence for name in names} == {Confidence.LIKELY}


def test_a_name_cut_short_is_never_certain_of_another_unit() -> None:
    wrong = [
        name[:end]
        for name in LABELS
        for end in range(1, len(name))
        if (kind := classify(name[:end])).confidence is Confidence.CERTAIN
        and kind.unit is not classify(name).unit
    ]
    assert wrong == []


def test_every_word_that_a_clue_looks_up_has_a_meaning() -> None:
    for clue in CLUES:
        if isinstance(clue.value, Mapping):
            ((words),) = re.findall(r"\(\?P<\w+>([^()]+)\)", clue.pattern.pattern)
            assert set(words.replace("\\", "").split("|")) <= set(clue.value), clue.pattern.pattern


def test_every_clue_says_what_it_means() -> None:
    assert [clue.pattern.pattern for clue in CLUES if not clue.why.strip()] == []


@given(
    st.one_of(
        st.text(),
        st.text(alphabet="_ZNIELSKvifd0123456789<>:"),
        st.lists(st.sampled_from(PARTS), max_size=12).map("".join),
        st.sampled_from(sorted(LABELS)).map(lambda name: name[::-1]),
    )
)
def test_any_text_is_classified_and_always_alike(name: str) -> None:
    kind = classify(name)
    classify.cache_clear()
    assert classify(name) == kind
    check(kind)


def check(kind: KernelKind) -> None:
    assert kind.why
    assert (kind.unit is Unit.UNKNOWN) == (kind.confidence is Confidence.UNKNOWN)
    if not kind.family:
        assert (kind.unit, kind.dtype, kind.work) == (Unit.UNKNOWN, Dtype.UNKNOWN, Work.UNKNOWN)
