"""``quantkit migrate``, and caches written by ``quantkit calibrate --cache``."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
from onnx_folder import Run, fill, runner

from quantkit.tensorrt.cache import read_cache
from quantkit.tensorrt.record import CacheRecord

LINES = {"image": "3cef5ebd", "r": "3d418306", "p": "3cf52a55", "f": "3cf52a55"}


def write_cache(path: Path, lines: dict[str, str]) -> None:
    text = "".join(f"{name}: {bits}\n" for name, bits in lines.items())
    path.write_text(f"TRT-8601-EntropyCalibration2\n{text}")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    fill(tmp_path)
    write_cache(tmp_path / "float.cache", LINES)
    write_cache(tmp_path / "part.cache", {"image": LINES["image"], "p": LINES["p"], "old": "1"})
    write_cache(tmp_path / "other.cache", {"old": "3d000000"})
    (tmp_path / "junk.cache").write_text("junk")
    return tmp_path


@pytest.fixture
def run(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    return runner(folder, monkeypatch, capsys)


def test_a_cache_becomes_qdq_and_the_next_step_is_told(run: Run, folder: Path) -> None:
    code, out, err = run("migrate float.onnx float.cache -o net.onnx")
    assert (code, err) == (0, "")
    first, *_, last = out.splitlines()
    assert first.startswith("3 of 3 tensors that the plan quantizes have a range of the cache")
    assert "3 of 3 layers quantized" in out
    assert last == "Next: quantkit build net.onnx -o net.engine"
    scales = {t.name: t for t in onnx.load(folder / "net.onnx").graph.initializer}
    found = onnx.numpy_helper.to_array(scales["image_scale"])
    assert found.tobytes()[::-1].hex() == LINES["image"]


def test_what_is_missing_on_either_side_is_told(run: Run, folder: Path) -> None:
    code, out, _ = run("migrate float.onnx part.cache -o net.onnx")
    assert code == 0
    assert "2 of 3 tensors" in out
    assert "warning[no-range] r: " in out
    assert "layer1.0.conv1, layer1.0/add in float" in out
    assert "info[unknown-tensor] old: " in out
    assert "2 of 3 layers quantized" in out
    assert "the calibration cache has no range for r (layer1.0.conv1)" in out


def test_every_tensor_that_only_the_cache_has_is_named(run: Run, folder: Path) -> None:
    write_cache(folder / "more.cache", LINES | {f"old{index}": "3d000000" for index in range(25)})
    _, out, _ = run("migrate float.onnx more.cache -o net.onnx")
    assert "Only in the cache: old0, old1, " in out
    assert "and 5 more (--json names all)" in out
    told = json.loads(run("migrate float.onnx more.cache -o net.onnx --json")[1])
    assert told["absent"] == [f"old{index}" for index in range(25)]


def test_the_json_tells_all(run: Run, folder: Path) -> None:
    code, out, _ = run("migrate float.onnx part.cache -o net.onnx --json")
    told = json.loads(out)
    assert code == 0
    assert told["taken"] == {"image": "image", "p": "p"}
    assert told["absent"] == ["old"]
    assert told["unranged"] == {"r": ["layer1.0.conv1", "layer1.0/add"]}
    assert told["cache"] == {
        "path": "part.cache", "header": "TRT-8601-EntropyCalibration2", "tensors": 3
    }  # fmt: skip
    assert [finding["code"] for finding in told["findings"]] == ["no-range", "unknown-tensor"]
    assert told["bytes"] == (folder / "net.onnx").stat().st_size
    assert [d["op"] for d in told["plan"]["decisions"] if not d["quantized"]] == ["layer1.0.conv1"]


def test_strict_writes_nothing_where_a_tensor_has_no_range(run: Run, folder: Path) -> None:
    (folder / "net.onnx").write_bytes(b"the good file")
    code, out, _ = run("migrate float.onnx part.cache -o net.onnx --strict")
    assert code == 1
    assert out.splitlines()[-1] == (
        "not ok: 1 tensor without a range; nothing was written (--strict)"
    )
    code, out, _ = run("migrate float.onnx part.cache -o net.onnx --strict --json")
    assert (code, json.loads(out)["output"]) == (1, None)
    assert (folder / "net.onnx").read_bytes() == b"the good file"
    assert run("migrate float.onnx float.cache -o net.onnx --strict")[0] == 0
    assert (folder / "net.onnx").read_bytes() != b"the good file"


@pytest.mark.parametrize(
    ("arguments", "exit_code", "words"),
    [
        ("float.onnx absent.cache", 6, "absent.cache: cannot be read (No such file or d"),
        ("absent.onnx float.cache", 6, "absent.onnx: no such file; give a float"),
        ("float.onnx junk.cache", 6, "junk.cache, line 1: 'junk' is no header"),
        ("float.onnx other.cache", 6, "float.onnx has none of them"),
        ("junk.onnx float.cache", 6, "junk.onnx"),
        ("float.onnx float.cache --recipe int8_cpu", 3, "use int8_ptq"),
        ("float.onnx float.cache --recipe int8_ptk", 3, "did you mean 'int8_ptq'?"),
    ],
)
def test_migrate_refuses_with_one_line_and_writes_nothing(
    arguments: str, exit_code: int, words: str, run: Run, folder: Path
) -> None:
    code, out, err = run(f"migrate {arguments} -o refused.onnx")
    assert (code, out, err.count("\n")) == (exit_code, "", 1)
    assert words in err
    assert not (folder / "refused.onnx").exists()


# Caches of ours


def test_calibrate_writes_a_cache_and_what_it_was_made_for(run: Run, folder: Path) -> None:
    code, out, _ = run("calibrate float.onnx --data calib.yaml --cache ours.cache")
    assert code == 0
    assert out.splitlines()[-1] == (
        "Next: quantkit build float.onnx -o float.engine --calibrator tensorrt_entropy2 "
        "--cache ours.cache"
    )
    cache, record = read_cache(folder / "ours.cache"), CacheRecord.read(folder / "ours.cache")
    assert cache.header == "TRT-101303-EntropyCalibration2"
    assert {"image", "r", "logits"} < set(cache.bits)
    assert record is not None
    assert (record.batches, record.algorithm) == (4, cache.algorithm)
    assert record.tensorrt.startswith("quantkit ")
    assert "calib.npz" in record.data
    assert run("migrate float.onnx ours.cache -o net.onnx --strict")[0] == 0


def test_the_header_names_the_version_and_calibrator_that_read_it(run: Run) -> None:
    command = "calibrate float.onnx --data calib.yaml --cache ours.cache --json"
    for version, header in {"8.6.1": "TRT-8601", "101601": "TRT-101601"}.items():
        told = json.loads(run(f"{command} --calibrator minmax --tensorrt-version {version}")[1])
        assert told["header"] == f"{header}-MinMaxCalibration"
        assert (told["calibrator"], told["tensors"]) == ("minmax", 11)


def test_statistics_become_another_cache_without_running_the_data_again(
    run: Run, folder: Path
) -> None:
    command = "calibrate float.onnx --data calib.yaml -o seen.safetensors --cache"
    assert run(f"{command} first.cache")[0] == 0
    assert run(f"{command} second.cache --resume --tensorrt-version 8.6.1")[0] == 0
    first, second = (read_cache(folder / f"{name}.cache") for name in ("first", "second"))
    assert first.bits == second.bits
    assert second.version == "8601"


@pytest.mark.parametrize(
    ("arguments", "exit_code", "words"),
    [
        ("net:make --data calib.yaml", 2, "give the float .onnx file"),
        ("float.onnx --data calib.yaml --compare", 2, "leave --compare out"),
        ("float.onnx --data calib.yaml --statistics s.st", 2, "leave --statistics out"),
        ("float.onnx --data calib.yaml --static", 2, "leave --static out"),
        ("float.onnx --data calib.yaml --resume", 2, "--resume goes on from the file of -o"),
        (
            "float.onnx --data calib.yaml --calibrator mse --calibrator entropy", 2,
            "the ranges of one calibrator",
        ),
        ("float.onnx", 4, "give --data DATA.yaml"),
        ("float.onnx --data renamed.yaml", 4, "has no input 'x'"),
        ("float.onnx --data calib.yaml --calibrator entropie", 3, "did you mean 'entropy'?"),
        ("float.onnx --data calib.yaml --calibrator tensorrt_minmax", 3, "finds no ranges"),
        ("float.onnx --data calib.yaml --tensorrt-version 11.0", 8, "those are 8.5 to 10.16"),
        ("float.onnx --data calib.yaml --tensorrt-version ten", 8, "write 10.13.3"),
    ],
)  # fmt: skip
def test_caches_that_mean_nothing_are_refused(
    arguments: str, exit_code: int, words: str, run: Run, folder: Path
) -> None:
    code, out, err = run(f"calibrate {arguments} --cache refused.cache")
    assert (code, out, err.count("\n")) == (exit_code, "", 1)
    assert words in err
    assert not list(folder.glob("refused*"))
