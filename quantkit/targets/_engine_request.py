"""What a process that builds engines is asked for, and how it tells what happens."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from quantkit.targets._shapes import Shapes
from quantkit.tensorrt.settings import Settings

if TYPE_CHECKING:
    from quantkit.tensorrt.buffers import BufferKind


class Send(Protocol):
    """Takes an event: its name and what belongs to it, as JSON can hold it.

    ``started``: the SDK does, of some version; ``phase`` and ``step``: progress; ``refusal``: the
    parser on one node; ``error``: the builder's log; ``layers``: its list of kernels; ``built``;
    ``information``: the engine's inspector's; ``failed``: data for a calibrator was not served;
    ``note``: what else is worth knowing, by a code; ``done``.
    """

    def __call__(self, event: str, **values: object) -> None:
        """Take it."""


@dataclass(frozen=True, kw_only=True)
class Calibrator:
    """How the builder calibrates.

    Attributes:
        base: the SDK's class, such as ``IInt8EntropyCalibrator2``.
        buffers: who allocates on the device.
    """

    base: str
    buffers: BufferKind


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is to be built.

    Attributes:
        model: the ONNX file.
        proto: the same model with every node named, where ``model`` has nameless nodes; external
            data lies beside ``model`` all the same.
        engine: where the engine is written; ``None`` to let the parser read the model, and no more.
        settings: what is set for it.
        shapes: smallest, best and largest shape of dynamic inputs.
        timing_cache: the file of measured kernels; ``None`` to keep none.
        inspected: the engine is loaded, on this GPU, to list its kernels; an SDK that lists them
            while it builds needs no such thing.
        calibrator: finds the ranges of a float model; ``None`` for one that is built as it is.
    """

    model: Path
    engine: Path | None
    settings: Settings
    proto: Path | None = None
    shapes: Shapes = field(default_factory=dict)
    timing_cache: Path | None = None
    inspected: bool = False
    calibrator: Calibrator | None = None

    def json(self) -> str:
        """The request as the child process reads it."""
        paths = {name: getattr(self, name) for name in ("engine", "proto", "timing_cache")}
        plain = {name: None if path is None else str(path) for name, path in paths.items()}
        plain["model"] = str(self.model.resolve())
        more = {"shapes": dict(self.shapes), "inspected": self.inspected}
        calibrator = None if self.calibrator is None else asdict(self.calibrator)
        return json.dumps(
            {**plain, **more, "settings": self.settings.plain(), "calibrator": calibrator}
        )

    @classmethod
    def of(cls, text: str) -> Request:
        """From what ``json`` wrote."""
        plain = json.loads(text)
        paths = {
            name: None if plain[name] is None else Path(plain[name])
            for name in ("engine", "proto", "timing_cache")
        }
        return cls(
            model=Path(plain["model"]),
            settings=Settings.of(plain["settings"]),
            shapes=plain["shapes"],
            inspected=plain["inspected"],
            calibrator=None if plain["calibrator"] is None else Calibrator(**plain["calibrator"]),
            **paths,
        )
