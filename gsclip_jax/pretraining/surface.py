"""Training the surface stream's network (surface.py) against the finished CLIP's sentences, on the solids of the CLIP's views."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from gsclip_jax.method import Params, Stats
from gsclip_jax.methods.surface.descriptor import DESCRIPTION, describe, encode_surface, init_surface
from gsclip_jax.models.similarity import text_logits

SAMPLE = 2048  # points of an object that are kept, defective ones first up to half


class SurfacePretraining:
    """One loss: points are held against sentence pairs, sound and damaged, as patches are in the CLIP's own training.

    Batch: surface float16 [B,N,DESCRIPTION + 1], descriptions and in the last column 1 for defective points; text float32
    [B,2,E] normalised features of a sentence pair for each object.
    """

    def __init__(self, embed_dim: int, mean: np.ndarray, scale: np.ndarray):
        """mean, scale: of the descriptions [DESCRIPTION]; measured, not learned: the stage freezes the group "scaling"."""
        self.embed_dim = embed_dim
        self.scaling = {"mean": jnp.asarray(mean, jnp.float32), "scale": jnp.asarray(scale, jnp.float32)}

    def init(self, key):
        return {"surface": {"layers": init_surface(key, self.embed_dim)["layers"]}, "scaling": self.scaling}, {}

    def loss(self, trainable: Params, frozen: Params, stats: Stats, batch, key):
        tokens = encode_surface({**trainable["surface"], **frozen["scaling"]}, batch["surface"][..., :DESCRIPTION])  # [B,N,E]
        defective = batch["surface"][..., DESCRIPTION].astype(jnp.float32)
        log_p = jax.nn.log_softmax(text_logits(tokens, batch["text"], normalised=True))
        # Defective points are a few per cent of a scan and far more of the sample: half their weight back.
        loss = -jnp.where(defective > 0, 0.5 * log_p[..., 1], log_p[..., 0]).mean()
        right = ((log_p[..., 1] > log_p[..., 0]) == (defective > 0)).mean()
        return loss, (stats, {"surface": loss, "right": right})


_describe = jax.jit(describe)


def surface_sample(batch: dict[str, np.ndarray]) -> np.ndarray:
    """Descriptions and labels of SAMPLE points of every object of a batch (`data_pipelines.batch.FIELDS`), float16
    [B,SAMPLE,DESCRIPTION + 1]; the same object always gives the same points."""
    described = np.asarray(_describe(batch["xyz"], batch["neighbours"], batch["valid"]))
    out = np.zeros((len(described), SAMPLE, DESCRIPTION + 1), np.float16)
    for row, index in enumerate(batch["object_index"]):
        rng = np.random.default_rng(int(index))
        marked = batch["point_mask"][row] & batch["valid"][row]
        hit, sound = (rng.permutation(np.flatnonzero(x)) for x in (marked, batch["valid"][row] & ~marked))
        chosen = np.resize(np.concatenate([hit[: SAMPLE // 2], sound])[:SAMPLE], SAMPLE)
        out[row, :, :DESCRIPTION], out[row, :, DESCRIPTION] = described[row, chosen], marked[chosen]
    return out


def surface_batches(
    sample: np.ndarray, text: np.ndarray, *, batch_size: int, points: int, seed: int, first: int = 0
) -> Iterator[dict]:
    """Endless batches for SurfacePretraining: sample [R,SAMPLE,F+1] of `surface_sample`, text [S,2,E] of S sentence pairs."""
    step = first
    while True:
        rng = np.random.default_rng([seed, step])
        rows, chosen = rng.integers(len(sample), size=(batch_size, 1)), rng.integers(SAMPLE, size=(batch_size, points))
        yield {"surface": sample[rows, chosen], "text": text[rng.integers(len(text), size=batch_size)]}
        step += 1
