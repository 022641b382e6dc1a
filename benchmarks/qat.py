"""``python -m benchmarks.qat``: what training a quantized model costs, and what it brings.

``--part`` runs one of its parts: ``step`` (the time of a training step beside float and torch.ao),
``accuracy`` (ResNet-20 on 3,000 images), ``choices`` (the same, with this or that left out) and
``lite0`` (EfficientNet-Lite0 on 128 unlabelled images).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

import quantkit
from benchmarks import report, spine
from benchmarks.machine import machine
from benchmarks.zoo import LITE0, RESNET20, RESNET20_IMAGES, BenchModel
from quantkit import numerics, plugins
from quantkit.qat.finetuning import Epoch
from quantkit.recipe import PlugIn

RESULTS = Path(__file__).parent / "results" / "qat.json"
PARTS = ("step", "accuracy", "choices", "lite0")
STAGES = ("layer1", "layer2", "layer3")
RECIPES = ("int8_qat", "w4a8_qat", "w4a4_qat")


class Augmented:
    """Images mirrored at random and shifted by up to 4 pixels, in a new order each time.

    All from torch's global generator, so that a resumed run sees what it would have seen.
    """

    def __init__(self, images: Tensor, batch_size: int) -> None:
        self.images, self.batch_size = images, batch_size

    def __len__(self) -> int:
        """How many batches."""
        return -(-len(self.images) // self.batch_size)

    def __iter__(self) -> Iterator[Tensor]:
        """Batches ``(N, C, H, W)``."""
        for rows in torch.randperm(len(self.images)).split(self.batch_size):
            yield augmented(self.images[rows])


def augmented(x: Tensor, shift: int = 4) -> Tensor:
    """Each image mirrored or not, and shifted, with zeros where it was not."""
    mirror = (torch.rand(len(x)) < 0.5).view(-1, 1, 1, 1)
    padded = F.pad(torch.where(mirror, x.flip(3), x), (shift,) * 4)
    height, width = x.shape[2:]
    offsets = torch.randint(0, 2 * shift + 1, (len(x), 2)).tolist()
    return torch.stack(
        [p[:, i : i + height, j : j + width] for p, (i, j) in zip(padded, offsets, strict=True)]
    )


def main() -> None:
    """Measure what was asked for and merge it into the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=PARTS, action="append")
    parser.add_argument("--recipe", choices=RECIPES, action="append", help="of part accuracy")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(2)
    results: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {}
    results["machine"] = machine()
    for part in options.part or PARTS:
        if part == "step":
            results["step"] = step_times()
        elif part == "lite0":
            results["lite0"] = lite0()
        elif part == "choices":
            results["choices"] = choices()
        else:
            rows = results.setdefault("accuracy", {})
            for recipe in options.recipe or RECIPES:
                rows[recipe] = accuracy(recipe)
        options.out.write_text(json.dumps(results, indent=1) + "\n")
    if options.out == RESULTS:
        report.write()
    print(json.dumps(results, indent=1))


# --- the time of a step ---------------------------------------------------------------------------


def step_times(repeats: int = 15) -> dict[str, Any]:
    """Training steps of ResNet-20, batch 128, alternating; ratios are of pairs in one round."""
    (x,) = next(RESNET20.calibration(128))
    y = torch.randint(0, 10, (len(x),), generator=torch.Generator().manual_seed(0))
    models = {"float": RESNET20.load().train(), "torch.ao FX": _torch_ao(x)}
    for form, passes in (("folded", "fold_batchnorm"), ("kept", "keep_batchnorm")):
        for grids in ("frozen", "follow", "learn"):
            models[f"{grids}, batch-norm {form}"] = _training(grids, passes)
    found: dict[str, Any] = {"eager": _alternated(models, x, y, repeats)}
    compiled: dict[str, nn.Module] = {"float": RESNET20.load().train()}
    for grids in ("frozen", "follow", "learn"):
        module = torch.compile(_training(grids, "fold_batchnorm"))
        compiled[f"{grids}, batch-norm folded"] = module  # type: ignore[assignment]
    compiled["float compiled"] = torch.compile(RESNET20.load().train())  # type: ignore[assignment]
    found["compiled"] = _alternated(compiled, x, y, repeats)
    return found


