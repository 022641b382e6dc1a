"""A program under ``torch.compile``, frozen: the weights that it has become part of the code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch._inductor import config

from quantkit.targets._inductor_prepare import prepare


@dataclass(frozen=True)
class Compiled:
    """Calls a compiled program; ``run`` compiles at its first call, and for sizes that are new."""

    run: Callable[..., Any]

    @classmethod
    def of(
        cls, program: torch.export.ExportedProgram, *, dynamic: bool | None, device: str
    ) -> Self:
        """Prepare a program; ``dynamic`` is that of ``torch.compile``, or as the program has it."""
        prepared = prepare(program, device).program
        if dynamic is None:
            dynamic = bool(prepared.range_constraints)
        return cls(torch.compile(prepared.module(check_guards=False), dynamic=dynamic))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the program returns."""
        # Dynamo itself asks whether weights are frozen: as an option of torch.compile it is not
        # told. At every call, since it may compile for new sizes at any.
        with torch.no_grad(), config.patch(freezing=True):
            return self.run(*args, **kwargs)
