"""``quantkit hardware``: what it answers, its exit codes, and how it looks on narrow screens."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_pynvml import Card, FakeNvml

from quantkit import cli
from quantkit.hardware import CHIPS, Format, Runtime

Run = Callable[[str], tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Run a command line on a machine with an A40, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(Card("NVIDIA A40", (8, 6))))

    def run(command: str) -> tuple[int, str, str]:
        code = cli.main(shlex.split(f"hardware {command}"))
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def no_gpu(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml())


def as_json(run: Run, command: str, code: int = 0) -> dict[str, Any]:
    ended, out, _ = run(f"{command} --json")
    assert ended == code
    told: dict[str, Any] = json.loads(out)
    return told


# This machine


def test_this_machine_is_told_with_its_gpu_runtimes_and_what_they_do(run: Run) -> None:
    code, out, err = run("")
    assert (code, err) == (0, "")
    assert "NVIDIA A40: compute capability 8.6, 51.5 GB" in out
    assert "580.65.06, CUDA 13.2" in out
    assert "torch 2." in out
    assert "INT8 on" in out
    assert "NVIDIA A40: compute capability 8.6 (Ampere)" in out


@pytest.mark.usefixtures("no_gpu")
def test_without_a_gpu_it_says_so_and_what_else_can_be_asked(run: Run) -> None:
    code, out, _ = run("")
    assert code == 0
    assert "none: NVIDIA's driver sees no GPU" in out
    assert "INT8 on" in out
    assert "No GPU here. quantkit hardware --gpu A40" in out


def test_two_gpus_of_one_kind_are_two_lines_and_one_table(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = FakeNvml(Card("NVIDIA A40", (8, 6)), Card("NVIDIA A40", (8, 6)))
    monkeypatch.setitem(sys.modules, "pynvml", pair)
    _, out, _ = run("")
    assert out.count("NVIDIA A40: compute capability 8.6, 51.5 GB") == 2
    assert out.count("(Ampere)") == 1
    told = as_json(run, "")
    assert len(told["gpus"]) == 2
    assert len(told["cells"]) == len(Format) * len(Runtime)


# A GPU


def test_a_gpu_is_told_in_a_table_of_formats_and_runtimes(run: Run) -> None:
    code, out, _ = run("--gpu A40")
    assert code == 0
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.strip()}
    assert rows["int8"] != []
    lines = out.splitlines()
    (fp8,) = [line.split() for line in lines if line.startswith("fp8 ") and "no" in line.split()]
    assert fp8 == ["fp8", "no", "no", "no", "no", "emulated", "no", "no"]
    assert "All but Inductor: fp8 needs compute capability 8.9 (Ada) or later; A40 is 8.6." in out


def test_one_runtime_is_told_with_reasons_and_sources(run: Run) -> None:
    _, out, _ = run("--gpu T4 --target tensorrt_rtx")
    assert re.search(r"int8 +tensor-core +The builder makes int8 x int8 kernels for matrix", out)
    assert "seen: TensorRT-RTX 1.7.1 builder, on a CPU" in out
    assert "https://docs.nvidia.com/deeplearning/tensorrt-rtx" in out
    assert "Inductor" not in out


def test_the_json_has_every_cell_with_its_sources(run: Run) -> None:
    told = as_json(run, "--gpu L4")
    assert told["gpu"] == {
        "name": "L4", "capability": "8.9", "architecture": "Ada", "tensor_cores": True,
    }  # fmt: skip
    cells = {(c["format"], c["runtime"]): c for c in told["cells"]}
    assert len(cells) == len(Format) * len(Runtime)
    fp8 = cells["fp8", "tensorrt11"]
    assert fp8["verdict"] == "tensor-core"
    assert all(source["title"] for cell in cells.values() for source in cell["sources"])
    assert any(source["url"] for source in fp8["sources"])


def test_a_capability_serves_as_well_as_a_name(run: Run) -> None:
    _, out, _ = run("--gpu 8.6")
    assert out.startswith("Compute capability 8.6 (Ampere): A40, A10,")
    assert "this GPU is 8.6" in out


# Recipes and formats


def test_a_format_that_a_gpu_lacks_is_one_line_and_exit_code_1(run: Run) -> None:
    assert run("--gpu A40 --recipe fp8") == (
        1,
        "not ok: fp8 needs compute capability 8.9 (Ada) or later; A40 is 8.6; use int8_ptq\n",
        "",
    )


def test_a_format_is_judged_without_pytorch() -> None:
    code = (
        "import sys; from quantkit import cli;"
        "ended = cli.main(['hardware', '--gpu', 'A40', '--recipe', 'fp8']);"
        "print(ended, [m for m in ('torch', 'onnx') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "1 []"


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        ("--gpu L4 --recipe fp8", 0, "ok: fp8 runs on L4 in TensorRT 10, TensorRT 11"),
        ("--gpu A40 --recipe int8_ptq", 0, "ok: int8_ptq runs on A40 in TensorRT 10"),
        ("--recipe nvfp4", 1, "nvfp4 needs compute capability 10.0 (Blackwell) or later; NVIDIA"),
        ("--gpu P100 --recipe int8_ptq", 1, "int8 needs compute capability 6.1 (Pascal) or later"),
        ("--gpu H100 --recipe int8 --target tensorrt_rtx", 1, "builds for 7.5, 8.0, 8.6, 8.9"),
        ("--gpu A40 --recipe int8 --target onnxruntime_cuda", 1, "computes in float"),
        ("--gpu A40 --recipe int8_asymmetric --target tensorrt", 1, "in none of TensorRT 10, Ten"),
        ("--gpu A40 --recipe int8_asymmetric --target tensorrt11", 1, "zero-point 0 only"),
        ("--gpu H100 --recipe int4 --target torch_tensorrt", 1, "names int8, fp8 and fp4"),
        ("--cpu avx2 --recipe int8", 0, "ok: int8 runs on avx2 with weights of 7 bits"),
        ("--cpu avx2 --recipe int8_cpu", 0, "ok: int8_cpu runs on avx2 with weights of 7 bits"),
        ("--cpu amx --recipe int8_cpu", 0, "ok: int8_cpu runs on amx with weights of 8 bits"),
        ("--cpu avx2 --recipe int8_asymmetric", 0, "saturate in 16 bits"),
        ("--recipe int8_cpu", 0, "ok: int8_cpu runs on "),
        ("--gpu A40 --recipe int8_cpu", 1, "in none of"),
    ],
)  # fmt: skip
def test_recipes_and_formats_are_judged_where_they_are_to_run(
    command: str, code: int, words: str, run: Run
) -> None:
    ended, out, err = run(command)
    assert (ended, err) == (code, "")
    assert words in out
    assert out.splitlines()[-1].startswith("ok: " if code == 0 else "not ok: ")


def test_a_recipe_file_is_judged_by_all_its_schemes(run: Run) -> None:
    fp8 = "{weights: {dtype: fp8_e4m3}, activations: {dtype: fp8_e4m3}}"
    Path("mixed.yaml").write_text(
        "scheme: {weights: {per: channel}}\n"
        f"overrides: [{{module: head, scheme: {fp8}}}]\n"
    )  # fmt: skip
    code, out, _ = run("--gpu A40 --recipe mixed.yaml")
    assert (code, out) == (
        1,
        "not ok: fp8 needs compute capability 8.9 (Ada) or later; A40 is 8.6; use int8_ptq\n",
    )
    assert run("--gpu L4 --recipe mixed.yaml --target tensorrt")[0] == 0


def test_the_json_of_a_recipe_tells_each_runtime(run: Run) -> None:
    told = as_json(run, "--gpu A40 --recipe int8_ptq")
    assert told["ok"]
    by_runtime = {row["runtime"]: row for row in told["rows"]}
    assert set(by_runtime) == set(Runtime)
    assert by_runtime["onnxruntime_cuda"]["verdict"] == "in float"
    assert not as_json(run, "--gpu A40 --recipe fp8", code=1)["ok"]


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        ("--gpu A41", 3, "no compute capability or known GPU in 'A41'"),
        ("--gpu 'RTX 6000'", 3, "did you mean Quadro RTX 6000, RTX 6000 Ada"),
        ("--target tensort", 3, "no runtime 'tensort'; there are: tensorrt, tensorrt10"),
        ("--gpu A40 --recipe int8_ptk", 3, "no recipe or format 'int8_ptk'; formats are fp32"),
        ("--gpu A40 --recipe int8_ptk", 3, "did you mean 'int8_ptq'?"),
        ("--gpu A40 --recipe absent.yaml", 3, "cannot be read"),
        ("--cpu avx2 --recipe fp8", 3, "tells of int8, not of fp8; give --gpu"),
        ("--cpu avx51", 3, "did you mean 'avx512'"),
        ("--markdown", 2, "give --all, and no --json"),
        ("--all --markdown --json", 2, "give --all, and no --json"),
        ("--all --gpu A40", 2, "leave --gpu, --cpu and --recipe out"),
        ("--all --cpu avx2", 2, "leave --gpu, --cpu and --recipe out"),
        ("--gpu A40 --cpu avx2", 2, "give one of them"),
    ],
)
def test_what_cannot_be_answered_is_one_line(command: str, code: int, words: str, run: Run) -> None:
    ended, out, err = run(command)
    assert (ended, out, err.count("\n")) == (code, "", 1)
    assert words in err


# All of it, and how it looks


def test_all_lists_every_gpu_runtime_and_processor(run: Run) -> None:
    _, out, _ = run("--all")
    for chip in CHIPS:
        assert chip.products[0] in out
    for runtime in Runtime:
        assert runtime.label in out
    assert "arm_i8mm" in out
    assert "Inductor" not in run("--all --target tensorrt_rtx")[1]
    told = as_json(run, "--all")
    assert len(told["cells"]) == len(CHIPS) * len(Format) * len(Runtime)
    assert {cpu["kind"] for cpu in told["cpus"]} >= {"avx2", "arm_i8mm"}


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("command", ["", "--gpu A40", "--gpu T4 --target tensorrt_rtx", "--all"])
def test_nothing_is_wider_than_the_screen_but_addresses(
    command: str, columns: int, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    _, out, _ = run(command)
    assert [x for x in out.splitlines() if len(x) > columns and "https://" not in x] == []
    assert "…" not in out.replace("8.6 …", "").replace("Tesla …", "")


def test_the_processor_of_a_kind_is_told_alone(run: Run) -> None:
    _, out, _ = run("--cpu avx2")
    assert out.startswith("INT8 on avx2")
    assert "16 bits  7 bits" in out
    assert "VPMADDUBSW" in out
    assert as_json(run, "--cpu avx2")["cpu"]["runtimes"]["onnxruntime"]["weight_bits"] == 7


def test_the_page_holds_the_table_that_the_command_writes(run: Run, root: Path) -> None:
    """To renew it, put below the mark what that command prints."""
    page = (root / "docs/hardware.md").read_text(encoding="utf-8")
    code, out, _ = run("--all --markdown")
    assert code == 0
    assert page.partition("<!-- table -->\n")[2] == out


def test_the_page_shows_the_answer_that_the_command_gives(run: Run, root: Path) -> None:
    page = (root / "docs/hardware.md").read_text(encoding="utf-8")
    (command, answer), *_ = re.findall(r"^\$ quantkit hardware (.*)\n(.*)$", page, re.MULTILINE)
    assert run(command)[1] == f"{answer}\n"
