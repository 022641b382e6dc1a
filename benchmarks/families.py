"""Eight well-known model families from transformers, small, with seeded random weights.

Nothing is downloaded: each is built from its configuration, and its weights are drawn so that
signals neither vanish nor explode, and channels differ in size as they do in trained models.
Widths are 64 or more, so that the rules for tensor cores apply as they do at full size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

#: Smallest, best and largest shape of an input, as a builder of engines wants them.
Profile = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
Inputs = tuple[Tensor, ...]

_TOKENS, _SEQUENCE, _LONGEST = 256, 24, 64
_IMAGE = 32
#: Not among the arguments of every configuration that takes it, says mypy.
_LABELS: dict[str, Any] = {"num_labels": 16}


@dataclass(frozen=True, kw_only=True)
class Family:
    """A model family at a small size.

    Attributes:
        name: short, for tests and file names.
        title: as its paper writes it.
        what: what is particular to it, and its size here.
        build: the untrained model of the transformers package.
        sample: random inputs of a batch size.
        dynamic_shapes: of which inputs which dimensions may vary.
        profile: the shapes that an engine is built for, by input name.
        slow: takes more than some seconds on the whole way.
    """

    name: str
    title: str
    what: str
    build: Callable[[], nn.Module]
    sample: Callable[[int, torch.Generator], Inputs]
    dynamic_shapes: tuple[dict[int, Any], ...]
    profile: dict[str, Profile]
    slow: bool = False

    def load(self) -> nn.Module:
        """The model in evaluation mode, the same on every call."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = self.build()
            awaken(model, self.inputs(16, seed=1))
        return model

    def inputs(self, batch: int = 2, seed: int = 0) -> Inputs:
        """Random inputs, the same for the same seed."""
        return self.sample(batch, torch.Generator().manual_seed(seed))

    def batches(self, count: int, batch: int = 8) -> Iterator[Inputs]:
        """Batches of random inputs, none equal to those of ``inputs`` with a seed below 100."""
        return (self.inputs(batch, seed=100 + index) for index in range(count))


