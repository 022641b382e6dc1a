"""What test_distributed.py runs on one process and on several: ``python ranks.py FOLDER``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quantkit import distributed
from quantkit.calibrating import Checkpoint
from quantkit.data import DataSpec
from quantkit.errors import DataError, QuantkitError
from quantkit.model_calibration import calibrate
from quantkit.transform import Transform
from quantkit.workflow import prepare
from small_models import ResNet

#: The names of runs, the recipe of each, and how many samples it sees.
RUNS = {
    "uneven": ("int8_ptq", 44),
    "fewer parts than processes": ("int8_ptq", 9),
    "best": ("int8_best", 40),
    "asymmetric": ("int8_asymmetric", 24),
}


def calibrated(
    recipe: str, calibration: Any, checkpoint: Checkpoint | None = None, seed: int = 0
) -> Any:
    """Grids and statistics by name."""
    torch.manual_seed(seed)
    net = ResNet().eval()
    model = prepare(net, recipe, example_inputs=net.example_inputs)
    calibrate(model, calibration, checkpoint=checkpoint)
    found = {f"{name}/grid": (q.scale, q.zero_point) for name, q in model.quantizers.items()}
    for name, quantizer in model.quantizers.items():
        if quantizer.observer is not None:
            found |= {f"{name}/{key}": value for key, value in quantizer.observer.state.items()}
    return found


def batches(samples: int) -> list[Tensor]:
    """Batches of 6, whose sizes are no multiple of what runs at a time."""
    return list(ResNet().inputs(samples, seed=1)[0].split(6))


def refusal(calibration: Any, seed: int = 0, recipe: str = "int8_ptq") -> tuple[str, str, int]:
    """Which error came."""
    try:
        calibrated(recipe, calibration, seed=seed)
    except QuantkitError as error:
        return type(error).__name__, str(error), error.exit_code
    return "", "", 0


def breaking(rank: int) -> Iterator[Tensor]:
    """Batches of 8 that break off on one process, after the first; else they are without end."""
    yield ResNet().inputs(8, seed=0)[0]
    while True:
        if distributed.place().rank == rank:
            raise DataError("the disk is gone")
        yield ResNet().inputs(8, seed=1)[0]


def decoded(folder: Path) -> tuple[Any, int]:
    """Statistics of a data file, and how many rows this process decoded for them."""
    read, count = Transform.read, []

    def counted(self: Transform, value: object) -> Tensor:
        count.append(value)
        return read(self, value)

    spec = DataSpec(source=str(folder / "x.npz"), inputs={"x": {}}, batch_size=6)
    Transform.read = counted  # type: ignore[method-assign]
    try:
        return calibrated("int8_ptq", spec), len(count)
    finally:
        Transform.read = read  # type: ignore[method-assign]


def main(folder: Path) -> None:
    """Write what this process found."""
    with distributed.group() as place:
        found: dict[str, Any] = {name: calibrated(r, batches(n)) for name, (r, n) in RUNS.items()}
        found["data"], found["decoded"] = decoded(folder)
        checkpoint = Checkpoint(path=folder / f"{place.world}.safetensors", every=1)
        found["saved"] = calibrated("int8_ptq", batches(44), checkpoint)
        found["own files"] = [path.name for path in checkpoint.begun()]
        if place.world > 1:
            last = place.world - 1
            found["broken"] = refusal(breaking(last))
            found["broken while judged"] = refusal(breaking(last), recipe="int8_best")
            found["after"] = calibrated("int8_ptq", batches(44))
            found["other models"] = refusal(batches(44), seed=place.rank)
            found["all broken"] = refusal([torch.full((8, 3, 16, 16), torch.nan)])
        torch.save(found, folder / f"{place.rank}-of-{place.world}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
