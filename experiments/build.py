"""From a configuration to objects: the model with its loaded weights, the records, the batches. Nothing trains here."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import re
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from data_pipelines.datasets import RECIPES, recipe
from data_pipelines.files import locked
from data_pipelines.records.store import RecordSet, prepare
from data_pipelines.scan import did_you_mean
from experiments.configs.common import embedded
from gsclip_jax.convert.load import load_clip, load_pointnet2, load_surface
from gsclip_jax.convert.store import content_hash
from gsclip_jax.method import Method, Params, Stage, Stats
from gsclip_jax.methods.gsclip.gddm import GddmConfig
from gsclip_jax.methods.gsclip.model import RELEASED, GsClip, GsClipConfig, Switches
from gsclip_jax.methods.gsclip.prompts import PromptConfig
from gsclip_jax.methods.gsclip.sentences import start_from_sentences
from gsclip_jax.methods.plain_clip import PlainClip, ensemble
from gsclip_jax.methods.pointad import WORDS, PointAd
from gsclip_jax.methods.surface.broken_symmetry import BrokenSymmetry
from gsclip_jax.methods.surface.surface_variation import SurfaceVariation
from gsclip_jax.models.clip import ClipConfig, clip_module, init_clip
from gsclip_jax.models.pointnet2 import PointNet2Config
from gsclip_jax.models.tokenizer import Tokenizer, load_tokenizer

YARDSTICKS = {method.name: method for method in (SurfaceVariation, BrokenSymmetry)}  # nothing to load, nothing to learn
METHODS = ("gsclip", "pointad", "plain_clip", *YARDSTICKS)


class ConfigError(ValueError):
    """A configuration that cannot run; one line that says why and what to set."""


# ---- data


def data_config(config: ConfigDict) -> dict:
    """config.data in the terms of data_pipelines.records.store."""
    data = config.data
    sizes = {**dict(data.point_sizes), "default": data.point_size} if data.point_sizes else data.point_size
    keys = ("name", "root", "train_category", "points", "image_size", "views", "cameras", "window", "back_off", "zoom",
            "cavity", "depth_relief", "fill_gaps", "cloud_points", "neighbours", "sample_seed")  # fmt: skip
    return {**{key: data[key] for key in keys}, "point_size": sizes, "reader": dict(data.reader)}


def wanted(config: ConfigDict) -> tuple[dict, list[str] | None]:
    """What `records.store` prepares for a configuration: the data in its terms, the categories (None: all found)."""
    data = data_config(config)
    if not config.data.categories:
        return data, None
    return data, list(dict.fromkeys([*filter(None, [data["train_category"]]), *config.data.categories]))


def load_records(config: ConfigDict, progress=print) -> RecordSet:
    """Finds or makes the records of the configuration (and, for the embedded data set, its scans).

    Raises:
      DataError or ConfigError, one line each.
    """
    workers = config.workers or os.cpu_count() or 1
    cache = Path(config.cache)
    data, categories = wanted(config)
    if is_embedded(config):
        data["root"], categories = _write_synthetic(config, cache, workers, progress)
    return prepare(data, cache, workers=workers, progress=progress, categories=categories)


def is_embedded(config: ConfigDict) -> bool:
    """Whether the scans are the embedded data set's, written when they are asked for."""
    return config.data.name == "synthetic" and not config.data.root


def synthetic_parts(config: ConfigDict) -> list[tuple[list[str], int, int, tuple[str, ...], str]]:
    """The embedded data set in parts with counts of their own, as the auxiliary category is larger than the others: categories,
    sound and defective scans of each, kinds of defect, name of the folder.

    Raises:
      ConfigError: unknown set, category or kind of defect. ValueError: what the writer of the scans refuses.
    """
    from data_pipelines.solids import synthetic

    made, train = config.data.synthetic, config.data.train_category
    if made["set"] not in synthetic.SETS:
        raise ConfigError(
            f"config.data.synthetic.set {made['set']!r}{did_you_mean(made['set'], synthetic.SETS)} "
            f"Known: {', '.join(synthetic.SETS)}"
        )
    everything = [name for names in synthetic.SETS.values() for name in names]
    for name in [*filter(None, [train]), *config.data.categories]:
        if name not in everything:
            raise ConfigError(f"no embedded category {name!r}{did_you_mean(name, everything)} Known: {', '.join(everything)}")
    names = [name for name in (config.data.categories or synthetic.SETS[made["set"]]) if name != train]
    shown = tuple(kind for kind in synthetic.ALL_DEFECTS if kind not in made.held_out)
    if len(shown) + len(set(made.held_out)) != len(synthetic.ALL_DEFECTS) or not shown:
        known = ", ".join(synthetic.ALL_DEFECTS)
        raise ConfigError(f"config.data.synthetic.held_out {tuple(made.held_out)}: choose some of {known}")
    tested = synthetic.ALL_DEFECTS if made["set"] != "pretrain" else shown
    parts = [(names, made.good, made.defective, tested)]
    parts += [([train], made.train_good, made.train_defective, shown)] if train else []
    found = []
    for part, good, defective, kinds in parts:
        folder = f"solids-{synthetic.FORMAT}-{made.difficulty}-{made.scan_points}-{made.seed}-{good}-{defective}"
        folder += f"-relief{made.relief:g}" if made.relief else ""
        folder += f"-grafts{made.grafts:g}" if made.grafts else ""
        folder += "-" + "+".join(kinds) if kinds != synthetic.ALL_DEFECTS else ""
        if part:
            synthetic.check(
                part, made.seed, good, defective, made.scan_points, made.difficulty, kinds, made.relief, made.grafts
            )
        found.append((part, good, defective, kinds, folder))
    return found


