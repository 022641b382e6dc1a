"""Programs for Torch-TensorRT: read, sized, compiled, saved and run."""

from __future__ import annotations

import hashlib
import importlib
import io
import os
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

from quantkit.errors import ExportError, ModelFileError, TargetError
from quantkit.graph.capture import recapture
from quantkit.graph.exporting import first_line
from quantkit.interfaces import Finding, Severity
from quantkit.program import reading
from quantkit.targets._shapes import Profile, Shapes, default_profile
from quantkit.targets._torch_tensorrt_sdk import DEVICE
from quantkit.tensorrt import trust

if TYPE_CHECKING:
    import numpy as np

#: What the graph of a saved program calls where it runs an engine.
_ENGINE_CALL = b"tensorrt.execute_engine"


def read_program(path: Path) -> ExportedProgram:
    """A program that is to be compiled.

    Raises:
        ModelFileError: there is none in the file, or it holds engines already.
    """
    if holds_engines(path):
        raise ModelFileError(f"{path}: holds engines already; give the program that it is made of")
    program = reading.read_program(path).program
    values = (node.meta.get("val") for node in program.graph.nodes)
    fake = next((value for value in values if isinstance(value, FakeTensor)), None)
    if fake is not None:
        # As in a program that was not read from a file: the shape of what has no rule of its own
        # (PyTorch's fake-quantize) is found by running it.
        fake.fake_mode.allow_fallback_kernels = True
    return program


