"""What a worker does when it is told to: load, warm up, run a turn, evaluate, tell its memory."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from quantkit import plugins
from quantkit.benching import arrays
from quantkit.benching.memory import Meter
from quantkit.benching.runner import Device, Load, Opened, Runner

if TYPE_CHECKING:
    import numpy as np


class Send(Protocol):
    """Writes one answer."""

    def __call__(self, event: str, **values: object) -> None:
        """An event and what belongs to it, as JSON."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """The first line that a worker gets: what it is for.

    Attributes:
        runner: its name.
        device: where it runs.
        file: the model.
        inputs: a ``.npz`` file with the inputs of one run, in order.
        folder: for what is built of the model.
        threads: how many of the processor's one run may use.
        half: compute in float16 what the file has in float32.
        warm_runs: how often it runs before any time counts, at least.
        warm_ms: and for how long, at least.
    """

    runner: str
    device: Device
    file: Path
    inputs: Path
    folder: Path
    threads: int
    half: bool
    warm_runs: int
    warm_ms: float

    def json(self) -> str:
        """On one line.

        Example:
            >>> order = Order(runner="eager", device="cpu", file=Path("a"), inputs=Path("b"),
            ...               folder=Path("c"), threads=1, half=False, warm_runs=3, warm_ms=1.0)
            >>> Order.of(order.json()) == order
            True
        """
        return json.dumps(asdict(self), default=str)

    @classmethod
    def of(cls, text: str) -> Order:
        """Read what ``json`` wrote."""
        values = json.loads(text)
        for name in ("file", "inputs", "folder"):
            values[name] = Path(values[name])
        return cls(**values)


def serve(lines: Iterable[str], send: Send) -> None:
    """Answer each line; an error is an answer as well, and the last.

    The answers are ``ready`` to the order; ``built``, ``loaded``, ``ran``, ``evaluated`` and
    ``memory`` to the requests ``build``, ``load``, ``run``, ``evaluate`` and ``memory``;
    ``failed`` to any.
    """
    warnings.simplefilter("ignore")
    given = iter(lines)
    try:
        order = Order.of(next(given))
        runner = plugins.find("benching.runners", order.runner, Runner)()
        runner.load_sdk()
        worker = _Worker(order, runner)
        send("ready")
        for line in given:
            request: dict[str, Any] = json.loads(line)
            event, values = worker.answer(request)
            send(event, **values)
    except Exception as error:  # whatever a runtime raises is this row's result
        send("failed", why=_one_line(error))


@dataclass
class _Worker:
    """One model in one runtime, from before it is loaded on."""

    order: Order
    runner: Runner
    meter: Meter | None = field(default=None, init=False)
    opened: Opened | None = field(default=None, init=False)

    def answer(self, request: Mapping[str, Any]) -> tuple[str, dict[str, object]]:
        match request["do"]:
            case "build":
                return "built", self._build()
            case "load":
                return "loaded", self._load()
            case "run":
                return "ran", {"ms": _timed(self._model()[0], request["count"])}
            case "memory":
                return "memory", asdict(self._model()[1].read())
            case "evaluate":
                return "evaluated", self._evaluate(request["inputs"], Path(request["folder"]))
            case other:
                raise ValueError(f"a worker does not know {other!r}")

    def _model(self) -> tuple[Opened, Meter]:
        if self.opened is None or self.meter is None:
            raise ValueError("the model is not loaded yet")
        return self.opened, self.meter

    def _told(self) -> tuple[Load, dict[str, np.ndarray]]:
        order, inputs = self.order, arrays.read(self.order.inputs)
        load = Load(
            file=order.file, device=order.device, threads=order.threads, half=order.half,
            shapes={name: value.shape for name, value in inputs.items()}, folder=order.folder,
        )  # fmt: skip
        return load, inputs

    def _build(self) -> dict[str, object]:
        start = time.perf_counter()
        file = self.runner.build(self._told()[0])
        return {"seconds": time.perf_counter() - start, "file": str(file)}

    def _load(self) -> dict[str, object]:
        """Until outputs of the first run are there; then runs that do not count."""
        order, (load, inputs) = self.order, self._told()
        self.meter = Meter(gpu=order.device == "cuda")
        start = time.perf_counter()
        self.opened = self.runner.open(load)
        self.opened.place(inputs)
        self.opened.run()
        seconds = time.perf_counter() - start
        runs: list[float] = []
        while len(runs) < order.warm_runs or sum(runs) < order.warm_ms:
            runs += _timed(self.opened, 1, warm=False)
        self.meter.loaded()
        return {"seconds": seconds, "warm_ms": runs}

    def _evaluate(self, inputs: list[str], folder: Path) -> dict[str, object]:
        """Write the outputs of each file of inputs to a file of its name in ``folder``."""
        model, _ = self._model()
        for name in inputs:
            model.place(arrays.read(Path(name)))
            model.run()
            arrays.write(folder / Path(name).name, model.outputs())
        return {}


def _timed(model: Opened, count: int, *, warm: bool = True) -> list[float]:
    """Milliseconds of each run; before them one whose time is not taken.

    While others had their turn the caches became theirs, and threads fell asleep.
    """
    if warm:
        model.run()
    times: list[float] = []
    for _ in range(count):
        start = time.perf_counter()
        model.run()
        times.append(round((time.perf_counter() - start) * 1e3, 4))
    return times


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())[:400].rstrip(".")
    own = type(error).__module__.startswith("quantkit.")
    return text if own and text else f"{type(error).__name__}: {text}".rstrip(": ")
