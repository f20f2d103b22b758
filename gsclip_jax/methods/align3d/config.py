"""Align3D-AD's settings: the one place of its keys, and what the released scripts set instead of the defaults."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from gsclip_jax.parts import Parts, check_known, check_shares

VARIANTS = ("paper", "released")
BRANCHES = ("both", "render", "aligned")
BLURS = ("none", "object", "points", "both")


@dataclass(frozen=True)
class Model:
    """What shapes the model, and its scores."""

    n_ctx: int = 12  # learned context tokens of each prompt
    deep_depth: int = 9  # deep prompts enter the text tower's blocks 2 to this one
    n_deep: int = 4  # deep prompt tokens a block
    branches: str = "both"  # ablations: "render", no alignment and no stage 1; "aligned", no rendering branch
    image_weight: float = 0.5  # W, share of the aligned branch in the object's score
    point_weight: float = 0.5  # w, share of the aligned branch in the points' scores
    smooth_sigma: float = 4.0  # of point scores: organised scans, in grid cells
    smooth_width: float = 0.5  # unorganised scans, in mean distances to the K-th neighbour
    smooth_rounds: int = 1
    second_blur: str = "none"  # released: what is smoothed a second time: points, the object's map, or both
    mixed_views: bool = False  # released: views are regrouped across objects
    round_deep_prompts: bool = False  # released: to float16
    dice_per_row: bool = False  # released, one object a batch
    dice_padding: bool = False  # released: empty cells count in the point Dice, with probability 0 of either class
    score_padding: bool = False  # released: empty cells keep what the smoothing spills into them, and the maximum counts it
    smooth_storage: bool = False  # released: Gaussian over the storage order also of unorganised scans

    def __post_init__(self) -> None:
        check_shares(self, "image_weight", "point_weight")
        check_known("model.branches", self.branches, BRANCHES)
        check_known("model.second_blur", self.second_blur, BLURS)


@dataclass(frozen=True)
class Stage1:
    """Training of the aligner."""

    epochs: int = 250
    batch_size: int = 4
    learning_rate: float = 1e-3
    scr_epochs: int = 50  # the last ones, in which local tokens are weighted (SCR); 0: never
    scr_weight: float = 1.0  # lambda: a token weighs 1 + lambda * sigmoid(scr_scale * s)
    scr_scale: float = 1.0  # ours, for ablation
    align_cls_token: bool = True  # the V-V path's class token is one of the local tokens, as released
    micro_batch: int = 0  # objects whose gradients are taken at once: the same sums; 0: as many as the memory holds


@dataclass(frozen=True)
class Stage2:
    """Training of both prompt learners."""

    epochs: int = 15
    batch_size: int = 4
    learning_rate: float = 1e-3
    contrast_epochs: int = 5  # the last ones, with the contrastive term between the branches (DpCA); 0: never
    contrast_scale: float = 0.1  # of that term
    micro_batch: int = 0  # objects whose gradients are taken at once: the same sums; 0: as many as the memory holds


@dataclass(frozen=True)
class Config:
    """The sections of the configuration that are Align3D-AD's."""

    variant: str = "paper"  # or "released": the departures of the code and its settings of each auxiliary category
    model: Model = field(default_factory=Model)
    stage1: Stage1 = field(default_factory=Stage1)
    stage2: Stage2 = field(default_factory=Stage2)


class Script(NamedTuple):
    """What the released scripts set for an auxiliary category, test-time weights included."""

    seed: int  # of torch's generator: no number of ours follows from it
    scr_weight: float
    contrast_scale: float
    image_weight: float
    point_weight: float
    second_blur: bool  # need_blur: of the object's map


DEFAULTS = Script(111, 1.0, 0.1, 0.5, 0.5, True)  # of categories without a script
SCRIPTS = {
    "carrot": Script(112, 0.01, 1, 0.5, 0.5, True),
    "cookie": Script(112, 0.05, 0.1, 0, 0.5, False),
    "dowel": Script(111, 0.1, 1, 0, 0, False),
    "Confetto": Script(119, 0.5, 1, 0.5, 0.5, True),
    "LicoriceSandwich": Script(113, 0.8, 0.01, 0.5, 1, True),
    "PeppermintCandy": Script(119, 0.2, 0.01, 0.5, 0.5, True),
}
# Trained on MVTec3D-AD, tested on another data set: (target, category or "" for the others) -> weights and blur.
CROSS = {
    ("eyecandies", ""): (0.5, 0.5, True),
    ("real3d", ""): (0, 0.5, False),
    ("real3d", "cookie"): (0, 0, False),
}
DEPARTURES = ("mixed_views", "round_deep_prompts", "dice_per_row", "dice_padding", "score_padding", "smooth_storage")


def resolved(cfg: Config, parts: Parts) -> Config:
    """The configuration as it runs: under `variant='released'` every key that was left at its default takes the release's value.

    Raises:
      ConfigError: unknown variant.
    """
    check_known("variant", cfg.variant, VARIANTS)
    if cfg.variant == "paper":
        return cfg
    row = SCRIPTS.get(parts.category, DEFAULTS)
    if parts.target and parts.target != parts.data_set:
        image, point, blur = CROSS.get((parts.target, parts.category), CROSS.get((parts.target, ""), row[3:]))
        row = row._replace(image_weight=image, point_weight=point, second_blur=blur)
    points = (parts.target or parts.data_set) == "mvtec3d"
    blur = blurred(points, row.second_blur)
    model = dict.fromkeys(DEPARTURES, True) | dict(image_weight=row.image_weight, point_weight=row.point_weight, second_blur=blur)
    return replace(
        cfg, model=_where_default(cfg.model, model), stage1=_where_default(cfg.stage1, {"scr_weight": row.scr_weight}),
        stage2=_where_default(cfg.stage2, {"contrast_scale": row.contrast_scale}),
    )  # fmt: skip


def blurred(points: bool, whole: bool) -> str:
    """The value of `second_blur` that smooths the points, or the object's map, a second time."""
    return ("both" if whole else "points") if points else "object" if whole else "none"


def _where_default(section: Any, values: dict[str, Any]) -> Any:
    untouched = {f.name for f in dataclasses.fields(section) if getattr(section, f.name) == f.default}
    return replace(section, **{name: value for name, value in values.items() if name in untouched})
