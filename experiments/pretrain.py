"""`--config pretrain.py`: the embedded CLIP, its surface stream and the PointNet++ start, from rendered solids to one file.

All train through the same `fit` as everything else, so a killed pretraining continues.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from data_pipelines.input import eval_batches
from data_pipelines.records.store import RecordSet
from data_pipelines.solids.synthetic import SETS
from experiments.captions import Captioner, make_tokenizer, vocabulary
from experiments.data import load_records
from experiments.identity import rename_stages
from gsclip_jax.convert.load import load_clip, load_pointnet2, load_surface
from gsclip_jax.convert.store import save_params
from gsclip_jax.method import Stage
from gsclip_jax.methods.surface.descriptor import DESCRIPTION
from gsclip_jax.models.clip import ClipConfig, clip_module, encode_tokens
from gsclip_jax.models.clip_blocks import block_matrices
from gsclip_jax.models.layers import normalise
from gsclip_jax.models.pointnet2 import PointNet2Config
from gsclip_jax.parts import ConfigError
from gsclip_jax.pretraining.start import look_around, whitening
from gsclip_jax.pretraining.surface import SurfacePretraining, surface_batches, surface_sample
from gsclip_jax.pretraining.views import cloud_batches, roughness_maps, twins, view_batches
from gsclip_jax.pretraining.vision import ClipPretraining, PointPretraining
from gsclip_jax.runtime.metric_writer import MetricWriter
from gsclip_jax.runtime.sharding import make_mesh
from gsclip_jax.training.optim import Adam, Muon
from gsclip_jax.training.train import FitConfig, fit

CONTEXT = 77  # room for the learned prompts; captions need 16


def run(config: ConfigDict, workdir: Path) -> None:
    """Renders, trains the three networks, writes config.out, or `workdir`/mini."""
    rename_stages(workdir)
    sets = [load_records(config)]
    names = tuple(name for group in SETS.values() for name in group)  # words for all solids, sentences of a few
    tokenizer = make_tokenizer(names)
    mesh = make_mesh(config.mesh.data, config.mesh.model, config.mesh.view)
    writer = MetricWriter(workdir / "metrics.jsonl", config.loggers)
    derived = {"roughness": roughness_maps}
    if surface_wanted := config.clip_stage.defects and config.surface_stage.steps:  # sound solids alone teach it nothing
        derived["sample"] = surface_sample
    views = _load(sets, ("render", "depth", "view_mask", "xyz", "point_mask"), **derived)
    views["twin"] = twins(sets[0].index)
    if not config.clip_stage.defects:
        views = _sound(views)
        views["twin"] = np.arange(len(views["render"]))

    m, c, p = config.mini, config.clip_stage, config.point_stage
    clip_cfg = ClipConfig(
        image_size=config.data.image_size, vocab=len(vocabulary(names)), context=CONTEXT, sos=2, eos=3, dot=4, pad=0,
        mean=(0.7,) * 3, std=(0.3,) * 3,
        **dict(m),
    )  # fmt: skip
    method = ClipPretraining(clip_cfg, c.defects)
    rows = []
    for name, loss in (("vision", method.vision_loss), ("contrastive", method.contrastive_loss)):
        row = config[name]
        schedule = {"betas": (0.9, 0.98), "cosine": True, "warmup_steps": row.warmup_steps, "weight_decay": c.weight_decay,
                    "clip_norm": 1.0}  # fmt: skip
        optimiser = Muon(**schedule, rate=row.muon, matrices=block_matrices) if row.muon else Adam(**schedule)
        rates = {"clip": row.learning_rate, "head": row.learning_rate}
        rows.append(Stage(name, rates, (), 1, c.batch_size, loss=loss, optimiser=optimiser))
    params, stats = method.init(jax.random.key(config.seed))
    started_from = None
    if config.start:
        params["clip"], started_from = _former(config.start, clip_cfg)
    else:
        visual = {**params["clip"]["visual"], "patch_embed": jax.numpy.asarray(whitening(views, clip_cfg, config.seed))}
        params["clip"]["visual"] = look_around(visual, clip_cfg, config.seed)
    captioner = Captioner(tokenizer)

    def train(row: Stage, params, stats, batches, steps: int):
        return fit(row, params, stats, batches, steps, FitConfig(workdir / row.name, mesh, config.seed), writer)

    for number, row in enumerate(rows):
        batches = lambda first, number=number: view_batches(  # noqa: E731
            views, captioner, batch_size=c.batch_size, patch=m.patch, keep=c.keep, seed=2 * config.seed + number,
            first=first
        )
        params, _ = train(row, params, stats, batches, config[row.name].steps)

    surface = None
    if surface_wanted:
        text = _sentences(config, captioner, sets[0].categories(), clip_cfg, params["clip"])
        surface = _surface(config, views["sample"], text, train)

    net = PointNet2Config(
        centroids=tuple(config.pointnet2.centroids), radii=tuple(config.pointnet2.radii), neighbours=config.pointnet2.neighbours
    )
    kinds = {name: i for i, name in enumerate(sets[0].categories())}
    category = np.array([kinds[name] for name in views["category"]])
    teacher = PointPretraining(net, len(kinds))
    row = Stage("points", {"pointnet2": p.learning_rate, "head": p.learning_rate}, (), 1, p.batch_size, loss=teacher.loss,
                optimiser=Adam((0.9, 0.98), cosine=True, warmup_steps=50))  # fmt: skip
    start, stats = teacher.init(jax.random.key(config.seed + 1))
    if config.start:
        start["pointnet2"], stats["pointnet2"], _ = load_pointnet2(config.start, net)
    batches = lambda first: cloud_batches(  # noqa: E731
        views["xyz"], views["point_mask"], category, batch_size=p.batch_size, points=config.data.cloud_points,
        seed=config.seed, first=first,
    )  # fmt: skip
    if p.steps:
        start, stats = train(row, start, stats, batches, p.steps)

    out = Path(config.out) if config.out else workdir / "mini"
    tree = {"clip": params["clip"], "pointnet2": start["pointnet2"], "stats": {"pointnet2": stats["pointnet2"]}}
    if surface is not None:
        tree["surface"] = surface
    about = {
        "kind": "mini",
        "clip": clip_cfg.to_json(),
        "made_by": {
            "command": "python -m experiments.run --config pretrain.py",
            "config": json.loads(config.to_json_best_effort()),
            "started_from": started_from,
        },
    }
    sha256 = save_params(out, jax.device_get(tree), config=about, dtype="float16")
    (out / "tokenizer.json").write_text(tokenizer.to_str(pretty=True) + "\n")
    print(f"wrote {out} ({(out / 'params.safetensors').stat().st_size / 1e6:.1f} MB, sha256 {sha256[:12]})")


def _sentences(config: ConfigDict, captioner: Captioner, names: list[str], cfg: ClipConfig, clip) -> np.ndarray:
    """Normalised features [S,2,E] of sentence pairs about solids of those names, sound and damaged."""
    rng = np.random.default_rng(config.seed + 2)
    pairs = np.stack([captioner.pair(rng, rng.choice(names)) for _ in range(config.surface_stage.sentences)])  # [S,2,T]
    encode = jax.jit(lambda clip, ids: normalise(encode_tokens(clip_module(cfg, clip), ids)))
    return np.asarray(encode(clip, pairs))


def _surface(config: ConfigDict, sample: np.ndarray, text: np.ndarray, train) -> dict:
    """The surface stream's network, trained on `sample` (of `surface_sample`) against the finished CLIP's `text`; `train`
    (stage, parameters, statistics, batches, steps) as `fit`."""
    s = config.surface_stage
    flat = sample[..., :DESCRIPTION].reshape(-1, DESCRIPTION)[::37].astype(np.float32)
    method = SurfacePretraining(text.shape[-1], flat.mean(0), flat.std(0) + 1e-3)
    optimiser = Adam((0.9, 0.98), cosine=True, warmup_steps=50, weight_decay=config.clip_stage.weight_decay)
    row = Stage("surface", {"surface": s.learning_rate}, ("scaling",), 1, s.batch_size, loss=method.loss, optimiser=optimiser)
    params, stats = method.init(jax.random.key(config.seed + 2))
    if config.start:
        params["surface"] = {"layers": load_surface(config.start, text.shape[-1])[0]["layers"]}
    batches = lambda first: surface_batches(  # noqa: E731
        sample, text, batch_size=s.batch_size, points=s.points, seed=config.seed, first=first
    )
    params, _ = train(row, params, stats, batches, s.steps)
    return {**params["surface"], **params["scaling"]}


def _former(path: str, cfg: ClipConfig) -> tuple[dict, str]:
    """The CLIP of an earlier pretraining, to go on from, and the SHA-256 of its parameters.

    Raises:
      ConfigError: it has other sizes or another vocabulary.
    """
    former, params, _, sha256 = load_clip(path)
    if former != cfg:
        ours, theirs = cfg.to_json(), former.to_json()
        differing = ", ".join(f"{k} {theirs[k]} there, {ours[k]} here" for k in ours if ours[k] != theirs[k])
        raise ConfigError(f"config.start={path}: a CLIP of another shape ({differing})")
    return params, sha256


def _load(sets: list[RecordSet], fields: tuple[str, ...], **derived) -> dict:
    """Fields of all objects in memory (they are small here), what functions of a batch make of them, and their names."""
    found = {name: [] for name in (*fields, *derived)}
    for batch in (batch for records in sets for batch in eval_batches(records, batch_size=8)):
        for name in found:
            value = derived[name](batch) if name in derived else batch[name]
            found[name].append(value[batch["real"]])
    return {
        **{name: np.concatenate(parts) for name, parts in found.items()},
        "category": [row["category"] for records in sets for row in records.index],
        "defect": [row["defect"] for records in sets for row in records.index],
    }


def _sound(loaded: dict) -> dict:
    """The sound objects of what `_load` found."""
    kept = [row for row, defect in enumerate(loaded["defect"]) if defect == "good"]
    return {name: [v[row] for row in kept] if isinstance(v, list) else v[kept] for name, v in loaded.items()}


def example_captions(count: int = 8, seed: int = 0) -> list[str]:
    """A few sentences the captioner can draw, to look at."""
    rng, captioner = np.random.default_rng(seed), Captioner(make_tokenizer(("gear", "bowl")))
    draw = itertools.cycle([("render", "gear", 1, "dent"), ("depth", "bowl", 0, None)])
    return [captioner.sentence(rng, *next(draw)) for _ in range(count)]