def _write_synthetic(config: ConfigDict, cache: Path, workers: int, progress) -> tuple[str, list[str]]:
    """The embedded data set's scans on disk, in Real3D-AD's layout."""
    from data_pipelines.solids import synthetic

    made, train = config.data.synthetic, config.data.train_category
    parts = synthetic_parts(config)
    common = {"seed": made.seed, "points": made.scan_points, "difficulty": made.difficulty, "relief": made.relief,
              "grafts": made.grafts, "workers": workers}  # fmt: skip
    progress(f"embedded data set: {sum(len(part[0]) for part in parts)} categories of procedural solids")
    folders = {}
    scans = cache.absolute() / "scans"
    scans.mkdir(parents=True, exist_ok=True)
    with locked(scans / ".lock", lambda: progress("another process is writing the embedded data set; waiting for it")):
        for names, good, defective, kinds, folder in parts:
            other = synthetic.write(
                scans / folder, categories=names, good=good, defective=defective, defects=kinds, **common
            )
            if other:
                progress(f"{', '.join(other)}: this machine makes other scans than those the published figures were measured on")
            folders.update({name: scans / folder / name for name in names})
        # One root of links, as the counts differ between the auxiliary category and the others.
        order = ([train] if train else []) + parts[0][0]
        made_of = hashlib.sha256(json.dumps([str(folders[name]) for name in order]).encode()).hexdigest()[:12]
        root = cache / "scans" / f"set-{made_of}"
        root.mkdir(parents=True, exist_ok=True)
        for name in order:
            if not (root / name).exists():
                (root / name).symlink_to(folders[name], target_is_directory=True)
    return str(root), order


TARGETS = ("synthetic", *RECIPES)  # data sets that a model trained elsewhere can be evaluated on
GIVEN = ("points", "image_size", "window", "views")  # what pictures that come with the data have already


def target(config: ConfigDict) -> ConfigDict:
    """The configuration whose data are evaluated in a cross-data-set run: the target's own recipe, at the size trained at;
    config.target.data changes single values of it.

    Raises:
      ConfigError: unknown name or key.
    """
    name = config.target.name
    if name not in TARGETS:
        raise ConfigError(f"config.target.name: no data set {name!r}{did_you_mean(name, TARGETS)} Known: {', '.join(TARGETS)}")
    other, base = config.copy_and_resolve_references(), embedded()
    if name != "synthetic":
        base.data.update({"name": name, **recipe(name)})
        base.data.synthetic = ConfigDict()
    other.data = base.data
    kept = (*GIVEN, "cloud_points", "neighbours", "sample_seed")
    if not config.preset:  # the embedded CLIP has learned from pictures that look like this
        kept += ("cameras", "back_off", "zoom", "cavity", "depth_relief", "fill_gaps", "point_size", "point_sizes")
    other.data.update({key: config.data[key] for key in kept if name != "prerendered" or key not in GIVEN})
    for key, value in config.target.get("data", {}).items():
        if key not in other.data:
            raise ConfigError(f"config.target.data: no key {key!r}{did_you_mean(key, other.data)} Known: {', '.join(other.data)}")
        with other.data.ignore_type():
            other.data[key] = value
    other.data.update({"root": config.target.root, "train_category": ""})
    with other.data.ignore_type():
        other.data.categories = config.target.categories
    return other


def of_target(error: Exception) -> ConfigError:
    """What is wrong with the data of a target, in the keys with which they are given."""
    text = re.sub(r"config\.data\.(root|categories)", r"config.target.\1", str(error))
    return ConfigError(re.sub(r"config\.data\.", "config.target.data.", text))


def test_categories(config: ConfigDict, records: RecordSet) -> list[str]:
    """The categories a run is evaluated on: the configured ones, else all but the auxiliary one of the same data set.

    Raises:
      ConfigError: there is none.
    """
    if config.target.name:
        return list(dict.fromkeys(config.target.categories or records.categories()))
    found = [name for name in config.data.categories or records.categories() if name != config.data.train_category]
    if not found:
        raise ConfigError(f"nothing to evaluate: {config.data.train_category!r} is the only category under {config.data.root}")
    return found


def wants_rgb(config: ConfigDict) -> bool:
    """Whether colour scores are wanted: yardsticks that run alongside have none."""
    return bool(config.eval.rgb) and config.method == "gsclip"


