"""Configuration shared by every experiment: the embedded default, and the paper's settings for the four data sets.

A configuration is data: nested values that `--config.section.key=value` changes. `gsclip_jax.build` turns it into objects.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from ml_collections import ConfigDict

from data_pipelines.datasets import AUXILIARY, recipe
from data_pipelines.scan import did_you_mean
from gsclip_jax.methods import entry_of, trains_on

PRESETS = ("", *AUXILIARY)
SENTENCES = (
    "a picture of a sound object without defect without damage without flaw",
    "a picture of a damaged object with a defect with a flaw",
)


def embedded() -> ConfigDict:
    """The default: procedural solids, the small embedded CLIP; minutes on a laptop."""
    config = ConfigDict({
        "task": "stage2",  # which part runs: stage1, stage2 (what is missing of stage 1 too), eval, pretrain
        "preset": "",
        "seed": 0,
        "variant": "paper",  # or "released": the authors' code with its departures
        "method": "gsclip",
        "workers": 0,  # processes that render; 0 = one a core
        "cache": "cache",  # records and stored features, shared by runs
        "data": {
            "name": "synthetic",
            "root": "",
            "train_category": "bottle",
            "categories": (),  # evaluated; () = every other one
            "points": 16384,  # scored points M
            "image_size": 160,
            "views": 9,
            "cameras": "ring",
            "back_off": True,  # the camera goes as far away as it takes to see everything
            "zoom": 0.55,  # of the camera: less is nearer; the published views have 0.7
            "cavity": 0.6,  # how far rough or sharp surface is darkened in shaded views (published: 0)
            "depth_relief": 0.5,  # share of a depth view's greys for height over the surroundings, not distance (published: 0)
            "fill_gaps": True,  # no specks of the far side between the points of the near side (published: False)
            "rasteriser": "open3d",  # what draws; "numpy" where Open3D cannot, slower and not quite the same
            "rgb_render": False,  # coloured views in the records too; methods that train on them switch it on
            "window": 336,  # pixels drawn before the picture is reduced to image_size
            "point_size": 8.0,
            "point_sizes": {},  # category -> size, where they differ
            "cloud_points": 2048,  # N, PointNet++ input
            "neighbours": 16,
            "sample_seed": 0,
            "reader": {},  # options of the data set's reader: eyecandies has `image`, which light its colour picture has
            "synthetic": {  # how the embedded data set is made; ignored for others
                "set": "test", "difficulty": "wide", "scan_points": 18000, "seed": 0,
                "grafts": 0.0,  # share of objects with a part of another kind of their set grown on
                "relief": 0.0,  # share of objects that carry sound detail: grooves, knurls, grips, studs
                # Kinds of defect that neither pretraining nor the auxiliary category shows: the test asks for them all the same.
                "held_out": ("dent", "bend"),
                "train_good": 20, "train_defective": 20, "good": 10, "defective": 10,
            },
        },
        # Evaluate on another data set than the one trained on (cross-data-set): a preset's name, or folder, prerendered or
        # synthetic; its folder; `data`: values of its recipe to change, by the names above.
        "target": {"name": "", "root": "", "categories": (), "data": {}},
        "clip": {
            "name": "mini", "tokenizer": "", "random": False, "dtype": "float32", "vv_blocks": -1,
            "remat": "auto",  # each block again in the backward pass: True, False, or auto, where the memory asks for it
        },
        "pointnet2": {
            "weights": "mini",  # a file, "mini", or "" for a random start
            "centroids": (256, 64, 16, 8), "radii": (0.15, 0.3, 0.6, 0.9), "neighbours": 32,
        },
        "eval": {"batch_size": 4, "rgb": False, "pictures": 6},
        "compare": ("random_clip", "plain_clip", "surface_variation", "broken_symmetry"),  # run alongside, shown under the table
        # On a CPU every virtual device works with one core, which uses several cores better than one device does.
        "mesh": {
            "data": -1,  # devices that share the objects of a batch; -1: all that the others leave
            "view": 1,  # devices that share the views of each object
            "model": 1,  # devices that share the widths of the frozen encoders
            "cpu_devices": 2,
            # Several processes are one run where a cluster (TPU pod, SLURM, Kubernetes) started them, or as these three say.
            "coordinator": "",  # HOST:PORT where process 0 is reached by all
            "processes": 0,  # how many; 0: as the cluster says, 1: one, whatever it says
            "process": -1,  # which of them this is, counted from 0
        },
        "save_every_s": 60.0,
        "loggers": (),  # beside metrics.jsonl: tensorboard, wandb, mlflow (each an extra of the installation)
    })  # fmt: skip
    config.update(sections("gsclip"))
    config.model.update({
        "deep_depth": 3, "start": SENTENCES, "srm_residual": True, "surface_share": 0.85, "smooth_width": 1.0, "smooth_rounds": 2,
    })  # fmt: skip
    config.stage1.update({"epochs": 2, "pointnet2_rate": 2e-4})
    config.stage2.update({"epochs": 1})
    return config


def sections(method: str) -> ConfigDict:
    """The keys of a method with their defaults, from its Config dataclass."""
    return ConfigDict(_values(entry_of(method).config()))


def _values(settings) -> dict:
    found = {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}
    return {
        name: _values(value) if dataclasses.is_dataclass(value) else dict(value) if isinstance(value, Mapping) else value
        for name, value in found.items()
    }


def with_method(config: ConfigDict, method: str) -> ConfigDict:
    """A copy of the configuration for another method. Errors: as `set_method`."""
    other = config.copy_and_resolve_references()
    set_method(other, method)
    return other


def set_method(config: ConfigDict, method: str) -> None:
    """Makes it the configuration of another method: its own keys, and of them the values of those that both have with the same
    default (a stage of 250 epochs is another one than a stage of 15).

    Raises:
      ConfigError: no such method.
    """
    wanted, before = sections(method), sections(config.method)
    with config.unlocked(), config.ignore_type():
        for name in [name for name, value in before.items() if isinstance(value, ConfigDict)]:
            kept = dict(config.get(name, {}).items())
            del config[name]
            if isinstance(wanted.get(name), ConfigDict):
                same = [key for key in kept if key in wanted[name] and wanted[name][key] == before[name].get(key)]
                wanted[name].update({key: kept[key] for key in same})
        config.method = method
        config.update({name: value for name, value in wanted.items() if name not in config})
        config.data.rgb_render = config.data.rgb_render or "rgb_render" in trains_on(config)


def paper(name: str) -> ConfigDict:
    """The paper's settings for data set `name`: ViT-L/14@336, 112 896 scored points."""
    config = embedded()
    config.preset = name
    config.compare = ()
    config.data.update({"name": name, "train_category": AUXILIARY[name][0], **recipe(name)})
    config.data.synthetic = ConfigDict()
    config.clip.update({"name": "ViT-L-14-336px.pt", "dtype": "bfloat16"})
    config.pointnet2.update({
        "weights": "", "centroids": (1024, 256, 64, 16), "radii": (0.1, 0.2, 0.4, 0.8), "neighbours": 32,
    })  # fmt: skip
    config.update(sections("gsclip"))
    config.seed = 111
    if name in ("real3d", "anomaly_shapenet"):
        config.stage2.learning_rate = 1e-4
    return config


def preset(name: str | None) -> ConfigDict:
    """The configuration of a preset name; "" is the embedded default.

    Raises:
      ValueError: unknown name, with the nearest.
    """
    name = name or ""
    if name not in PRESETS:
        known = f"Known: {', '.join(AUXILIARY)}, or none for the embedded default"
        raise ValueError(f"unknown preset {name!r}{did_you_mean(name, PRESETS)} {known}")
    return paper(name) if name else embedded()
