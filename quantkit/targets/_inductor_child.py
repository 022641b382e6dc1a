"""The child process that compiles one program with AOTInductor: ``python -P _inductor_child.py``.

It reads a request (see `_inductor_process.Request`) as JSON from standard input, and writes what
became of it as JSON into the file that the request names.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

#: How much weights are moved to see what little differences do, as a share of each.
_MOVED = 1e-4


def main() -> None:
    """Compile, run what was compiled once, and tell."""
    request: dict[str, Any] = json.loads(sys.stdin.read())
    outcome: dict[str, Any] = {}
    try:
        outcome = _work(request)
    except Exception as error:  # whatever the compiler raises: told in the parent's own words
        outcome = {"error": _innermost(error)}
    Path(request["outcome"]).write_text(json.dumps(outcome), encoding="utf-8")


def _work(request: dict[str, Any]) -> dict[str, Any]:
    import torch

    from quantkit.program import operators  # noqa: F401  (registers them)

    torch.set_num_threads(request["threads"])
    program = torch.export.load(request["program"])
    kernels: dict[str, str] = {}
    started = time.perf_counter()
    with torch.no_grad():
        torch._inductor.aoti_compile_and_package(
            program,
            package_path=request["package"],
            inductor_configs={
                # Weights are packed for the kernels now, which the patterns for integers need.
                "freezing": True,
                "post_grad_custom_pre_pass": lambda graph: kernels.update(_kernels(graph)),
                "aot_inductor.metadata": request["metadata"],
            },
        )
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "kernels": kernels, "outputs": _verify(program, request)}


def _kernels(graph: Any) -> dict[str, str]:
    """By the buffer of a weight's scales, the integer kernel that reads it."""
    found = {}
    for node in graph.nodes:
        namespace, _, name = str(node.target).partition(".")
        if namespace == "onednn" and name.startswith(("qconv", "qlinear")) and len(node.args) > 4:
            found[str(getattr(node.args[4], "target", ""))] = f"onednn.{name}"
    return found


def _verify(program: Any, request: dict[str, Any]) -> list[dict[str, float]]:
    """What was compiled, beside the program run by PyTorch: each output's signal and noise.

    Two orders of a float sum may round to two codes, and in a deep model that spreads. How far is
    told by the same program with weights that are moved a little: ``sensitivity``.
    """
    import torch
    from torch.utils import _pytree as pytree

    args, kwargs = pytree.tree_map_only(torch.Tensor, _varied, program.example_inputs)
    compiled = torch._inductor.aoti_load_package(request["package"])
    module = program.module(check_guards=False)
    with torch.no_grad():
        wanted = _tensors(module(*args, **kwargs))
        compiled(*args, **kwargs)  # the second call tells whether this one changed anything
        got = _tensors(compiled(*args, **kwargs))
        generator = torch.Generator().manual_seed(0)
        for value in (*module.parameters(), *module.buffers()):
            if value.is_floating_point():
                moved = 1.0 + _MOVED * torch.randn(value.shape, generator=generator)
                value.copy_(value * moved.to(value.device))
        near = _tensors(module(*args, **kwargs))
    return [
        {"signal": _power(w), "noise": _power(w, g), "sensitivity": _power(w, n)}
        for w, g, n in zip(wanted, got, near, strict=True)
    ]


def _tensors(outputs: Any) -> list[Any]:
    import torch
    from torch.utils import _pytree as pytree

    leaves = pytree.tree_leaves(outputs)
    return [leaf.double() for leaf in leaves if isinstance(leaf, torch.Tensor)]


def _power(wanted: Any, got: Any = None) -> float:
    """The sum of squares of what is finite, or of a difference; what is not equals itself."""
    import torch

    if got is None:
        return float(wanted[wanted.isfinite()].square().sum())
    same = (wanted == got) | (wanted.isnan() & got.isnan())
    return float(torch.where(same, 0.0, wanted - got).square().sum())


def _varied(example: Any) -> Any:
    """Example inputs may be zeros, which prove little; whole numbers may be indices, so they stay.

    Masks in float hold values of which any but 0 and 1 may be out of range: what varies stays.
    """
    import torch

    if not example.is_floating_point() or example.numel() == 0 or example.min() != example.max():
        return example
    generator = torch.Generator().manual_seed(0)
    return torch.randn(example.shape, generator=generator).to(example.device, example.dtype)


def _innermost(error: BaseException) -> str:
    """One line: what failed first, without the compiler's advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


if __name__ == "__main__":
    main()
