"""The shape of a CLIP: sizes, special token ids, normalisation of its pictures."""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Mapping
from typing import Any, ClassVar

ACTIVATIONS = ("quick_gelu", "gelu")
OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclasses.dataclass(frozen=True)
class ClipConfig:
    """Sizes, special token ids and image normalisation of a CLIP; defaults are OpenAI's ViT-L/14@336.

    `vv_blocks` counts the last vision blocks that have the V-V path (the authors' DPAM_layer = k means k - 1 of them).
    `dtype` is what the vision tower computes in: 'float32' or 'bfloat16' (parameters, LoRA, softmax and LayerNorm statistics
    stay float32). The text tower, which learned prompts pass, always computes in float32: it has a few short texts to encode.
    `remat` recomputes each block in the backward pass.
    """

    image_size: int = 336
    patch: int = 14
    vision_width: int = 1024
    vision_layers: int = 24
    vision_heads: int = 16
    embed_dim: int = 768
    text_width: int = 768
    text_layers: int = 12
    text_heads: int = 12
    vocab: int = 49408
    context: int = 77
    vv_blocks: int = 19
    sos: int = 49406
    eos: int = 49407
    dot: int = 269
    pad: int = 0
    activation: str = "quick_gelu"
    mean: tuple[float, ...] = OPENAI_MEAN
    std: tuple[float, ...] = OPENAI_STD
    dtype: str = "float32"
    remat: bool = False

    PRESETS: ClassVar[dict[str, ClipConfig]] = {}

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            object.__setattr__(self, name, tuple(float(v) for v in getattr(self, name)))
        sizes = ("image_size", "patch", "embed_dim", "vocab", "context") + tuple(
            f"{tower}_{size}" for tower in ("vision", "text") for size in ("width", "layers", "heads"))
        ids = ("vv_blocks", "sos", "eos", "dot", "pad")
        wrong = [f"{name} {getattr(self, name)!r:.40}" for name in (*sizes, *ids)
                 if not isinstance(getattr(self, name), numbers.Integral) or getattr(self, name) < (name in sizes)]
        if wrong:  # configurations come out of files
            raise ValueError(f"CLIP configuration: sizes must be whole and positive: {', '.join(wrong)}")
        problems = []
        for tower in ("vision", "text"):
            width, heads = getattr(self, f"{tower}_width"), getattr(self, f"{tower}_heads")
            if width % heads:
                problems.append(f"{tower}_width {width} is no multiple of {tower}_heads {heads}")
        if self.image_size % self.patch:
            problems.append(f"image_size {self.image_size} is no multiple of patch {self.patch}")
        if not 0 <= self.vv_blocks <= self.vision_layers:
            problems.append(f"vv_blocks {self.vv_blocks} is not in 0..{self.vision_layers} (vision_layers)")
        if self.activation not in ACTIVATIONS:
            problems.append(f"activation {self.activation!r} is not one of {sorted(ACTIVATIONS)}")
        if self.dtype not in ("float32", "bfloat16"):
            problems.append(f"dtype {self.dtype!r} is not 'float32' or 'bfloat16'")
        if not isinstance(self.remat, bool):
            problems.append(f"remat {self.remat!r:.40} is not true or false")
        for name in ("sos", "eos", "dot", "pad"):
            if not 0 <= getattr(self, name) < self.vocab:
                problems.append(f"token id {name} {getattr(self, name)} is not in 0..{self.vocab - 1} (vocab)")
        if len(self.mean) != 3 or len(self.std) != 3 or not all(0 < std < math.inf for std in self.std):
            problems.append("mean and std need three values, std positive")
        if problems:
            raise ValueError("CLIP configuration: " + "; ".join(problems))

    @property
    def grid(self) -> int:
        """Patches along one side of an image of `image_size`."""
        return self.image_size // self.patch

    def to_json(self) -> dict[str, Any]:
        """A dict that survives json and `from_json`."""
        fields = dataclasses.asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> ClipConfig:
        """The configuration of a `to_json` dict; absent fields take their defaults.

        Raises:
          ValueError: naming every unknown field, or what is inconsistent.
        """
        unknown = sorted(fields.keys() - {field.name for field in dataclasses.fields(cls)})
        if unknown:
            raise ValueError(f"CLIP configuration: unknown fields {unknown}")
        return cls(**fields)

    @classmethod
    def preset(cls, name: str) -> ClipConfig:
        """A released size by name, e.g. 'ViT-L/14@336'.

        Raises:
          ValueError: naming the known presets.
        """
        if name not in cls.PRESETS:
            raise ValueError(f"no CLIP preset {name!r}; known: {', '.join(sorted(cls.PRESETS))}")
        return cls.PRESETS[name]


_BASE = ClipConfig(
    image_size=224, patch=32, vision_width=768, vision_layers=12, vision_heads=12, embed_dim=512,
    text_width=512, text_heads=8, vv_blocks=10,
)  # fmt: skip
ClipConfig.PRESETS.update({
    "ViT-B/32": _BASE,
    "ViT-B/16": dataclasses.replace(_BASE, patch=16),
    "ViT-L/14": ClipConfig(image_size=224),
    "ViT-L/14@336": ClipConfig(),
})


