"""What processors can do in few bits."""

from __future__ import annotations

import platform
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantkit.errors import MissingDependencyError, RecipeError
from quantkit.hardware import (
    KINDS,
    Cpu,
    CpuRuntime,
    compute_capability,
    cpu_support,
    cpus,
    detect_cpu,
    gpu_supports,
    named_cpu,
    weight_bits,
)

X86 = "processor : 0\nmodel name\t: AMD EPYC\nflags\t\t: fpu avx2 avx512_vnni\n\nflags : other\n"
ARM = "processor : 0\nFeatures : fp asimd asimddp\nCPU part : 0xd0c\n"


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    """Neither take over a detected processor, nor leave one."""
    detect_cpu.cache_clear()
    yield
    detect_cpu.cache_clear()


def _has(name: str) -> bool:
    return named_cpu(name).has_vnni


def test_this_machine_has_a_processor_with_features() -> None:
    cpu = detect_cpu()
    assert cpu.name
    assert cpu.features
    assert named_cpu("auto") == cpu


@pytest.mark.parametrize(
    ("text", "cpu", "bits"),
    [
        (X86, Cpu("AMD EPYC", frozenset({"fpu", "avx2", "avx512_vnni"})), 8),
        (X86.replace("avx512_vnni", "avx512f"), None, 7),
        (ARM, Cpu("0xd0c", frozenset({"fp", "asimd", "asimddp"})), 8),
    ],
)
def test_the_first_processor_of_proc_cpuinfo_is_read(
    tmp_path: Path, text: str, cpu: Cpu | None, bits: int
) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text(text)
    found = cpus.parse_cpuinfo(file)
    assert found is not None
    assert cpu is None or found == cpu
    assert weight_bits(found) == bits


def test_where_proc_cpuinfo_is_absent_or_silent_it_tells_nothing(tmp_path: Path) -> None:
    assert cpus.parse_cpuinfo(tmp_path / "absent") is None
    (tmp_path / "empty").write_text("processor : 0\n")
    assert cpus.parse_cpuinfo(tmp_path / "empty") is None


def test_elsewhere_py_cpuinfo_is_asked_and_its_names_made_linux_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = types.ModuleType("cpuinfo")
    answer = {"brand_raw": "Intel Xeon", "flags": ["avx2", "avx512vnni"]}
    module.get_cpu_info = lambda: answer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cpuinfo", module)
    monkeypatch.setattr(cpus, "parse_cpuinfo", lambda _: None)
    monkeypatch.setattr(platform, "machine", lambda: "AMD64")
    cpu = detect_cpu()
    assert cpu == Cpu("Intel Xeon", frozenset({"avx2", "avx512_vnni"}))
    assert cpu.has_vnni


def test_apple_processors_have_the_dot_product_though_py_cpuinfo_does_not_say(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = types.ModuleType("cpuinfo")
    module.get_cpu_info = lambda: {"brand_raw": "Apple M2"}  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cpuinfo", module)
    monkeypatch.setattr(cpus, "parse_cpuinfo", lambda _: None)
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    assert detect_cpu().has_vnni


def test_without_py_cpuinfo_the_error_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "cpuinfo", None)
    monkeypatch.setattr(cpus, "parse_cpuinfo", lambda _: None)
    with pytest.raises(MissingDependencyError, match="pip install py-cpuinfo"):
        detect_cpu()


def test_kinds_of_processors_differ_by_vnni() -> None:
    assert [_has(n) for n in ("avx2", "avx512")] == [False, False]
    exact = ("vnni", "avx512_vnni", "amx", "arm_dotprod", "arm_i8mm")
    assert [_has(n) for n in exact] == [True] * 5


@pytest.mark.parametrize("name", KINDS)
def test_a_kind_of_processor_is_recognized_by_its_features(name: str) -> None:
    assert Cpu("some", named_cpu(name).features | {"fpu", "sse4_2"}).kind == name


@pytest.mark.parametrize("runtime", CpuRuntime)
@pytest.mark.parametrize("name", KINDS)
def test_weights_have_the_bits_that_the_sums_of_a_kind_allow(
    name: str, runtime: CpuRuntime
) -> None:
    cpu = named_cpu(name)
    found = cpu_support(cpu, runtime)
    assert found.weight_bits == weight_bits(cpu) == (7 if found.sum_bits == 16 else 8)
    assert ("saturate" in found.why) == (found.sum_bits == 16)
    assert found.sources
    assert all(text.endswith(".") for text in (found.why, found.instead))


