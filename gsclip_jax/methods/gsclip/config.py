"""GS-CLIP's settings: the one place of every key under config.model, config.stage1 and config.stage2. Defaults: the paper's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gsclip_jax.parts import check_shares


@dataclass(frozen=True)
class Model:
    """What shapes the model."""

    n_ctx: int = 12  # learned context tokens of each prompt
    deep_depth: int = 9  # deep prompts enter the text tower's blocks 2 to this one
    n_deep: int = 4  # deep prompt tokens a block
    start: tuple[str, ...] = ()  # two sentences the contexts start as, n_ctx tokens each (ours); () = noise, as in the paper
    prototypes: int = 32  # of GDDM
    top_k: int = 12  # points that GDDM picks
    defect_tokens: int = 1  # of the picked ones that enter the prompt: the paper's equation keeps top_k, the released code one
    gddm_heads: int = 4  # of GDDM's self-attention
    lora_rank: int = 8
    lora_alpha: float = 16.0
    lora_dropout: float = 0.1
    tau: float = 0.07  # temperature of all cosines
    streams: str = "both"  # "render" or "depth": ablations without SRM
    shape_prompt: bool = True  # t_s in both prompts
    defect_prompt: bool = True  # t_d in the abnormal prompt
    consistency: float = 0.3  # alpha, weight of L_con in stage 2
    srm_residual: bool = False  # ours: stage 2 starts from a mean of the streams instead of from nothing
    render_share: float = 0.9  # of that mean
    surface_share: float = 0.0  # ours: of the surface stream in the points' evidence; 0: views alone, the paper
    smooth_sigma: float = 4.0  # of point scores: organised scans, in grid cells
    smooth_width: float = 0.5  # unorganised scans, in mean distances to the K-th neighbour
    smooth_rounds: int = 1
    switches: Mapping[str, Any] = field(default_factory=dict, hash=False)  # departures of the released code, by name

    def __post_init__(self) -> None:
        check_shares(self, "surface_share", "render_share")


@dataclass(frozen=True)
class Stage1:
    """Training of the prompts, GDDM and PointNet++."""

    epochs: int = 15
    batch_size: int = 4
    learning_rate: float = 2e-3
    pointnet2_rate: float = 2e-3  # learning rate of PointNet++


@dataclass(frozen=True)
class Stage2:
    """Training of LoRA and SRM."""

    epochs: int = 10
    batch_size: int = 4
    learning_rate: float = 5e-4
    lora_factor: float = 0.1  # LoRA's learning rate over SRM's
    micro_batch: int = 0  # objects whose gradients are taken at once: the same sums; 0: as many as the memory holds


@dataclass(frozen=True)
class Config:
    """The sections of the configuration that are GS-CLIP's."""

    variant: str = "paper"  # or "released": the authors' code with its departures
    model: Model = field(default_factory=Model)
    stage1: Stage1 = field(default_factory=Stage1)
    stage2: Stage2 = field(default_factory=Stage2)
