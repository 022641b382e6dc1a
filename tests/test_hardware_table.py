"""The table of GPUs: what NVIDIA publishes, word by word, and that no cell lacks an answer."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantkit.errors import RecipeError
from quantkit.hardware import CHIPS, Chip, Format, Gpu, Runtime, Support, Verdict, support
from quantkit.hardware.chips import WITHOUT_TENSOR_CORES
from quantkit.hardware.table import NOTES, RULES, cells

# What is published, as it is published: a letter a cell, y or n.

#: NVIDIA, CUDA Programming Guide, table 33: tf32, bf16, fp16, fp8, fp4, int8.
TENSOR_CORE_TYPES = {
    "7.5": "nnynny",
    "8.0": "yyynny",
    "8.6": "yyynny",
    "8.7": "yyynny",
    "8.9": "yyyyny",
    "9.0": "yyyyny",
    "10.0": "yyyyyy",
    "10.3": "yyyyyy",
    "11.0": "yyyyyy",
    "12.0": "yyyyyy",
    "12.1": "yyyyyy",
}
#: NVIDIA, TensorRT-RTX 1.5 Support Matrix: fp32, fp16, bf16, int8 and int4 weight-only, fp8, fp4.
RTX_MATRIX = {
    "7.5": "yynnnnn",
    "8.6": "yyyyynn",
    "8.9": "yyyyyyn",
    "12.0": "yyyyyyy",
    "12.1": "yyyyyyy",
}
#: NVIDIA, Transformer Engine, support matrix: bf16, fp8, mxfp8, nvfp4 (12.0 apart: it is software).
TRANSFORMER_ENGINE = {
    "8.0": "ynnn",
    "8.6": "ynnn",
    "8.9": "yynn",
    "9.0": "yynn",
    "10.0": "yyyy",
    "10.3": "yyyy",
}
#: NVIDIA, TensorRT 8 to 10.1, Hardware and Precision: tf32, fp32, fp16, int8, and tensor cores of
#: fp16 and of int8.
TENSORRT_10 = {"7.0": "nyyyyn", "7.5": "nyyyyy", "8.0": "yyyyyy", "8.6": "yyyyyy", "8.7": "yyyyyy"}
#: NVIDIA, TensorRT 11.5.0 Release Notes: all that 10.3 has.
TENSORRT_11 = ("tf32", "fp32", "fp16", "fp8", "nvfp4", "bf16", "int8")


def cell(gpu: str, format: str, runtime: str) -> Support:
    return support(Gpu.of(gpu), Format.of(format), Runtime(runtime))


def answers(published: dict[str, str], *names: str) -> list[tuple[str, str, bool]]:
    return [
        (cc, name, letter == "y")
        for cc, row in published.items()
        for name, letter in zip(names, row, strict=True)
    ]


@pytest.mark.parametrize(
    ("cc", "format", "has"),
    answers(TENSOR_CORE_TYPES, "tf32", "bf16", "fp16", "fp8", "nvfp4", "int8"),
)
def test_chips_have_the_tensor_cores_that_nvidia_lists(cc: str, format: str, has: bool) -> None:
    chip = Gpu.of(cc).chip
    assert chip is not None
    assert (Format.of(format) in chip.tensor_core) == has


@pytest.mark.parametrize(
    ("cc", "format", "has"), answers(TRANSFORMER_ENGINE, "bf16", "fp8", "mxfp8", "nvfp4")
)
def test_block_formats_begin_where_nvidia_lists_them(cc: str, format: str, has: bool) -> None:
    chip = Gpu.of(cc).chip
    assert chip is not None
    assert chip.has(Format.of(format)) == has


@pytest.mark.parametrize(
    ("cc", "format", "has"),
    answers(RTX_MATRIX, "fp32", "fp16", "bf16", "int8", "int4", "fp8", "nvfp4"),
)
def test_tensorrt_rtx_is_as_its_matrix_says_or_tells_what_the_builder_does_otherwise(
    cc: str, format: str, has: bool
) -> None:
    found = cell(cc, format, "tensorrt_rtx")
    if format == "int8" and cc == "7.5":  # the one cell that the builder contradicts
        assert found.runs
        assert found.only == "matrix products"
        assert "NVIDIA's matrix has no int8 for Turing" in found.why
        return
    assert found.runs == has
    if format == "int8":
        assert "weight-only" in found.why


@pytest.mark.parametrize(
    ("cc", "format", "has"),
    answers({cc: row[:4] for cc, row in TENSORRT_10.items()}, "tf32", "fp32", "fp16", "int8"),
)
def test_tensorrt_10_runs_what_its_matrix_lists(cc: str, format: str, has: bool) -> None:
    assert cell(cc, format, "tensorrt10").runs == has


@pytest.mark.parametrize(
    ("cc", "format", "has"),
    answers({cc: row[4:] for cc, row in TENSORRT_10.items()}, "fp16", "int8"),
)
def test_tensorrt_10_uses_the_tensor_cores_that_its_matrix_lists(
    cc: str, format: str, has: bool
) -> None:
    verdict = cell(cc, format, "tensorrt10").verdict
    assert verdict is (Verdict.TENSOR_CORE if has else Verdict.CUDA_CORE)


@pytest.mark.parametrize("format", TENSORRT_11)
def test_tensorrt_11_runs_what_nvidia_lists_for_the_newest_chip(format: str) -> None:
    assert cell("B300", format, "tensorrt11").runs


def test_each_tensorrt_drops_the_chips_that_its_notes_drop() -> None:
    for runtime, oldest in (("tensorrt10", (7, 0)), ("tensorrt11", (7, 5))):
        for chip in CHIPS:
            found = support(Gpu("", chip.capability), Format.FP16, Runtime(runtime))
            assert (found.verdict is Verdict.NO) == (chip.capability < oldest)
    assert "10.4 is the last" in cell("V100", "fp16", "tensorrt10").why
    assert "JetPack 7.2.2" in cell("Jetson Orin", "int8", "tensorrt11").why


# Every cell


def test_every_cell_has_an_answer_with_a_source() -> None:
    for chip in CHIPS:
        for format in Format:
            for runtime in Runtime:
                found = support(Gpu("", chip.capability), format, runtime)
                assert found.why.endswith("."), found
                assert not re.search(r"[{}]", found.why + found.instead)
                assert found.sources
                if found.verdict in (Verdict.NO, Verdict.UNKNOWN, Verdict.EMULATED):
                    assert re.fullmatch(r"[A-Z].*\.", found.instead), found
    assert len(cells()) == len(CHIPS) * len(Format) * len(Runtime)


def test_every_rule_decides_some_cell_and_every_note_belongs_to_one() -> None:
    deciding = {id(rule) for rule in cells().values()}
    assert [rule for rule in RULES if id(rule) not in deciding] == []
    capabilities = {chip.capability for chip in CHIPS}
    for note in NOTES:
        assert note.text.endswith(".")
        assert set(note.chips) <= capabilities


def test_a_source_is_a_page_or_says_that_it_was_seen() -> None:
    every = {source for rule in RULES for source in rule.sources}
    every |= {source for note in NOTES for source in note.sources}
    for source in every:
        assert (source.url or "").startswith("https://") or source.title.startswith("seen: ")


def test_what_the_documents_leave_open_is_unknown_and_says_why() -> None:
    found = cell("H100", "mxfp8", "tensorrt11")
    assert found.verdict is Verdict.UNKNOWN
    assert "does not say for which GPUs" in found.why
    assert found.instead == "Use fp8."


def test_a_newer_chip_than_the_table_is_unknown() -> None:
    found = support(Gpu("", (13, 0)), Format.FP16, Runtime.TENSORRT_11)
    assert found.verdict is Verdict.UNKNOWN
    assert "13.0 is not in the table" in found.why


# GPUs and names


def test_every_product_is_found_by_its_name_with_what_drivers_add() -> None:
    for chip in CHIPS:
        for product in chip.products:
            for text in (product, f"NVIDIA GeForce {product}", f"{product.lower()} Ti 80GB PCIe"):
                assert Gpu.of(text) == Gpu(product, chip.capability), text


def test_no_product_is_of_two_chips() -> None:
    products = [product for chip in CHIPS for product in chip.products]
    assert len(products) == len(set(products))
    assert set(products) >= WITHOUT_TENSOR_CORES


@pytest.mark.parametrize(
    ("text", "cc"),
    [
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", (12, 0)),
        ("NVIDIA RTX 6000 Ada Generation", (8, 9)),
        ("Quadro RTX 6000", (7, 5)),
        ("NVIDIA RTX A6000", (8, 6)),
        ("Orin (nvgpu)", (8, 7)),
        ("NVIDIA Thor", (11, 0)),
        ("GTX1080Ti", (6, 1)),
        ("NVIDIA GB10", (12, 1)),
        ("NVIDIA TITAN X (Pascal)", (6, 1)),
        ("GeForce GTX TITAN X", (5, 2)),
        ("Tesla V100-SXM2-16GB", (7, 0)),
    ],
)
def test_names_of_several_generations_are_told_apart(text: str, cc: tuple[int, int]) -> None:
    assert Gpu.of(text).compute_capability == cc


def test_a_gpu_of_turing_without_tensor_cores_is_not_taken_for_one_with() -> None:
    t4, gtx = (cell(name, "int8", "tensorrt11") for name in ("T4", "GTX 1660 Ti"))
    assert (t4.verdict, gtx.verdict) == (Verdict.TENSOR_CORE, Verdict.CUDA_CORE)
    assert "has no tensor cores" in gtx.why
    assert cell("GTX 1660 Ti", "fp8", "tensorrt11").verdict is Verdict.NO


def test_thor_is_known_by_its_old_number() -> None:
    old, new = (cell(cc, "fp8", "tensorrt11") for cc in ("10.1", "11.0"))
    assert (old.verdict, new.verdict) == (Verdict.TENSOR_CORE, Verdict.TENSOR_CORE)


def test_a_name_of_several_products_is_answered_with_all_of_them() -> None:
    with pytest.raises(RecipeError, match=r"Quadro RTX 6000, RTX 6000 Ada, RTX PRO 6000\?"):
        Gpu.of("RTX 6000")


def test_a_gpu_says_its_name_or_its_number() -> None:
    assert (str(Gpu.of("A40")), str(Gpu.of("8.6"))) == ("A40", "SM86")


@given(st.sampled_from(CHIPS), st.sampled_from(Format), st.sampled_from(Runtime))
def test_no_runtime_multiplies_in_a_format_that_the_chip_lacks(
    chip: Chip, format: Format, runtime: Runtime
) -> None:
    found = support(Gpu("", chip.capability), format, runtime)
    assert chip.has(format) or not found.runs


@pytest.mark.parametrize(
    ("kind", "name", "words"),
    [
        (Format, "fp9", "did you mean 'fp8'"),
        (Runtime, "tensort", "no runtime 'tensort'; there are: tensorrt, .*did you mean"),
    ],
)
def test_an_unknown_word_is_answered_with_the_known(
    kind: type[Format] | type[Runtime], name: str, words: str
) -> None:
    with pytest.raises(RecipeError, match=words):
        kind.of(name)