def holds_engines(path: Path) -> bool:
    """Whether a saved program calls engines, told from its text: nothing of it is loaded."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(
                _ENGINE_CALL in archive.read(name)
                for name in archive.namelist()
                if name.endswith(".json")
            )
    except (OSError, zipfile.BadZipFile):
        return False


def sized(program: ExportedProgram, shapes: Shapes) -> ExportedProgram:
    """The program with a smallest, best and largest size of each dynamic dimension.

    Torch-TensorRT reads them off the program: what has no largest size gets 4,096 there.

    Args:
        program: with example inputs.
        shapes: of inputs by name; `default_profile` for others.

    Raises:
        CaptureError: the program cannot have such sizes.
        ModelFileError: it holds no example inputs.
    """
    values = dict(zip(input_names(program), _inputs(program), strict=True))
    symbols = _symbol_sizes(program, values, shapes)
    if not symbols:
        return program
    if program.example_inputs is None:
        raise ModelFileError(
            "the program holds no example inputs; export it again with torch.export.export"
        )
    dims = {
        symbol: Dim(f"size{index}", min=low, max=high)
        for index, (symbol, (low, _, high)) in enumerate(symbols.items())
    }
    best = {symbol: middle for symbol, (_, middle, _) in symbols.items()}
    examples, spec = pytree.tree_flatten(program.example_inputs)
    sizes: list[Any] = []
    for position, value in enumerate(values.values()):
        if not isinstance(value, Tensor):
            sizes.append(None)
            continue
        extents: list[Any] = list(value.shape)
        shape = [n if isinstance(n, int) else int(n.node.expr.subs(best)) for n in extents]
        examples[position] = torch.zeros(shape, dtype=value.dtype)
        dynamic = {i: n.node.expr for i, n in enumerate(extents) if not isinstance(n, int)}
        sizes.append({i: dims.get(symbol, Dim.AUTO) for i, symbol in dynamic.items()})
    args, kwargs = pytree.tree_unflatten(examples, spec)
    shaped_args, shaped_kwargs = pytree.tree_unflatten(sizes, spec)
    module: Any = program.module(check_guards=False)
    return recapture(module, args, kwargs, (*shaped_args, *shaped_kwargs.values()))


def input_names(program: ExportedProgram) -> list[str]:
    """The names of the inputs, in the order of the flattened arguments."""
    return [str(name) for name in program.graph_signature.user_inputs]


def _inputs(program: ExportedProgram) -> list[Any]:
    values = {node.name: node.meta.get("val") for node in program.graph.nodes}
    return [values.get(name) for name in input_names(program)]


def _symbol_sizes(
    program: ExportedProgram, values: Mapping[str, Any], shapes: Shapes
) -> dict[Any, tuple[int, int, int]]:
    """The smallest, best and largest size of each symbol, within what the program allows."""
    found: dict[Any, tuple[int, int, int]] = {}
    for name, value in values.items():
        if not isinstance(value, Tensor):
            continue
        plain = [n if isinstance(n, int) else -1 for n in value.shape]
        profile: Profile = shapes.get(name) or default_profile(plain)
        extents: list[Any] = list(value.shape)
        for index, size in enumerate(extents):
            if isinstance(size, int) or not size.node.expr.is_symbol:
                continue
            allowed = program.range_constraints.get(size.node.expr)
            low, best, high = (_within(allowed, sizes[index]) for sizes in profile)
            found.setdefault(size.node.expr, (low, best, high))
    return found


def _within(allowed: Any, size: int) -> int:
    """The nearest size that a program allows."""
    lower, upper = (_number(getattr(allowed, end, None)) for end in ("lower", "upper"))
    size = size if lower is None else max(size, lower)
    return size if upper is None else min(size, upper)


def _number(bound: Any) -> int | None:
    try:
        return int(bound)
    except (TypeError, OverflowError, ValueError, AttributeError):  # there is none
        return None


def on_gpu(program: ExportedProgram) -> ExportedProgram:
    """The program on the current GPU."""
    from torch.export.passes import move_to_device_pass

    moved: ExportedProgram = move_to_device_pass(program, DEVICE)
    return moved


def save(sdk: Any, compiled: Any, output: Path) -> list[Finding]:
    """Write a compiled program whole or not at all, and note that it was built here.

    Returns:
        A warning where it cannot be noted.

    Raises:
        ExportError: it cannot be written.
        TargetError: Torch-TensorRT cannot save it.
    """
    try:
        # In the folder of the output: only within one file system is a rename atomic.
        with tempfile.TemporaryDirectory(prefix=".quantkit-", dir=output.parent) as folder:
            partial = Path(folder) / "program.pt2"
            _save(sdk, compiled, partial)
            sha256 = trust.hash_file(partial)
            os.replace(partial, output)
    except OSError as error:
        raise ExportError(
            f"{output}: cannot be written ({error.strerror}); choose a folder that exists and "
            "that you may write to"
        ) from error
    built_by = f"torch_tensorrt {sdk.__version__}"
    try:
        trust.remember(sha256, {"engine": str(output.resolve()), "built_by": built_by})
    except (OSError, ExportError) as error:
        return [_not_remembered(output, str(error))]
    return []


def _not_remembered(output: Path, why: str) -> Finding:
    return Finding(
        severity=Severity.WARNING,
        code="engine-not-remembered",
        where=output.name,
        why=f"Nothing records that it was built here, so it is not loaded without trust: {why}.",
        fix=f"Set {trust.STATE} to a folder that you may write to, and build it again.",
    )


def _save(sdk: Any, compiled: Any, path: Path) -> None:
    try:
        # Without tracing again, which would run the engines.
        sdk.save(compiled, str(path), output_format="exported_program", retrace=False)
    except OSError:
        raise
    except Exception as error:
        raise TargetError(
            f"Torch-TensorRT {sdk.__version__} cannot save the compiled program: "
            f"{first_line(error)}; run it in this process with compiled_ahead"
        ) from error


def load_compiled(path: Path, *, trusted: bool) -> ExportedProgram:
    """A compiled program, if it may be loaded; the very bytes that were checked.

    Raises:
        ModelFileError: it cannot be read.
        TargetError: it was not built here and nobody vouches for it, or it does not load here.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelFileError(
            f"{path}: cannot be read ({error.strerror}); give a program, or what build made of one"
        ) from error
    if not trusted and not trust.is_known(hashlib.sha256(data).hexdigest()):
        raise TargetError(
            f"{path} is not loaded: no record says that it was built here (it holds engines and "
            "pickles, which are code: loading it runs what is in it); build it here from its "
            "program, or say that you trust whoever built it: trust_engine=True"
        )
    importlib.import_module("quantkit.operators")  # for what is left to PyTorch
    try:
        return torch.export.load(io.BytesIO(data))
    except Exception as error:
        raise TargetError(
            f"{path} does not load here: {first_line(error)}; it needs the Torch-TensorRT, "
            "TensorRT and GPU that it was built with"
        ) from error


def run_batches(
    call: Any, names: Sequence[str], batches: Sequence[Mapping[str, np.ndarray]], spec: Any
) -> list[list[np.ndarray]]:
    """The outputs for each batch of named inputs, on the GPU.

    Args:
        call: the compiled module.
        names: of its inputs, in order.
        batches: arrays by those names.
        spec: how the inputs are nested; of ``(args, kwargs)``.

    Raises:
        TargetError: a batch has other inputs, or the call fails.
    """
    results: list[list[np.ndarray]] = []
    for batch in batches:
        if set(batch) != set(names):
            raise TargetError(
                f"a batch has {', '.join(sorted(batch))}, but the program takes "
                f"{', '.join(names)}; name each array as its input"
            )
        tensors = [torch.as_tensor(batch[name]).to(DEVICE) for name in names]
        args, kwargs = pytree.tree_unflatten(tensors, spec)
        try:
            with torch.no_grad():
                outputs = pytree.tree_leaves(call(*args, **kwargs))
        except Exception as error:
            raise TargetError(
                f"the compiled program fails on a batch: {first_line(error)}; set shapes to "
                "include its sizes"
            ) from error
        results.append([_to_numpy(output) for output in outputs])
    return results


def _to_numpy(tensor: Tensor) -> np.ndarray:
    host = tensor.detach().cpu()
    return (host.float() if host.dtype is torch.bfloat16 else host).numpy()