def awaken(model: nn.Module, inputs: Inputs) -> None:
    """Weights as after training: signals keep their size, channels differ, batch-norm knows them.

    The configurations' own weights suit training from scratch: ConvNeXt, say, multiplies each
    block by 1e-6, so that whatever stands in the block would not show in the output.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() >= 2 and min(parameter.shape) > 1:
                fan_in = parameter[0].numel()
                spread = torch.empty(len(parameter)).uniform_(-1, 1).exp2()
                parameter.normal_().mul_(spread.view(-1, *[1] * (parameter.dim() - 1)))
                parameter.mul_(1.0 if "embed" in name else fan_in**-0.5)
            elif name.endswith("bias"):
                parameter.normal_(0.0, 0.1)
            else:  # weights of norms, scales of layers, class tokens
                parameter.uniform_(0.5, 1.5)
        norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
        for norm in norms:
            norm.momentum = 1.0
        if norms:
            model.train()(*inputs)
    model.eval()


def _bert() -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=_TOKENS, hidden_size=64, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=128, max_position_embeddings=_LONGEST, **_LABELS,
    )  # fmt: skip
    return BertForSequenceClassification(config)


def _vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        image_size=_IMAGE, patch_size=8, hidden_size=64, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=128, **_LABELS,
    )  # fmt: skip
    return ViTForImageClassification(config)


def _resnet() -> nn.Module:
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(
        embedding_size=64, hidden_sizes=[64, 128], depths=[2, 2], layer_type="bottleneck",
        **_LABELS,
    )  # fmt: skip
    return ResNetForImageClassification(config)


def _mobilenet_v2() -> nn.Module:
    from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

    model = MobileNetV2ForImageClassification(MobileNetV2Config(image_size=_IMAGE, **_LABELS))
    # The first block of each stage, and two of those that repeat it with a residual add.
    blocks = model.mobilenet_v2.layer
    model.mobilenet_v2.layer = nn.ModuleList(blocks[i] for i in (0, 1, 2, 3, 5, 9, 12, 15))
    return model


def _convnext() -> nn.Module:
    from transformers import ConvNextConfig, ConvNextForImageClassification

    config = ConvNextConfig(
        image_size=_IMAGE, hidden_sizes=[64, 128], depths=[2, 2], num_stages=2, **_LABELS
    )
    return ConvNextForImageClassification(config)


def _swin() -> nn.Module:
    from transformers import SwinConfig, SwinForImageClassification

    config = SwinConfig(
        image_size=_IMAGE, patch_size=4, embed_dim=64, depths=[2, 2], num_heads=[2, 4],
        window_size=4, **_LABELS,
    )  # fmt: skip
    return SwinForImageClassification(config)


def _llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=_TOKENS, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=_LONGEST,
        use_cache=False,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def _whisper() -> nn.Module:
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    config = WhisperConfig(
        d_model=64, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=128,
        num_mel_bins=80, max_source_positions=32,
    )  # fmt: skip
    return WhisperEncoder(config)


def _images(batch: int, generator: torch.Generator) -> Inputs:
    return (torch.randn(batch, 3, _IMAGE, _IMAGE, generator=generator),)


def _spectrogram(batch: int, generator: torch.Generator) -> Inputs:
    return (torch.randn(batch, 80, 64, generator=generator),)


def _tokens(batch: int, generator: torch.Generator) -> Inputs:
    """Token numbers and a mask: every second row ends in padding."""
    ids = torch.randint(_TOKENS, (batch, _SEQUENCE), generator=generator)
    mask = torch.ones_like(ids)
    mask[1::2, -5:] = 0
    return ids, mask


def _profile(names: tuple[str, ...], *rest: tuple[int, int, int]) -> dict[str, Profile]:
    """A batch of 1, 8 or 32, and the smallest, best and largest of each further dimension."""
    batches = (1, 8, 32)
    sizes: Any = tuple((b, *(r[i] for r in rest)) for i, b in enumerate(batches))
    return dict.fromkeys(names, sizes)


def _image_family(
    name: str, title: str, build: Callable[[], nn.Module], what: str, slow: bool = False
) -> Family:
    fixed = (_IMAGE, _IMAGE, _IMAGE)
    return Family(
        name=name, title=title, what=what, build=build, sample=_images, slow=slow,
        dynamic_shapes=({0: Dim.DYNAMIC},),
        profile=_profile(("pixel_values",), (3, 3, 3), fixed, fixed),
    )  # fmt: skip


def _text_family(name: str, title: str, build: Callable[[], nn.Module], what: str) -> Family:
    dims = {0: Dim("batch"), 1: Dim("sequence", max=_LONGEST)}
    names = ("input_ids", "attention_mask")
    return Family(
        name=name, title=title, what=what, build=build, sample=_tokens,
        dynamic_shapes=(dims, dims), profile=_profile(names, (8, _SEQUENCE, _LONGEST)),
    )  # fmt: skip


FAMILIES = (
    _text_family(
        "bert", "BERT", _bert,
        "Two layers of width 64, 2 heads, pooler and classifier; batch and sequence dynamic, and a "
        "padding mask.",
    ),
    _image_family(
        "vit", "ViT", _vit,
        "Two layers of width 64, 2 heads; patches of 8 x 8 by a convolution, a class token.",
    ),
    _image_family(
        "resnet", "ResNet", _resnet,
        "Two stages of two bottleneck blocks, 64 and 128 channels; batch-norm is folded, the "
        "projection and identity shortcuts are read in INT8 by the fused add.",
    ),
    _image_family(
        "mobilenet_v2", "MobileNetV2", _mobilenet_v2,
        "Of each stage one block, of two a second one with its residual add; depthwise "
        "convolutions, ReLU6, padding as TensorFlow has it.",
    ),
    _image_family(
        "convnext", "ConvNeXt", _convnext,
        "Two stages of two blocks, 64 and 128 channels; depthwise 7 x 7, channels last from there "
        "on for LayerNorm and linear layers, a learned scale on each block.",
    ),
    _image_family(
        "swin", "Swin", _swin,
        "Two stages of two blocks, 64 and 128 channels; attention in windows of 4 x 4, every "
        "second one shifted and masked, with a relative position bias; patch merging.",
        slow=True,
    ),
    _text_family(
        "llama", "Llama", _llama,
        "A decoder without cache: two layers of width 64, 4 heads of queries on 2 of keys and "
        "values, rotary positions, RMSNorm, gated SiLU; batch and sequence dynamic, causal and "
        "padding mask.",
    ),
    Family(
        name="whisper_encoder", title="Whisper encoder", build=_whisper, sample=_spectrogram,
        what="Two layers of width 64, 2 heads, behind two one-dimensional convolutions with GELU.",
        dynamic_shapes=({0: Dim.DYNAMIC},),
        profile=_profile(("input_features",), (80, 80, 80), (64, 64, 64)),
    ),
)  # fmt: skip
