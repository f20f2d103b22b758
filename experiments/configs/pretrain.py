"""The embedded CLIP and PointNet++ start, from nothing, on solids that no experiment trains or tests on.

    python -m experiments.run --config pretrain.py --workdir runs/pretrain

About an hour on two cores, a quarter of it making and rendering the scans.

Writes gsclip_jax/assets/mini (or --config.out), which `config.clip.name=mini` loads.
"""

from ml_collections import ConfigDict

from experiments.configs import common


def get_config(preset: str | None = None):
    if preset:
        raise ValueError(f"pretrain.py has no presets, got {preset!r}")
    config = common.embedded()
    config.task = "pretrain"
    config.out = "gsclip_jax/assets/mini"
    config.start = ""  # weights of an earlier pretraining to go on from; "" = from nothing
    config.data.train_category = ""
    config.data.synthetic.update({"set": "pretrain", "good": 18, "defective": 18, "seed": 7})
    config.mini = ConfigDict({  # sizes of the small CLIP
        "patch": 14, "vision_width": 128, "vision_layers": 4, "vision_heads": 2, "embed_dim": 96,
        "text_width": 96, "text_layers": 3, "text_heads": 2, "vv_blocks": 3,
    })  # fmt: skip
    config.clip_stage = ConfigDict({"batch_size": 24, "keep": 40, "weight_decay": 0.05})
    config.sight = ConfigDict({"steps": 7000, "learning_rate": 1e-3, "muon": 6e-3, "warmup_steps": 50})
    config.words = ConfigDict({"steps": 1000, "learning_rate": 5e-4, "muon": 2e-3, "warmup_steps": 50})
    config.point_stage = ConfigDict({"steps": 150, "batch_size": 8, "learning_rate": 2e-3})
    return config
