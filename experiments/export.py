"""A trained model as one small directory: what training changed, the configuration, and the hash of the CLIP it belongs to.

python -m experiments.export --workdir runs/demo --out DIR      # a copy in half precision, to hand on
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import jax
from ml_collections import ConfigDict

from experiments.build import ConfigError, build_model
from experiments.configs.common import embedded
from gsclip_jax.convert.store import is_stored, load_params, save_params
from gsclip_jax.method import Method, Params, Stats

EMBEDDED = Path(__file__).parents[1] / "gsclip_jax" / "assets" / "demo"


def save_model(folder: Path, config: ConfigDict, params: Params, stats: Stats, weights: dict, dtype: str = "float32") -> None:
    """Writes all groups but the CLIP with the statistics and the whole configuration."""
    trained = {group: tree for group, tree in params.items() if group not in ("clip", "clip_depth")}
    about = {"kind": "gsclip", "config": json.loads(config.to_json_best_effort()), "clip_sha256": weights.get("clip")}
    save_params(folder, jax.device_get({**trained, "stats": stats}), config=about, dtype=dtype)


def load_model(folder: Path) -> tuple[Method, Params, Stats, ConfigDict]:
    """The trained method of `save_model`, with its CLIP loaded from where the configuration says.

    Raises:
      ConfigError: no trained model there, one of an earlier version, or another CLIP than it was trained with.
    """
    if not is_stored(folder):
        raise ConfigError(f"{folder.parent} holds no trained model; run stage2.py with this --workdir first")
    tree, about = load_params(folder)
    config = ConfigDict(about["config"])
    known = embedded()
    if "model" in config and "surface_share" not in config.model:
        config.model.surface_share = 0.0  # what models had before there was the stream
    missing = [f"{part}.{key}" for part in ("data", "model") for key in known[part] if key not in config.get(part, {})]
    if missing:
        raise ConfigError(f"{folder}: made by an earlier version, its configuration has no {', '.join(missing)}; train it again")
    method, params, stats, weights = build_model(config)
    if about["clip_sha256"] != weights.get("clip"):
        raise ConfigError(
            f"{folder}: trained with CLIP weights {str(about['clip_sha256'])[:12]}, but {config.clip.name} holds "
            f"{str(weights.get('clip'))[:12]}; give the weights it was trained with"
        )
    stats = tree.pop("stats")
    return method, {**params, **tree}, stats, config


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.export")
    parser.add_argument("--workdir", required=True, type=Path, metavar="RUN")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR")
    args = parser.parse_args(arguments)
    try:
        method, params, stats, config = load_model(args.workdir / "model")
        sha256 = json.loads((args.workdir / "weights.json").read_text())
        save_model(args.out, config, params, stats, sha256, dtype="float16")
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    print(f"wrote {args.out}: {method.name} trained on {config.data.train_category}")
    return 0


if __name__ == "__main__":
    from data_pipelines.command import command

    sys.exit(command(main))
