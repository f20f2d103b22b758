"""A method of one stage, outside the packages: a linear probe on the distance from the neighbours (docs/add_a_method.md)."""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp

from experiments.configs import stage2
from experiments.configs.common import set_method
from gsclip_jax.method import MethodBase, Scores, Stage
from gsclip_jax.methods import METHODS, Entry


@dataclass(frozen=True)
class Fit:  # the section config.fit
    epochs: int = 2
    batch_size: int = 4
    learning_rate: float = 0.05


@dataclass(frozen=True)
class Config:
    fit: Fit = field(default_factory=Fit)


class Probe(MethodBase):
    name = "probe"

    def __init__(self, cfg: Config):
        rates = {"probe": cfg.fit.learning_rate}
        self.stages = (Stage("fit", rates, (), cfg.fit.epochs, cfg.fit.batch_size, loss=self.loss),)

    def init(self, key):
        return {"probe": {"weight": jnp.zeros(2), "bias": jnp.zeros(())}}, {}

    def logits(self, probe, batch):  # [B,M]
        near = jax.vmap(lambda xyz, at: xyz[at])(batch["xyz"], batch["neighbours"])  # [B,M,K,3]
        reach = jnp.linalg.norm(near - batch["xyz"][:, :, None], axis=-1).max(-1)
        share = jnp.linalg.norm(near.mean(2) - batch["xyz"], axis=-1) / jnp.maximum(reach, 1e-9)
        return share * probe["weight"][0] + share**2 * probe["weight"][1] + probe["bias"]

    def loss(self, trainable, frozen, stats, batch, key):
        logits, mask = self.logits(trainable["probe"], batch), batch["point_mask"]
        each = jnp.where(mask, 10 * jax.nn.softplus(-logits), jax.nn.softplus(logits))  # few points are defective
        return jnp.where(batch["valid"], each, 0).mean(), (stats, {})

    def predict(self, params, stats, batch):
        points = jax.nn.sigmoid(self.logits(params["probe"], batch)) * batch["valid"]
        return Scores(points.max(-1), points, jnp.zeros(batch["render"].shape, jnp.float32))


METHODS["probe"] = Entry(Config, lambda cfg, parts: Probe(cfg), clip=False)


def get_config(preset: str | None = None):
    config = stage2.get_config(preset)
    set_method(config, "probe")
    config.compare = ()
    return config
