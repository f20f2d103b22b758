"""From a configuration to objects: the model with its loaded weights, the records, the batches. Nothing trains here."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from data_pipelines.locks import locked
from data_pipelines.records import RecordSet, prepare
from experiments.configs.common import suggest
from gsclip_jax.baselines.broken_symmetry import BrokenSymmetry
from gsclip_jax.baselines.plain_clip import PlainClip, ensemble
from gsclip_jax.baselines.pointad import WORDS, PointAd
from gsclip_jax.baselines.surface_variation import SurfaceVariation
from gsclip_jax.clip import ClipConfig, clip_module, init_clip
from gsclip_jax.convert.load import load_clip, load_pointnet2, load_surface
from gsclip_jax.convert.store import content_hash
from gsclip_jax.gddm import GddmConfig
from gsclip_jax.gsclip import RELEASED, GsClip, GsClipConfig, Switches
from gsclip_jax.method import Method, Params, Stage, Stats
from gsclip_jax.pointnet2 import PointNet2Config
from gsclip_jax.prompts import PromptConfig
from gsclip_jax.sentences import start_from_sentences
from gsclip_jax.tokenizer import Tokenizer, load_tokenizer

YARDSTICKS = {method.name: method for method in (SurfaceVariation, BrokenSymmetry)}  # nothing to load, nothing to learn
METHODS = ("gsclip", "pointad", "plain_clip", *YARDSTICKS)


class ConfigError(ValueError):
    """A configuration that cannot run; one line that says why and what to set."""


# ---- data


def data_config(config: ConfigDict) -> dict:
    """config.data in the terms of data_pipelines.records."""
    data = config.data
    sizes = {**dict(data.point_sizes), "default": data.point_size} if data.point_sizes else data.point_size
    keys = ("name", "root", "train_category", "points", "image_size", "views", "cameras", "window", "back_off", "zoom",
            "cavity", "depth_relief", "fill_gaps", "cloud_points", "neighbours", "sample_seed")  # fmt: skip
    return {**{key: data[key] for key in keys}, "point_size": sizes, "reader": dict(data.reader)}


def load_records(config: ConfigDict, progress=print) -> RecordSet:
    """Finds or makes the records of the configuration (and, for the embedded data set, its scans).

    Raises:
      DataError or ConfigError, one line each.
    """
    data = data_config(config)
    workers = config.workers or os.cpu_count() or 1
    cache = Path(config.cache)
    categories = None
    if data["name"] == "synthetic" and not data["root"]:
        data["root"], categories = _write_synthetic(config, cache, workers, progress)
    elif config.data.categories:
        categories = list(dict.fromkeys([*filter(None, [data["train_category"]]), *config.data.categories]))
    return prepare(data, cache, workers=workers, progress=progress, categories=categories)


def _write_synthetic(config: ConfigDict, cache: Path, workers: int, progress) -> tuple[str, list[str]]:
    """The embedded data set's scans on disk, in Real3D-AD's layout: the auxiliary category is larger than the others."""
    from data_pipelines.datasets import synthetic

    made, train = config.data.synthetic, config.data.train_category
    if made["set"] not in synthetic.SETS:
        raise ConfigError(
            f"config.data.synthetic.set {made['set']!r}{suggest(made['set'], synthetic.SETS)} Known: {', '.join(synthetic.SETS)}"
        )
    everything = [name for names in synthetic.SETS.values() for name in names]
    for name in [*filter(None, [train]), *config.data.categories]:
        if name not in everything:
            raise ConfigError(f"no embedded category {name!r}{suggest(name, everything)} Known: {', '.join(everything)}")
    names = [name for name in (config.data.categories or synthetic.SETS[made["set"]]) if name != train]
    common = {"seed": made.seed, "points": made.scan_points, "difficulty": made.difficulty, "relief": made.relief,
              "grafts": made.grafts, "workers": workers}  # fmt: skip
    progress(f"embedded data set: {len(names) + bool(train)} categories of procedural solids")
    shown = tuple(kind for kind in synthetic.ALL_DEFECTS if kind not in made.held_out)
    if len(shown) + len(set(made.held_out)) != len(synthetic.ALL_DEFECTS) or not shown:
        known = ", ".join(synthetic.ALL_DEFECTS)
        raise ConfigError(f"config.data.synthetic.held_out {tuple(made.held_out)}: choose some of {known}")
    tested = synthetic.ALL_DEFECTS if made["set"] != "pretrain" else shown
    parts = [(names, made.good, made.defective, tested)]
    parts += [([train], made.train_good, made.train_defective, shown)] if train else []
    folders = {}
    scans = cache.absolute() / "scans"
    scans.mkdir(parents=True, exist_ok=True)
    with locked(scans / ".lock", lambda: progress("another process is writing the embedded data set; waiting for it")):
        for wanted, good, defective, kinds in parts:
            recipe = f"{synthetic.FORMAT}-{made.difficulty}-{made.scan_points}-{made.seed}-{good}-{defective}"
            recipe += f"-relief{made.relief:g}" if made.relief else ""
            recipe += f"-grafts{made.grafts:g}" if made.grafts else ""
            recipe += "-" + "+".join(kinds) if kinds != synthetic.ALL_DEFECTS else ""
            folder = scans / f"solids-{recipe}"
            other = synthetic.write(folder, categories=wanted, good=good, defective=defective, defects=kinds, **common)
            if other:
                progress(f"{', '.join(other)}: this machine makes other scans than those the published figures were measured on")
            folders.update({name: folder / name for name in wanted})
        # One root of links, as the counts differ between the auxiliary category and the others.
        order = ([train] if train else []) + names
        made_of = hashlib.sha256(json.dumps([str(folders[name]) for name in order]).encode()).hexdigest()[:12]
        root = cache / "scans" / f"set-{made_of}"
        root.mkdir(parents=True, exist_ok=True)
        for name in order:
            if not (root / name).exists():
                (root / name).symlink_to(folders[name], target_is_directory=True)
    return str(root), order


def target(config: ConfigDict) -> ConfigDict:
    """The configuration whose data are evaluated in a cross-data-set run: the target's own recipe, the same picture size.

    Raises:
      ConfigError: unknown name.
    """
    from experiments.configs.common import AUXILIARY, paper

    name = config.target.name
    if name not in AUXILIARY:
        raise ConfigError(f"config.target.name: no data set {name!r}{suggest(name, AUXILIARY)} Known: {', '.join(AUXILIARY)}")
    other = config.copy_and_resolve_references()
    other.data = paper(name).data
    kept = ("image_size", "window", "points", "cloud_points", "views", "neighbours", "sample_seed")
    if not config.preset:  # the embedded CLIP has learned from pictures that look like this
        kept += ("cameras", "back_off", "zoom", "cavity", "depth_relief", "fill_gaps", "point_size", "point_sizes")
    other.data.update({key: config.data[key] for key in kept})
    other.data.update({"root": config.target.root, "train_category": "", "categories": config.target.categories})
    return other


def test_categories(config: ConfigDict, records: RecordSet) -> list[str]:
    """The categories a run is evaluated on: the configured ones, else all but the auxiliary one of the same data set.

    Raises:
      ConfigError: there is none.
    """
    if config.target.name:
        return list(config.target.categories or records.categories())
    found = [name for name in config.data.categories or records.categories() if name != config.data.train_category]
    if not found:
        raise ConfigError(f"nothing to evaluate: {config.data.train_category!r} is the only category under {config.data.root}")
    return found


def index_rows(records: RecordSet, categories: list[str]) -> list[dict]:
    """Rows of the index with their number, as `gsclip_jax.evaluate` takes them."""
    return [{**records.index[i], "object_index": int(i)} for i in records.rows(categories)]


# ---- model


def stages(config: ConfigDict) -> tuple[Stage, Stage]:
    """The two rows of GS-CLIP: which groups train, and how fast."""
    one, two = config.stage1, config.stage2
    more = (("clip_depth",) if _switches(config).own_depth_tower else ()) + (("surface",) if _surface_share(config) else ())
    stage1 = Stage(
        "stage1",
        train={"prompts": one.learning_rate, "gddm": one.learning_rate, "pointnet2": one.pointnet2_rate},
        frozen=("clip", "lora", "srm", *more),
        epochs=one.epochs, batch_size=one.batch_size,
    )  # fmt: skip
    stage2 = Stage(
        "stage2",
        train={"srm": two.learning_rate, "lora": two.learning_rate * two.lora_factor},
        frozen=("clip", "prompts", "gddm", "pointnet2", *more),
        epochs=two.epochs, batch_size=two.batch_size,
    )  # fmt: skip
    return stage1, stage2


def _surface_share(config: ConfigDict) -> float:
    """GS-CLIP's as the paper has it, with ours added; neither the released code nor the other methods know the stream."""
    return config.model.surface_share if config.method == "gsclip" and config.variant == "paper" else 0.0