def test_a_processor_without_vnni_is_told_of_seven_bits_and_of_depthwise_layers() -> None:
    found = cpu_support(named_cpu("avx2"), CpuRuntime.ONNXRUNTIME)
    assert "Depthwise" in found.why
    assert "int8_cpu (7-bit weights" in found.instead
    assert "float" in found.instead


def test_a_processor_of_no_kind_still_has_an_answer() -> None:
    found = cpu_support(Cpu("old", frozenset({"sse2"})), CpuRuntime.ONNXRUNTIME)
    assert (found.sum_bits, found.instruction) == (16, "no 8-bit product")


def test_only_x86_without_vnni_needs_weights_of_seven_bits() -> None:
    assert weight_bits(named_cpu("avx512")) == 7
    assert weight_bits(named_cpu("amx")) == 8
    assert weight_bits(Cpu("Cortex-A72", frozenset({"asimd"}))) == 8


def test_seven_bits_are_the_most_that_do_not_saturate_in_sixteen() -> None:
    activation = 255
    assert 2 * activation * 2**6 <= 2**15 - 1 < 2 * activation * 2**7


def test_an_unknown_kind_of_processor_is_answered_with_the_known_and_the_nearest() -> None:
    with pytest.raises(RecipeError, match=r"no CPU kind 'avx51'; there are: auto, avx2.*'avx512'"):
        named_cpu("avx51")


@given(st.integers(5, 12), st.integers(0, 9))
def test_every_way_to_write_a_compute_capability_is_read(major: int, minor: int) -> None:
    ways = (f"{major}.{minor}", f"{major}{minor}", f"SM{major}{minor}", f" sm_{major}{minor}a ")
    assert {compute_capability(way) for way in ways} == {(major, minor)}


@pytest.mark.parametrize(
    ("name", "cc"),
    [
        ("A40", (8, 6)),
        ("Tesla T4", (7, 5)),
        ("NVIDIA L4", (8, 9)),
        ("NVIDIA A100-SXM4-80GB", (8, 0)),
        ("NVIDIA A10G", (8, 6)),
        ("NVIDIA H100 80GB HBM3", (9, 0)),
        ("h200", (9, 0)),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", (8, 9)),
        ("RTX5090", (12, 0)),
        ("NVIDIA RTX 6000 Ada Generation", (8, 9)),
        ("Jetson AGX Orin", (8, 7)),
    ],
)
def test_products_are_known_by_the_names_that_drivers_give(name: str, cc: tuple[int, int]) -> None:
    assert compute_capability(name) == cc


@pytest.mark.parametrize("text", ["A41", "", "8", "8.6.1", "GPU", "A", "RTX"])
def test_what_is_no_gpu_is_refused_with_the_way_to_write_it(text: str) -> None:
    with pytest.raises(RecipeError, match=r"write it as 8\.6 or SM86"):
        compute_capability(text)


@pytest.mark.parametrize(
    ("dtype", "have", "lack"),
    [
        ("int8", [(6, 1), (7, 0), (8, 6), (12, 0)], [(6, 0), (6, 2), (5, 3)]),
        ("int4", [(8, 0), (9, 0)], [(7, 5)]),
        ("bf16", [(8, 0), (8, 7)], [(7, 5)]),
        ("fp8_e4m3", [(8, 9), (9, 0), (12, 0)], [(8, 0), (8, 6), (8, 7)]),
    ],
)
def test_formats_begin_with_an_architecture(
    dtype: str, have: list[tuple[int, int]], lack: list[tuple[int, int]]
) -> None:
    assert [gpu_supports(cc, dtype) for cc in have] == [None] * len(have)
    for cc in lack:
        assert f"{cc[0]}.{cc[1]}" in (gpu_supports(cc, dtype) or "")


def test_the_reason_names_what_is_needed_what_is_there_and_what_to_use() -> None:
    assert gpu_supports(compute_capability("A40"), "fp8_e4m3") == (
        "fp8_e4m3 needs compute capability 8.9 (Ada) or later; A40 is 8.6; use int8_ptq"
    )


def test_an_unknown_format_is_answered_with_the_known() -> None:
    with pytest.raises(RecipeError, match=r"no format 'int3'; there are: fp32, .*mean 'int8'"):
        gpu_supports((8, 6), "int3")
