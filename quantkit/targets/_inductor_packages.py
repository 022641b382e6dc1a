"""Packages of AOTInductor: what they take and put out, and running them."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from quantkit.errors import TargetError

#: The key of what a package says of its inputs and outputs.
METADATA = "quantkit.signature"


@dataclass(frozen=True)
class Tensors:
    """One input of a package.

    Attributes:
        name: as the program calls it.
        dtype: such as ``float32``.
        shape: ``None`` where a dimension may have any size.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]

    def __str__(self) -> str:
        """Such as ``x: float32 (*, 3, 32, 32)``."""
        sizes = ", ".join("*" if size is None else str(size) for size in self.shape)
        return f"{self.name}: {self.dtype} ({sizes})"

    def fits(self, array: np.ndarray) -> bool:
        """Whether a batch may be given: compiled code does not look, and reads past its end."""
        sizes = zip(self.shape, array.shape, strict=False)
        same = len(self.shape) == array.ndim and all(w in (None, s) for w, s in sizes)
        return same and str(array.dtype) == self.dtype


@dataclass(frozen=True)
class Signature:
    """What a package takes and puts out, in order."""

    inputs: tuple[Tensors, ...]
    outputs: tuple[str, ...]

    @classmethod
    def of(cls, program: torch.export.ExportedProgram) -> Signature:
        """That of a program.

        Raises:
            TargetError: an input is no tensor.
        """
        values = {n.name: n.meta.get("val") for n in program.graph.nodes if n.op == "placeholder"}
        inputs = []
        for name in program.graph_signature.user_inputs:
            value = values.get(str(name))
            if not isinstance(value, Tensor):
                raise TargetError(
                    f"input {name} of the program is no tensor; export it with tensors alone"
                )
            shape = tuple(size if isinstance(size, int) else None for size in value.shape)
            inputs.append(Tensors(str(name), str(value.dtype).removeprefix("torch."), shape))
        return cls(tuple(inputs), tuple(str(n) for n in program.graph_signature.user_outputs))

    @classmethod
    def read(cls, text: str) -> Signature:
        """From JSON."""
        told = json.loads(text)
        inputs = [Tensors(t["name"], t["dtype"], tuple(t["shape"])) for t in told["inputs"]]
        return cls(tuple(inputs), tuple(told["outputs"]))

    def json(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self))


@dataclass(frozen=True)
class Package:
    """A loaded package: a function from one batch of named arrays to its outputs."""

    name: str
    signature: Signature
    run: Callable[[list[Tensor]], list[Tensor]]
    device: str

    def __call__(self, batch: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Run one batch.

        Raises:
            TargetError: it does not fit the inputs.
        """
        wanted = self.signature.inputs
        if set(batch) != {t.name for t in wanted} or not all(t.fits(batch[t.name]) for t in wanted):
            given = ", ".join(f"{n}: {a.dtype} {a.shape}" for n, a in batch.items())
            raise TargetError(
                f"{self.name} takes {', '.join(map(str, wanted))}, and was given {given}; give "
                "what it takes"
            )
        inputs = [torch.from_numpy(np.ascontiguousarray(batch[t.name])) for t in wanted]
        with torch.no_grad():
            outputs = self.run([tensor.to(self.device) for tensor in inputs])
        return [output.cpu().numpy() for output in outputs]


def load(data: bytes, name: str, device: str) -> Package:
    """Load a package from its bytes: native code, which must be trusted.

    Raises:
        TargetError: it does not load here, or quantkit did not build it.
    """
    with tempfile.TemporaryDirectory(prefix="quantkit-") as folder:
        file = Path(folder) / "package.pt2"
        file.write_bytes(data)
        try:
            loaded: Any = torch._inductor.aoti_load_package(str(file))
            told = loaded.get_metadata()
        except Exception as error:
            line = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            raise TargetError(
                f"{name} does not load ({line}); build it on this machine, with this version of "
                f"PyTorch ({torch.__version__})"
            ) from error
    if METADATA not in told:
        raise TargetError(f"{name} does not tell what its inputs are; build it with quantkit")
    return Package(name, Signature.read(told[METADATA]), loaded.loader.run, device)