def _switches(config: ConfigDict) -> Switches:
    if config.variant not in ("paper", "released"):
        hint = suggest(config.variant, ("paper", "released"))
        raise ConfigError(f"config.variant is {config.variant!r}{hint} Known: paper, released")
    start = RELEASED if config.variant == "released" else Switches()
    if config.variant == "released" and config.data.name in ("real3d", "anomaly_shapenet"):
        start = replace(start, depth_through_render=True)
    try:
        return replace(start, **dict(config.model.switches))
    except TypeError as error:
        raise ConfigError(f"config.model.switches: {error}; known: {', '.join(Switches.__dataclass_fields__)}") from None


def gsclip_config(config: ConfigDict, clip_cfg: ClipConfig) -> GsClipConfig:
    """Everything that shapes the model, for a CLIP of that shape; loads nothing."""
    m, p = config.model, config.pointnet2
    net = PointNet2Config(centroids=tuple(p.centroids), radii=tuple(p.radii), neighbours=p.neighbours)
    return GsClipConfig(
        clip=clip_cfg, pointnet2=net,
        gddm=GddmConfig(text_dim=clip_cfg.text_width, prototypes=m.prototypes, top_k=m.top_k, defect_tokens=m.defect_tokens),
        prompts=PromptConfig(
            context_tokens=m.n_ctx, deep_depth=m.deep_depth, deep_tokens=m.n_deep, shape_dim=net.shape_dim
        ),
        lora_rank=m.lora_rank, lora_alpha=m.lora_alpha, lora_dropout=m.lora_dropout, consistency=m.consistency,
        smooth_sigma=m.smooth_sigma, smooth_width=m.smooth_width, smooth_rounds=m.smooth_rounds, streams=m.streams,
        use_shape_prompt=m.shape_prompt, use_defect_prompt=m.defect_prompt, srm_residual=m.srm_residual,
        render_share=m.render_share, surface_share=_surface_share(config),
        switches=_switches(config),
    )  # fmt: skip


