"""The methods that a run is compared with: their configurations, on the same data and seed."""

from __future__ import annotations

from pathlib import Path

from ml_collections import ConfigDict

from data_pipelines.scan import did_you_mean
from experiments.configs.common import with_method
from experiments.export import is_trained
from gsclip_jax.methods import METHODS
from gsclip_jax.parts import ConfigError

CHANGES = {
    "random_clip": {"clip": {"random": True}},  # same training, CLIP weights drawn at random
    "views_alone": {"model": {"surface_share": 0.0}},  # the paper's two streams, without the surface's
    "pointad": {"method": "pointad"},  # learned prompts, render stream alone
    "plain_clip": {"method": "plain_clip"},  # sentences and renderings, no learning
    "surface_variation": {"method": "surface_variation"},  # geometry alone, no learning
    "broken_symmetry": {"method": "broken_symmetry"},
}


def compared_with(config: ConfigDict, workdir: Path) -> dict[str, tuple[ConfigDict, Path]]:
    """name -> (configuration, work directory) of what `config.compare` names. An evaluation trains nothing: it is compared with
    what is trained already, or learns nothing.

    Raises:
      ConfigError: unknown name.
    """
    found = {}
    for name in config.compare if config.task != "stage1" else ():
        if name not in CHANGES:
            raise ConfigError(f"config.compare: no {name!r}{did_you_mean(name, CHANGES)} Known: {', '.join(CHANGES)}")
        change, folder = dict(CHANGES[name]), workdir / "compare" / name
        other = with_method(config, change.pop("method", config.method))
        other.compare = ()
        other.update(change)
        if config.task != "eval" or not METHODS[other.method].trains or is_trained(other, folder):
            found[name] = other, folder
    return found
