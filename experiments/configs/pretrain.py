"""The embedded CLIP, its surface stream and the PointNet++ start, from nothing, on solids that no experiment trains or tests on.

    python -m experiments.run --config pretrain.py --workdir runs/pretrain

About an hour and a quarter on two cores, a quarter of an hour of it making and rendering the scans.

Writes runs/pretrain/mini (or --config.out), which `--config.clip.name=runs/pretrain/mini` loads; what `mini` alone loads,
gsclip_jax/assets/mini, is replaced by hand.
"""

from ml_collections import ConfigDict

from experiments.configs import common


def get_config(preset: str | None = None):
    if preset:
        raise ValueError(f"pretrain.py has no presets, got {preset!r}")
    config = common.embedded()
    config.task = "pretrain"
    config.out = ""  # folder for what is made; "" = mini in the work directory
    config.start = ""  # weights of an earlier pretraining to go on from; "" = from nothing
    config.data.train_category = ""
    config.data.synthetic.update({"set": "pretrain", "good": 12, "defective": 12, "seed": 7, "relief": 0.15, "grafts": 0.5})
    config.mini = ConfigDict({  # sizes of the small CLIP
        "patch": 10, "vision_width": 128, "vision_layers": 5, "vision_heads": 4, "embed_dim": 96,
        "text_width": 96, "text_layers": 3, "text_heads": 2, "vv_blocks": 1,
    })  # fmt: skip
    config.clip_stage = ConfigDict({
        "batch_size": 20, "keep": 96, "weight_decay": 0.05,
        "defects": True,  # False: learn from sound solids alone
    })
    config.vision = ConfigDict({"steps": 5000, "learning_rate": 4e-4, "muon": 2e-3, "warmup_steps": 50})
    config.contrastive = ConfigDict({"steps": 600, "learning_rate": 3e-4, "muon": 1e-3, "warmup_steps": 50})
    config.surface_stage = ConfigDict({"steps": 3000, "batch_size": 32, "points": 64, "sentences": 256, "learning_rate": 2e-3})
    config.point_stage = ConfigDict({"steps": 150, "batch_size": 8, "learning_rate": 2e-3})
    return config