def _training(grids: str, passes: str) -> nn.Module:
    recipe = quantkit.read_recipe(plugins.recipe_path("int8_qat"))
    model = quantkit.quantize(
        RESNET20.load(), recipe.model_copy(update={"passes": (PlugIn(name=passes),)}),
        example_inputs=RESNET20.example(), calibration=list(RESNET20.calibration(64)),
    )  # fmt: skip
    model.train()
    if grids != "frozen":
        quantkit.train_quantizers(model, grids)
    return model


def _torch_ao(x: Tensor) -> nn.Module:
    from torch.ao.quantization import get_default_qat_qconfig_mapping  # noqa: TID251
    from torch.ao.quantization.quantize_fx import prepare_qat_fx  # noqa: TID251

    mapping = get_default_qat_qconfig_mapping("x86")
    prepared: nn.Module = prepare_qat_fx(RESNET20.load().train(), mapping, (x,))  # type: ignore[no-untyped-call]
    return prepared


def _alternated(
    models: dict[str, nn.Module], x: Tensor, y: Tensor, repeats: int
) -> dict[str, dict[str, float]]:
    optimizers = {
        name: torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
        for name, model in models.items()
    }
    times: dict[str, list[float]] = {name: [] for name in models}
    for round_ in range(repeats + 2):
        for name, model in models.items():
            start = time.perf_counter()
            optimizers[name].zero_grad()
            F.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
            optimizers[name].step()
            if round_ >= 2:
                times[name].append(time.perf_counter() - start)
    found = {}
    for name, taken in times.items():
        ratios = sorted(a / b for a, b in zip(taken, times["float"], strict=True))
        found[name] = {
            "ms": 1e3 * statistics.median(taken),
            "ratio": statistics.median(ratios),
            "least": ratios[len(ratios) // 10],
            "most": ratios[-1 - len(ratios) // 10],
        }
        print(f"{name}: {found[name]['ratio']:.2f}", file=sys.stderr, flush=True)
    return found


# --- accuracy -------------------------------------------------------------------------------------


def accuracy(recipe: str) -> dict[str, Any]:
    """ResNet-20 taught by itself on 3,000 images; the test images are looked at before and after.

    Nothing is chosen on the test images: the weights are those after the last epoch.
    """
    torch.manual_seed(0)
    images = torch.cat([x for (x,), _ in RESNET20_IMAGES.read("cifar10_train_3k.parquet", 500)])
    module = RESNET20.load()
    qmodel = spine.quantized(RESNET20, recipe, module)
    before = _points(RESNET20, module, qmodel)
    started = time.perf_counter()
    tuned = quantkit.finetune(
        qmodel, Augmented(images, 128), features=STAGES, on_epoch=lambda e: _tell(recipe, e)
    )
    seconds = time.perf_counter() - started
    row: dict[str, Any] = {
        "images": len(images),
        "choice": qmodel.recipe.training.model_dump(),
        "seconds": seconds,
        "losses": [epoch.loss for epoch in tuned.epochs],
        "before": before,
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"resnet20.{recipe}.onnx"
        quantkit.export_onnx(qmodel, path, form="onnxruntime")
        row["after"] = spine.accuracy(RESNET20, module, qmodel, path, None)
        if qmodel.recipe.target == "tensorrt":
            engine = path.with_suffix(".tensorrt.onnx")
            quantkit.export_onnx(qmodel, engine, form="tensorrt")
            row["coverage"] = spine.coverage(engine)
    return row


#: What is changed of ``w4a8_qat``: of its recipe, of its training, and in the call.
CHOICES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "as the recipe has it": ({}, {}, {}),
    "grids follow, observers frozen after a half": (
        {"calibrator": {"name": "moving_average", "settings": {"momentum": 0.05}}},
        {"grids": "follow"}, {},
    ),
    "grids fixed as calibrated": ({}, {"grids": "fixed"}, {}),
    "batch-norm kept, frozen from the start": (
        {"passes": (PlugIn(name="keep_batchnorm"),)}, {}, {},
    ),
    "batch-norm kept, frozen after a half": (
        {"passes": (PlugIn(name="keep_batchnorm"),)}, {"freeze_batch_norm": 0.5}, {},
    ),
    "no features, outputs alone": ({}, {}, {"features": ()}),
    "500 images in place of 3,000": ({}, {"epochs": 36}, {"images": 500}),
}  # fmt: skip


def choices(epochs: int = 6) -> dict[str, Any]:
    """``w4a8_qat`` on ResNet-20 for few epochs, with one thing changed at a time."""
    images = torch.cat([x for (x,), _ in RESNET20_IMAGES.read("cifar10_train_3k.parquet", 500)])
    module = RESNET20.load()
    base = quantkit.read_recipe(plugins.recipe_path("w4a8_qat"))
    found: dict[str, Any] = {}
    for name, (of_recipe, of_training, call) in CHOICES.items():
        torch.manual_seed(0)
        changed = {**base.model_dump(exclude={"name"}), **of_recipe, "name": base.name}
        recipe = quantkit.Recipe.model_validate(changed)
        qmodel = spine.quantized(RESNET20, recipe, module)
        choice = recipe.training.model_copy(update={"epochs": epochs, **of_training})
        before = _points(RESNET20, module, qmodel)
        tuned = quantkit.finetune(
            qmodel, Augmented(images[: call.get("images", len(images))], 128), choice=choice,
            features=call.get("features", STAGES), on_epoch=lambda e, n=name: _tell(n, e),
        )  # fmt: skip
        seconds = sum(epoch.seconds for epoch in tuned.epochs)
        found[name] = {
            "before": before, "after": _points(RESNET20, module, qmodel), "seconds": seconds,
            "epochs": choice.epochs,
        }  # fmt: skip
    return found


def lite0(epochs: int = 6, learning_rate: float = 1e-4) -> dict[str, Any]:
    """EfficientNet-Lite0 with ``w4a8_qat``, taught by itself on the 128 calibration images."""
    torch.manual_seed(0)
    module = LITE0.load()
    images = torch.cat([x for (x,) in LITE0.calibration(32)])
    qmodel = spine.quantized(LITE0, "w4a8_qat", module)
    choice = qmodel.recipe.training.model_copy(
        update={"epochs": epochs, "learning_rate": learning_rate, "teacher_loss": "mse"}
    )
    before = _points(LITE0, module, qmodel)
    started = time.perf_counter()
    quantkit.finetune(
        qmodel, Augmented(images, 16), choice=choice, features=("blocks.*",),
        on_epoch=lambda e: _tell("lite0", e),
    )  # fmt: skip
    seconds = time.perf_counter() - started
    after = _points(LITE0, module, qmodel)
    return {
        "images": len(images), "held_out": 300, "choice": choice.model_dump(), "seconds": seconds,
        "before": before, "after": after,
    }  # fmt: skip


def _points(
    model: BenchModel, module: nn.Module, qmodel: nn.Module, limit: int | None = None
) -> dict[str, float]:
    """Points of the float and the simulated model, and the SQNR between, on evaluation data."""
    outputs: dict[str, list[Tensor]] = {"float": [], "simulated": []}
    labels = []
    runs: Sequence[tuple[str, Callable[..., Tensor]]] = (("float", module), ("simulated", qmodel))
    with torch.inference_mode():
        for inputs, gold in model.evaluation(50, limit):
            labels.append(gold)
            for name, run in runs:
                outputs[name].append(run(*inputs))
    whole = {name: torch.cat(parts) for name, parts in outputs.items()}
    points = {name: model.metric(values, torch.cat(labels)) for name, values in whole.items()}
    return {**points, "sqnr_db": numerics.sqnr(whole["float"], whole["simulated"])}


def _tell(name: str, epoch: Epoch) -> None:
    print(f"{name}: epoch {epoch.number}, loss {epoch.loss:.4g}, {epoch.seconds:.0f} s",
          file=sys.stderr, flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