def batch_size(config: ConfigDict, mesh: jax.sharding.Mesh) -> int:
    """Objects scored together: as configured, filled up to what the devices share evenly. Where the objects of a batch share
    their statistics, as in the released code, they stay those of the configured batch."""
    together = jax.process_count() if _switches(config).test_in_train_mode else mesh.shape["data"]
    return -(-config.eval.batch_size // together) * together


def index_rows(records: RecordSet, categories: list[str]) -> list[dict]:
    """Rows of the index with their number, as `gsclip_jax.evaluation.score` takes them."""
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
        hint = did_you_mean(config.variant, ("paper", "released"))
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


def check_method(config: ConfigDict) -> None:
    """Raises ConfigError for a method that is not there."""
    if config.method not in METHODS:
        raise ConfigError(f"no method {config.method!r}{did_you_mean(config.method, METHODS)} Known: {', '.join(METHODS)}")


def clip_changes(config: ConfigDict) -> dict:
    """The fields of ClipConfig that the weights do not determine."""
    changes = {"dtype": config.clip.dtype, "remat": config.clip.remat}
    return changes | ({"vv_blocks": config.clip.vv_blocks} if config.clip.vv_blocks >= 0 else {})


def make_method(config: ConfigDict, clip_cfg: ClipConfig, tokenizer: Path | None) -> tuple[Method, str | None]:
    """The method without its parameters, and the hash of the sentences its training starts from (None where it has none).

    Args:
      tokenizer: the one beside the weights.

    Raises:
      ConfigError, or the one-line errors of what it is made of.
    """
    cfg = gsclip_config(config, clip_cfg)
    if config.method == "plain_clip":
        return PlainClip(cfg, ensemble(_tokenizer(config, clip_cfg, tokenizer))), None
    if config.method == "pointad":
        words, one = _tokenizer(config, clip_cfg, tokenizer), config.stage1
        stage = Stage("stage1", {"prompts": one.learning_rate}, ("clip",), one.epochs, one.batch_size)
        return PointAd(cfg, stage, tuple(words.encode(text) for text in WORDS)), None
    method = GsClip(cfg, stages(config))
    if not config.model.start:
        return method, None
    return method, content_hash({"ids": np.array(start_ids(config, clip_cfg, tokenizer))})


def build_model(config: ConfigDict) -> tuple[Method, Params, Stats, dict]:
    """The method, its parameters with the loaded weights, statistics, and a record of where the weights came from.

    Raises:
      ConfigError, or the converters' one-line errors.
    """
    check_method(config)
    if config.method in YARDSTICKS:
        return YARDSTICKS[config.method](), {}, {}, {}
    clip_cfg, clip, tokenizer, sha256 = load_clip(config.clip.name, **clip_changes(config))
    weights = {"clip": sha256}
    if config.clip.random:
        clip = init_clip(jax.random.key(config.seed + 1), clip_cfg)
        weights["clip"] = content_hash(clip)
    method, sentences = make_method(config, clip_cfg, tokenizer)
    weights |= {"sentences": sentences} if sentences else {}
    if config.method == "plain_clip":
        return method, {"clip": clip}, {}, weights
    if config.method == "pointad":
        params, stats = method.init(jax.random.key(config.seed))
        return method, {**params, "clip": clip}, stats, weights
    cfg = method.cfg
    params, stats = jax.jit(method.init)(jax.random.key(config.seed))
    params["clip"] = clip
    if config.model.start:
        ids = start_ids(config, clip_cfg, tokenizer)
        params = start_from_sentences(params, clip_module(clip_cfg, params["clip"]), *ids)
    if cfg.switches.own_depth_tower:
        params["clip_depth"] = {"visual": init_clip(jax.random.key(config.seed + 2), clip_cfg)["visual"]}
        weights["clip_depth"] = content_hash(params["clip_depth"])
    if cfg.surface_share:
        params["surface"], weights["surface"] = load_surface(config.clip.name, clip_cfg.embed_dim)
    if source := config.pointnet2.weights:
        params["pointnet2"], stats["pointnet2"], weights["pointnet2"] = load_pointnet2(source, cfg.pointnet2)
    return method, params, stats, weights


def without_remat(method: Method) -> Method:
    """The same computation with nothing computed twice: where no gradient is taken there is nothing to save."""
    if not getattr(getattr(method, "cfg", None), "clip", None):
        return method
    other = copy.copy(method)
    other.cfg = replace(method.cfg, clip=replace(method.cfg.clip, remat=False))
    return other


def start_ids(config: ConfigDict, clip_cfg: ClipConfig, tokenizer: Path | None) -> list[list[int]]:
    """Token ids of config.model.start, normal and abnormal, n_ctx each. Raises ConfigError where they are not."""
    if len(config.model.start) != 2:
        raise ConfigError("config.model.start takes two sentences, normal and abnormal, or none: ()")
    words, room = _tokenizer(config, clip_cfg, tokenizer), config.model.n_ctx
    found = [words.encode(text) for text in config.model.start]
    for name, ids in zip(("normal", "abnormal"), found, strict=True):
        if len(ids) != room:
            raise ConfigError(
                f"config.model.start: the {name} sentence has {len(ids)} tokens, the context {room}: make them equal "
                "(config.model.n_ctx)"
            )
    return found


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
