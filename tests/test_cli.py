"""The command line: what it writes, prints and refuses, and what it leaves as it was."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import fake_tensorrt
import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import save_file
from two_ways import export_float

from quantkit import __version__, cli
from quantkit._cli_show import screen
from quantkit.graph.plan import Placement
from quantkit.interfaces import Finding, Severity

NET = '''
"""A user's own file."""

import torch
from torch import nn


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3)
        self.fc = nn.Linear(16 * 36, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.relu(self.conv(x)).flatten(1))


class Branching(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1 if x.sum() > 0 else x


def make() -> Net:
    torch.manual_seed(0)
    print("a line that no machine should have to read")
    return Net()


def diverged() -> Net:
    made = Net()
    with torch.no_grad():
        made.fc.weight[0, 0] = float("nan")
    return made


def nothing() -> nn.Module:
    return nn.Sequential(nn.ReLU(), nn.Flatten())


def number() -> int:
    return 3


def broken() -> Net:
    raise ValueError("no such file: weights.bin")
'''

needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason='TensorRT-RTX is not installed: pip install "quantkit[rtx]"',
)


def write_data(folder: Path, name: str, images: np.ndarray, **transform: str) -> None:
    np.savez(folder / f"{name}.npz", x=images)
    spec = {"source": f"{name}.npz", "inputs": {"x": transform}, "batch_size": 4}
    (folder / f"{name}.yaml").write_text(json.dumps(spec))  # JSON is YAML


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all that the examples of the help texts name."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "net.py").write_text(NET)
    images = np.random.default_rng(0).standard_normal((12, 3, 8, 8), dtype=np.float32)
    for name in ("calib", "train", "eval"):
        write_data(folder, name, images)
    write_data(folder, "hold", -images)  # none of them calibrates
    write_data(folder, "empty", images[:0])
    write_data(folder, "narrow", images[:, :1])
    write_data(folder, "whole", (images * 10).astype(np.int64), dtype="int64")
    images = images.copy()
    images[9] = np.nan
    write_data(folder, "nan", images)
    (folder / "my.yaml").write_text("scheme: {weights: {per: channel}}\n")
    fp8 = "{dtype: fp8_e4m3}"
    (folder / "fp8.yaml").write_text(f"scheme: {{weights: {fp8}, activations: {fp8}}}\n")
    (folder / "vain.yaml").write_text(
        "{scheme: {weights: {per: channel}}, overrides: [{module: hed, scheme: null}]}\n"
    )
    for kind in ("npy", "npz"):
        lost = {"source": f"lost.{kind}", "inputs": {"x": {}}}
        (folder / f"{kind}.yaml").write_text(json.dumps(lost))
    (folder / "malformed.yaml").write_text("scheme: [unclosed\n")
    (folder / "wrong.yaml").write_text("scheme: {weights: {dtyp: int8}}\n")

    names: dict[str, object] = {"__name__": "net"}
    exec(NET, names)
    make = names["make"]
    assert callable(make)
    net = make().eval()
    state = net.state_dict()
    # As DataParallel and training scripts write it.
    wrapped = {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}}
    torch.save(wrapped, folder / "net.pth")
    save_file(state, folder / "net.safetensors")
    save_file({"other": torch.zeros(2)}, folder / "other.safetensors")
    torch.save({"state_dict": state, "folder": Path("x")}, folder / "pickled.pth")
    batch = {0: torch.export.Dim.DYNAMIC}
    program = torch.export.export(net, (torch.zeros(2, 3, 8, 8),), dynamic_shapes=(batch,))
    torch.export.save(program, folder / "net.pt2")
    export_float(net, (torch.zeros(2, 3, 8, 8),), folder / "float.onnx")
    (folder / "junk.pt2").write_text("junk")
    (folder / "junk.onnx").write_text("junk")
    return folder


@pytest.fixture
def work(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """That folder as the working directory."""
    monkeypatch.chdir(made)
    monkeypatch.syspath_prepend(str(made))
    monkeypatch.setenv("COLUMNS", "200")
    sys.modules.pop("net", None)
    return made


Run = Callable[[str], tuple[int, str, str]]


@pytest.fixture
def run(work: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command line in this process: exit code, standard output and standard error."""

    def run(command: str) -> tuple[int, str, str]:
        code = cli.main(shlex.split(command))
        out, err = capsys.readouterr()
        return code, out, err

    return run


def start(command: str, folder: Path) -> subprocess.Popen[str]:
    """Start a command line in a process of its own, as an installed command starts."""
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "quantkit", *shlex.split(command)],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


# What it says of itself


def test_the_version_is_printed(run: Run) -> None:
    assert run("--version") == (0, f"quantkit {__version__}\n", "")


def test_no_command_prints_the_help(run: Run) -> None:
    code, out, _ = run("")
    assert code == 0
    assert "quantkit recipes" in out


def test_help_does_not_wait_for_pytorch() -> None:
    code = (
        "import sys; from quantkit import cli; cli.main(['quantize', '--help']);"
        "print([m for m in ('torch', 'onnx', 'datasets', 'numpy') if m in sys.modules])"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


COMMANDS = (
    *("calibrate", "quantize", "finetune", "recover", "migrate", "half", "check", "build"),
    *("recipes", "hardware", "inspect", "bench", "sensitivity", "mix", "diagnose", "report"),
    "profile",
)


def examples(*, rtx: bool, calibrator: bool = False) -> list[str]:
    """The examples of every help text, each once, in the order in which a user needs them."""
    texts = [command.callback.__doc__ or "" for command in cli.app.registered_commands]
    found = [line.strip() for text in texts for line in text.splitlines()]
    lines = dict.fromkeys(line for line in found if line.startswith("quantkit "))
    lines = dict.fromkeys(line for line in lines if calibrator == ("--calibrator tens" in line))
    kept = [
        line
        for line in lines
        if rtx == any(w in line for w in ("--gpu", "check net.onnx", " inspect "))
    ]
    return sorted(kept, key=lambda line: COMMANDS.index(line.split()[1]))


def test_every_command_has_examples() -> None:
    for name in COMMANDS:
        lines = [line for line in examples(rtx=False) + examples(rtx=True) if f" {name}" in line]
        assert len(lines) >= 3, name


@pytest.fixture(scope="module")
def exported(made: Path) -> Path:
    """The folder, after the examples of ``quantkit quantize``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(made)
        patch.syspath_prepend(str(made))
        for line in examples(rtx=False):
            assert cli.main(shlex.split(line)[1:]) == 0, line
    return made


@pytest.mark.slow
def test_the_examples_of_the_help_texts_run(exported: Path) -> None:
    for name in ("net.onnx", "cpu.onnx", "weights.onnx", "w.onnx", "cpu.ort.onnx"):
        assert onnx.load(exported / name).graph.node, name


@pytest.mark.slow
def test_the_examples_with_a_calibrator_of_tensorrt_run(
    exported: Path, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With a TensorRT of plain Python: it calls as the real one does."""
    fake_tensorrt.install(monkeypatch, tmp_path / "sdk")
    lines = examples(rtx=False, calibrator=True)
    assert lines
    for line in lines:
        assert run(line.removeprefix("quantkit "))[0] == 0, line


@pytest.mark.slow
@needs_rtx
def test_the_examples_with_tensorrt_run(exported: Path, run: Run) -> None:
    lines = examples(rtx=True)
    assert len(lines) >= 4
    for line in lines:
        assert run(line.removeprefix("quantkit "))[0] == 0, line
    assert (exported / "net.engine").stat().st_size > 1000


# quantize


def test_quantize_prints_json_and_nothing_else(work: Path, run: Run) -> None:
    code, out, err = run("quantize net:make --data calib.yaml -o a.onnx --json")
    told = json.loads(out)
    assert code == 0
    assert told["bytes"] == (work / "a.onnx").stat().st_size
    assert told["float_bytes"] == 4 * (16 * 3 * 9 + 16 + 16 * 36 * 16 + 16)
    assert (told["recipe"], told["form"]) == ("int8_ptq", "tensorrt")
    assert [d["quantized"] for d in told["plan"]["decisions"]] == [True, True]
    assert "no machine should have to read" in err


def test_quantize_tells_what_is_float_and_why(run: Run) -> None:
    code, out, _ = run(
        "quantize net:make --recipe int8_weight_only --input-shape 1,3,8,8 -o b.onnx"
    )
    assert code == 0
    assert "1 of 2 layers quantized" in out
    assert re.search(r"1 +conv +float +.*\(conv\)", out)


def test_the_plan_and_the_state_are_saved(work: Path, run: Run) -> None:
    command = (
        "quantize net:make --data calib.yaml -o c.onnx --save-plan p.json --save s.safetensors"
    )
    assert run(command)[0] == 0
    plan = Placement.from_json((work / "p.json").read_text())
    assert plan.quantized == ("conv", "fc")
    assert (work / "s.safetensors").stat().st_size > 0


@pytest.mark.parametrize("weights", ["net.pth", "net.safetensors"])
def test_weights_are_loaded_into_what_the_factory_makes(weights: str, work: Path, run: Run) -> None:
    from quantkit.loading import load_model

    expected = torch.load(work / "net.pth", weights_only=True)["state_dict"]["module.fc.weight"]
    (work / "zeros.py").write_text(
        "import net, torch\n"
        "def make():\n"
        "    made = net.Net()\n"
        "    torch.nn.init.zeros_(made.fc.weight)\n"
        "    return made\n"
    )
    loaded = load_model("zeros:make", work / weights)
    assert torch.equal(loaded.state_dict()["fc.weight"], expected)


def test_the_target_decides_the_form(work: Path, run: Run) -> None:
    _, out, _ = run("quantize net.pt2 --target onnxruntime --data calib.yaml -o d.onnx --json")
    assert json.loads(out)["form"] == "onnxruntime"


def test_a_static_model_has_fixed_shapes(work: Path, run: Run) -> None:
    assert run("quantize net:make --data calib.yaml --static -o e.onnx")[0] == 0
    sizes = onnx.load(work / "e.onnx").graph.input[0].type.tensor_type.shape.dim
    assert [size.dim_value for size in sizes] == [4, 3, 8, 8]


def quantize_told(run: Run, options: str) -> tuple[list[dict[str, str]], list[str]]:
    """The warnings of the JSON, and those of standard error."""
    code, out, err = run(f"quantize {options} -o told.onnx --json")
    assert code == 0, err
    return json.loads(out)["warnings"], [x for x in err.splitlines() if x.startswith("warning[")]


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (
            "net:make --recipe int8_activation_only --data calib.yaml",
            "activation-only",
            "with float weights run in float",
        ),
        (
            "net:make --recipe int8_asymmetric --cpu avx2 --data calib.yaml",
            "saturates-without-vnni",
            "saturate in 16 bits",
        ),
        (
            "net:nothing --recipe int8_weight_only --input-shape 1,3,8,8",
            "nothing-quantized",
            "no convolution, linear layer or matrix product",
        ),
        (
            "net:make --recipe vain.yaml --input-shape 1,3,8,8",
            "unused-override",
            "override module=hed matched no layer",
        ),
    ],
)
def test_quantize_warns_on_standard_error_and_in_the_json(
    options: str, code: str, words: str, run: Run
) -> None:
    told, printed = quantize_told(run, options)
    assert [finding["code"] for finding in told] == [code]
    assert words in told[0]["why"]
    (line,) = printed
    assert line.startswith(f"warning[{code}]")
    assert words in line


def test_a_model_left_in_float_tells_the_plans_reasons(work: Path, run: Run) -> None:
    (work / "none.yaml").write_text("scheme: {}\n")
    told, printed = quantize_told(run, "net:make --recipe none.yaml --input-shape 1,3,8,8")
    reasons = {
        decision["reason"]
        for decision in json.loads(
            run("quantize net:make --recipe none.yaml --input-shape 1,3,8,8 -o told.onnx --json")[1]
        )["plan"]["decisions"]
    }
    assert told[0]["code"] == "nothing-quantized"
    assert reasons
    assert all(reason in told[0]["why"] and reason in printed[0] for reason in reasons)


def test_a_sound_run_warns_of_nothing(run: Run) -> None:
    assert quantize_told(run, "net:make --data calib.yaml") == ([], [])


# What is refused: a line, a way out, an exit code, and no file

REFUSED = [
    ("--data empty.yaml", 4, "no row; give data"),
    ("--data narrow.yaml", 5, "to have 3 channels, but got 1"),
    ("--data whole.yaml", 5, "Input type (long int) and bias type (float)"),
    ("--data whole.yaml", 5, "with x int64 (4, 3, 8, 8): "),
    ("--data whole.yaml", 5, "Way out: check the shape and dtype of the data"),
    ("--data npy.yaml", 4, "lost.npy: no such file; correct source"),
    ("--data npz.yaml", 4, "lost.npz: no such file; correct source"),
    ("--data calib.yaml --form nope", 2, "'--form': 'nope' is not one of 'tensorrt'"),
    ("--data calib.yaml --cpu foo", 3, "no CPU kind 'foo'; there are: auto"),
    (
        "--data nan.yaml --recipe int8_asymmetric --form tensorrt", 3,
        "has no form that TensorRT takes (it wants zero-point 0); use --recipe int8_ptq",
    ),
    (
        "--data nan.yaml --recipe int8_asymmetric --target onnxruntime --cpu vnni --form tensorrt",
        3, "use --recipe int8_ptq, or --form onnxruntime",
    ),
    ("--data nan.yaml", 4, "batch 2, input 'x' holds NaN"),
    ("--data absent.yaml", 4, "No such file"),
    ("--data malformed.yaml", 4, "while parsing"),
    ("--data calib.yaml --recipe int8_ptk", 3, "did you mean 'int8_ptq'?"),
    ("--data calib.yaml --recipe malformed.yaml", 3, "malformed.yaml: not YAML"),
    ("--data calib.yaml --recipe wrong.yaml", 3, "scheme.weights.dtyp: no such key; there are"),
    ("--data calib.yaml --recipe absent.yaml", 3, "cannot be read"),
    ("--data calib.yaml --weights absent.pth", 6, "no such file"),
    ("--data calib.yaml --weights other.safetensors", 6, "4 of 4 tensors are missing"),
    ("--data calib.yaml --weights pickled.pth", 6, "would run code"),
    ("--data calib.yaml --target tensorrt_xtr", 3, "did you mean 'tensorrt_rtx'?"),
    ("--data calib.yaml --target tensorrt_rtx --gpu H100", 8, "choose one of"),
    ("--data calib.yaml --target onnxruntime --gpu A40", 2, "uses no GPU"),
    ("--data calib.yaml --gpu A40", 2, "give --target as well"),
    ("--data calib.yaml --input-shape 1,x", 2, "write 1,3,32,32"),
    ("--data calib.yaml --bogus", 2, "see quantkit quantize --help"),
    ("", 4, "needs calibration data; give --data"),
    ("--recipe int8_weight_only", 4, "give --data, or --input-shape"),
    (
        "--data nan.yaml --recipe int8_asymmetric --target tensorrt_rtx", 3,
        "zero-point 0 only, and an asymmetric grid has others. Set symmetric to true, or use the "
        "recipe int8_ptq",
    ),
    ("--data nan.yaml --recipe fp8.yaml --target tensorrt_rtx --gpu A40", 3, "have no fp8"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "exit_code", "words"), REFUSED)
def test_quantize_refuses_with_one_line_and_its_exit_code(
    options: str, exit_code: int, words: str, work: Path, run: Run
) -> None:
    code, out, err = run(f"quantize net:make {options} -o refused.onnx")
    (line,) = [line for line in err.splitlines() if "no machine" not in line]
    assert line.startswith("error: ")
    assert words in line
    assert (code, out) == (exit_code, "")
    assert not list(work.glob("*refused*"))


@pytest.mark.parametrize(
    ("model", "exit_code", "words"),
    [
        ("net:Branching", 5, "depends on tensor values"),
        ("net:broken", 6, "ValueError: no such file: weights.bin"),
        ("net:mak", 6, "there are: Net, Branching, make"),
        ("net:number", 6, "returns an int; it must"),
        ("net:diverged", 6, "parameter fc.weight holds NaN or infinity in 1 of 9216 values"),
        ("nets:make", 6, "no module 'nets'; run from the folder"),
        ("net.py:make", 6, "write net:make"),
        ("net.pth", 6, "(--weights takes it)"),
        ("absent.onnx", 6, "no such file; give a float ONNX file"),
        ("junk.onnx", 6, "junk.onnx: not an ONNX file"),
        ("junk.pt2", 6, "save it with torch.export.save"),
        ("absent.pt2", 6, "no such file"),
    ],
)
def test_a_model_that_cannot_be_had_is_refused(
    model: str, exit_code: int, words: str, run: Run
) -> None:
    code, out, err = run(f"quantize {model} --data calib.yaml -o refused.onnx")
    (line,) = err.splitlines()
    assert line.startswith("error: ")
    assert words in line
    assert (code, out) == (exit_code, "")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("narrow", "got float32 (4, 1, 8, 8), expected float32 (any, 3, 8, 8)"),
        ("whole", "got int64 (4, 3, 8, 8), expected float32 (any, 3, 8, 8)"),
    ],
)
def test_data_unlike_a_programs_examples_are_refused(data: str, words: str, run: Run) -> None:
    code, out, err = run(f"quantize net.pt2 --data {data}.yaml -o refused.onnx")
    assert (code, out, err.count("\n")) == (4, "", 1)
    assert words in err


@pytest.mark.parametrize("output", ["absent/out.onnx", "folder.onnx"])
def test_an_unwritable_output_is_told_before_the_data_are_read(
    output: str, work: Path, run: Run
) -> None:
    (work / "folder.onnx").mkdir(exist_ok=True)
    code, _, err = run(f"quantize net:make --data nan.yaml -o {output}")
    assert code == 7
    assert err.count("\n") == 1
    assert output in err


@pytest.mark.parametrize(
    ("command", "exit_code", "words"),
    [
        ("check absent.onnx", 6, "no such file"),
        ("check junk.onnx --target onnxruntime", 6, "not an ONNX file"),
        ("check junk.onnx --min-sqnr 30", 2, "--min-sqnr needs --model as well"),
        ("check junk.onnx --model net:make", 2, "--model needs --data as well"),
        ("build absent.onnx -o x.engine", 6, "no such file"),
        ("build junk.onnx -o absent/x.engine", 7, "cannot be written"),
        ("recipes int8_ptk", 3, "did you mean 'int8_ptq'?"),
        ("recipes wrong.yaml", 3, "no such key"),
        ("bogus", 2, "No such command"),
    ],
)
def test_other_commands_refuse_alike(command: str, exit_code: int, words: str, run: Run) -> None:
    code, out, err = run(command)
    assert (code, out) == (exit_code, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert words in err


def test_findings_of_one_rule_are_told_together(capsys: pytest.CaptureFixture[str]) -> None:
    found = [
        Finding(
            severity=Severity.ERROR, code="zero-scale", where=f"conv{i}", why="It is.", fix="Go."
        )
        for i in range(9)
    ]
    with screen(as_json=False) as show:
        show.findings(found, every_one=False)
    assert capsys.readouterr().out.splitlines() == [
        "error[zero-scale] conv0: It is.",
        "  Also conv1, conv2, conv3 and 5 more",
        "  Fix: Go.",
    ]
    with screen(as_json=False) as show:
        show.findings(found)
    assert capsys.readouterr().out.count("error[zero-scale]") == 9


# What is interrupted

SLOW = """
import time
import onnx_ir
from torch import nn


def half(model, path):
    with open(path, "wb") as file:
        file.write(b"half a file")
        file.flush()
        open("started", "w").close()
        time.sleep(60)


def make():
    onnx_ir.save = half
    return nn.Linear(32, 32)
"""


def test_a_run_ended_while_it_writes_leaves_the_good_file_of_the_last(tmp_path: Path) -> None:
    ends = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -signal.SIGKILL}
    command = "quantize slow:make --recipe int8_weight_only --input-shape 2,32 -o net.onnx"
    processes = {}
    for number in ends:
        folder = tmp_path / number.name
        folder.mkdir()
        (folder / "slow.py").write_text(SLOW)
        (folder / "net.onnx").write_bytes(b"the good file")
        processes[number] = start(command, folder)
    deadline = time.monotonic() + 120
    for number, process in processes.items():
        folder = tmp_path / number.name
        while not (folder / "started").exists():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(number)
        _, err = process.communicate(timeout=30)

        assert process.returncode == ends[number]
        assert (folder / "net.onnx").read_bytes() == b"the good file"
        words = {signal.SIGINT: "error: interrupted;", signal.SIGTERM: "error: terminated;"}
        if number in words:
            (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
            assert line.startswith(words[number])
        assert "Traceback" not in err
        # Nobody can tidy up after a kill -9; what is left then is hidden, and not in its place.
        left = [file.name for file in folder.glob("*onnx*") if file.name != "net.onnx"]
        assert left == [] or number is signal.SIGKILL
        assert all(name.startswith(".") for name in left)


IMPORTED = """
import os
import signal


def swallow():
    try:
        os.kill(os.getpid(), signal.{name})
    except BaseException as error:
        raise {error}("half an import") from error


swallow()
"""


@pytest.mark.parametrize("error", ["ImportError", "RecursionError"])
@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_that_an_import_turns_into_an_error_still_ends_the_run(
    name: str, code: int, error: str, work: Path, run: Run
) -> None:
    sys.modules.pop("swallows", None)
    importlib.invalidate_caches()
    (work / "swallows.py").write_text(IMPORTED.format(name=name, error=error))
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    ended, out, err = run("quantize swallows:make --data calib.yaml -o refused.onnx")
    assert (ended, out, err.count("\n")) == (code, "", 1)
    assert err.startswith(("error: interrupted;", "error: terminated;"))
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_signal_that_an_import_swallows_ends_the_run_at_the_next_step(
    work: Path, run: Run
) -> None:
    sys.modules.pop("deaf", None)
    importlib.invalidate_caches()
    (work / "deaf.py").write_text(
        "import os, signal\n"
        "try:\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "except BaseException:\n"
        "    from net import make\n"
    )
    code, out, err = run("quantize deaf:make --data calib.yaml -o refused.onnx")
    assert (code, out) == (130, "")
    assert err.splitlines()[-1].startswith("error: interrupted;")
    assert not list(work.glob("*refused*"))


def test_ctrl_c_while_the_command_line_is_imported_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("raise KeyboardInterrupt\n")
    code = "import sys; from quantkit.__main__ import main; sys.exit(main())"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (130, 1)
    assert done.stderr.startswith("error: interrupted")
