"""How the files beside this one were made: by the code of commit 742fd93, the last before every part had a room of its own.

    git worktree add /tmp/old 742fd93 && cp tests/data/earlier/make.py /tmp/old && cd /tmp/old && python make.py OUT

model/            a PointAD on the embedded CLIP, in half precision; its prompts are drawn at random, as if trained
scores.npz        what that code gave for `batch()`: by this model, and by the embedded GS-CLIP (gsclip_jax/assets/demo), which
                  earlier code has written as well
"""

import sys
from pathlib import Path

import numpy as np


def batch() -> dict[str, np.ndarray]:
    """Two objects of 96 points in 2 views of 40 pixels, random in every field."""
    rng = np.random.default_rng(7)
    xyz = rng.normal(size=(2, 96, 3)).astype(np.float32)
    xyz /= np.linalg.norm(xyz, axis=-1, keepdims=True)
    near = np.linalg.norm(xyz[:, :, None] - xyz[:, None], axis=-1).argsort(-1, kind="stable")[:, :, :16]
    cloud = rng.normal(size=(2, 2048, 3)).astype(np.float32)
    return {
        "render": rng.integers(0, 256, (2, 2, 40, 40), dtype=np.uint8),
        "depth": rng.integers(0, 256, (2, 2, 40, 40), dtype=np.uint8),
        "cloud": cloud / np.linalg.norm(cloud, axis=-1, keepdims=True),
        "pix": rng.integers(0, 40, (2, 2, 96, 2)).astype(np.int16),
        "seen": rng.random((2, 2, 96)) < 0.6,
        "xyz": xyz,
        "neighbours": near.astype(np.int32),
        "valid": np.ones((2, 96), bool),
        "point_mask": np.zeros((2, 96), bool),
        "organised": np.zeros(2, bool),
        "view_mask": np.zeros((2, 2, 40, 40), bool),
        "view_label": np.zeros((2, 2), np.int32),
        "label": np.zeros(2, np.int32),
        "object_index": np.arange(2, dtype=np.int32),
        "real": np.ones(2, bool),
    }


def main(out: Path) -> None:
    import jax

    from experiments.run import parse
    from gsclip_jax.build import build_model
    from gsclip_jax.inspection.model import EMBEDDED
    from gsclip_jax.inspection.saved import load_model, save_model

    config, _ = parse(["--config", "stage2.py", "--config.method=pointad", "--config.compare="])
    _, params, stats, weights = build_model(config)
    rng = np.random.default_rng(11)
    params["prompts"] = jax.tree.map(lambda x: x + 0.05 * rng.normal(size=x.shape).astype(np.float32), params["prompts"])
    save_model(out / "model", config, params, stats, weights, dtype="float16", steps={"stage1": 6})
    found = {}
    for name, folder in (("pointad", out / "model"), ("gsclip", EMBEDDED)):
        method, params, stats, _ = load_model(folder)
        scores = jax.device_get(jax.jit(method.predict)(params, stats, batch()))
        found |= {f"{name}_object": scores.object, f"{name}_points": scores.points}
    np.savez_compressed(out / "scores.npz", **found)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
