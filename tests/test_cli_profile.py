"""``quantkit profile``: what it prints, writes, and refuses."""

from __future__ import annotations

import json
import stat
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from quantkit import cli

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a program that takes any batch."""
    folder = tmp_path_factory.mktemp("profile")
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4)).eval()
    any_batch = {0: torch.export.Dim("batch")}
    program = torch.export.export(net, (torch.randn(2, 3, 8, 8),), dynamic_shapes=(any_batch,))
    torch.export.save(program, folder / "net.pt2")
    return folder


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = cli.main(["profile", *map(str, arguments)])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_layers_kernels_and_totals_are_printed_and_written(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, trace = made / "profile.json", made / "trace.json"
    code, text, _ = run(
        capsys, made / "net.pt2", "--batch", 4, "--runs", 3, "-o", out, "--trace", trace, "--memory"
    )
    assert code == 0
    assert "eager" in text
    assert "batch 4" in text
    assert "By layer" in text
    assert "By kernel, of all layers" in text
    assert "without the profiler" in text
    assert "peak kB" in text
    told = json.loads(out.read_text())
    assert [layer["name"] for layer in told["layers"]] == ["0", "1/relu", "2/flatten", "3"]
    assert told["totals"]["runs"] == 3
    again, text, _ = run(capsys, "--from", trace)
    assert again == 0
    assert "as recorded" in text
    assert "1/relu" in text


def test_json_is_all_that_is_printed(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text, _ = run(capsys, made / "net.pt2", "--runs", 2, "--json")
    assert code == 0
    assert json.loads(text)["batch"] == 1


def test_a_roof_of_a_data_sheet_places_each_layer(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, text, _ = run(capsys, made / "net.pt2", "--runs", 2, "--roofline", "A40", "--top", 2)
    assert code == 0
    assert "A40 (table), batch 1" in text
    assert "shows all" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give MODEL, or --from TRACE"),
        (("net.pt2", "--from", "trace.json"), "give MODEL, or --from TRACE"),
        (("--from", "trace.json", "--batch", "2"), "--batch is of a run"),
        (("net.pt2", "--nsys", "--ncu"), "give one of them"),
        (("net.pt2", "--ncu", "--memory"), "--memory is of a run without"),
        (("net.pt2", "--target", "no_such"), "there are: eager"),
        (("none.pt2",), "none.pt2: no such file"),
        (("--from", "net.pt2"), "is no trace that can be used"),
        (("--from", "none.sqlite"), "none.sqlite: no such file"),
        (("net.pt2", "--roofline", "no such GPU"), "no such GPU"),
        (("net.pt2", "-o", "no/such/folder.json"), "cannot be written"),
    ],
)
def test_what_means_nothing_is_refused_on_one_line(
    made: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(made)
    code, text, errors = run(capsys, *arguments)
    assert code not in (0, 1)
    assert text == ""
    assert message in errors
    assert errors.count("\n") == 1


def test_the_same_runs_go_under_nsight_compute(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With an ncu that only writes what it was asked to run."""
    tool = made / "bin" / "ncu"
    tool.parent.mkdir()
    head = '"ID","Kernel Name","Metric Name","Metric Unit","Metric Value"'
    row = '"0","{}","gpu__time_duration.sum","ns","1000"'
    script = f"""#!{sys.executable}
import sys
log = next(a for a in sys.argv if a.startswith("--log-file=")).split("=", 1)[1]
ran = " ".join(sys.argv[sys.argv.index("-m"):])
open(log, "w").write({head!r} + "\\n" + {row!r}.format(ran) + "\\n")
"""
    tool.write_text(script)
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tool.parent))
    code, text, _ = run(
        capsys, "net.pt2", "--ncu", "--batch", 2, "--input-shape", "x=2,3:int64", "--json"
    )
    assert code == 0
    (kernel,) = json.loads(text)
    assert kernel["name"] == (
        "-m quantkit profile net.pt2 --device cpu --batch 2 --runs 20 --threads 1 "
        "--input-shape x=2,3:int64"
    )