def build_model(config: ConfigDict) -> tuple[Method, Params, Stats, dict]:
    """The method, its parameters with the loaded weights, statistics, and a record of where the weights came from.

    Raises:
      ConfigError, or the converters' one-line errors.
    """
    if config.method not in METHODS:
        raise ConfigError(f"no method {config.method!r}{suggest(config.method, METHODS)} Known: {', '.join(METHODS)}")
    if config.method in YARDSTICKS:
        return YARDSTICKS[config.method](), {}, {}, {}
    changes = {"dtype": config.clip.dtype, "remat": config.clip.remat}
    if config.clip.vv_blocks >= 0:
        changes["vv_blocks"] = config.clip.vv_blocks
    clip_cfg, clip, tokenizer, sha256 = load_clip(config.clip.name, **changes)
    weights = {"clip": sha256}
    if config.clip.random:
        clip = init_clip(jax.random.key(config.seed + 1), clip_cfg)
        weights["clip"] = content_hash(clip)

    m, cfg = config.model, gsclip_config(config, clip_cfg)
    if config.method == "plain_clip":
        return PlainClip(cfg, ensemble(_tokenizer(config, clip_cfg, tokenizer))), {"clip": clip}, {}, weights
    if config.method == "pointad":
        return *_pointad(cfg, config, clip, tokenizer), weights
    method = GsClip(cfg, stages(config))
    params, stats = jax.jit(method.init)(jax.random.key(config.seed))
    params["clip"] = clip
    if m.start:
        params = _start(params, clip_cfg, config, tokenizer)
    if cfg.switches.own_depth_tower:
        params["clip_depth"] = {"visual": init_clip(jax.random.key(config.seed + 2), clip_cfg)["visual"]}
        weights["clip_depth"] = content_hash(params["clip_depth"])
    if cfg.surface_share:
        params["surface"], weights["surface"] = load_surface(config.clip.name, clip_cfg.embed_dim)
    if source := config.pointnet2.weights:
        params["pointnet2"], stats["pointnet2"], weights["pointnet2"] = load_pointnet2(source, cfg.pointnet2)
    return method, params, stats, weights


def _pointad(cfg: GsClipConfig, config: ConfigDict, clip: Params, tokenizer: Path | None) -> tuple[Method, Params, Stats]:
    """PointAD with the CLIP in its parameters; its prompts start as noise, as published."""
    words, one = _tokenizer(config, cfg.clip, tokenizer), config.stage1
    stage = Stage("stage1", {"prompts": one.learning_rate}, ("clip",), one.epochs, one.batch_size)
    method = PointAd(cfg, stage, tuple(words.encode(text) for text in WORDS))
    params, stats = method.init(jax.random.key(config.seed))
    return method, {**params, "clip": clip}, stats


def _start(params: Params, clip_cfg: ClipConfig, config: ConfigDict, tokenizer: Path | None) -> Params:
    """The prompts of config.model.start in place of noise."""
    words = _tokenizer(config, clip_cfg, tokenizer)
    if len(config.model.start) != 2:
        raise ConfigError("config.model.start takes two sentences, sound and defective, or none: ()")
    try:
        return start_from_sentences(params, clip_module(clip_cfg, params["clip"]), *map(words.encode, config.model.start))
    except ValueError as error:
        raise ConfigError(f"config.model.start: {error}") from None


def _tokenizer(config: ConfigDict, clip_cfg: ClipConfig, found: Path | None) -> Tokenizer:
    """config.clip.tokenizer, else the one beside the weights."""
    source = config.clip.tokenizer or found
    if source is None:
        raise ConfigError(
            f"no tokenizer lies beside {config.clip.name}, and sentences need one: name its file with config.clip.tokenizer "
            "(or config.model.start=() for prompts without sentences)"
        )
    return load_tokenizer(source, context=clip_cfg.context, pad=clip_cfg.pad)


def parameter_count(params: Params) -> dict[str, int]:
    return {group: sum(int(np.prod(x.shape)) for x in jax.tree.leaves(tree)) for group, tree in params.items()}
