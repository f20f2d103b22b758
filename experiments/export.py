"""A trained model as one small directory: what training changed, the configuration, and the hash of the CLIP it belongs to.

python -m experiments.export --workdir runs/demo --out DIR      # a copy in half precision, to hand on
python -m experiments.predict part.ply --workdir DIR --out out  # DIR stands for a work directory from then on
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import jax
from ml_collections import ConfigDict

from data_pipelines.command import command, guarded
from data_pipelines.records.objects import BEFORE
from experiments.build import build_model
from experiments.configs.common import embedded
from gsclip_jax.convert.store import is_stored, load_params, save_params
from gsclip_jax.method import Method, Params, Stats
from gsclip_jax.parts import ConfigError

EMBEDDED = Path(__file__).parents[1] / "gsclip_jax" / "assets" / "demo"


def save_model(
    folder: Path, config: ConfigDict, params: Params, stats: Stats, weights: dict, dtype: str = "float32",
    steps: dict[str, int] | None = None,
) -> None:  # fmt: skip
    """Writes all groups but the CLIP with the statistics and the whole configuration.

    Args:
      steps: of every stage, by which a run knows that the model is that of its checkpoints.
    """
    trained = {group: tree for group, tree in params.items() if group not in ("clip", "clip_depth")}
    about = {"kind": "gsclip", "config": json.loads(config.to_json_best_effort()), "clip_sha256": weights.get("clip")}
    about |= {} if steps is None else {"steps": steps}
    save_params(folder, jax.device_get({**trained, "stats": stats}), config=about, dtype=dtype)


def model_folder(workdir: Path) -> Path | None:
    """Where a work directory, or what `python -m experiments.export` wrote, has its trained model; None where it has none."""
    return next((folder for folder in (workdir / "model", workdir) if folder.is_dir() and is_stored(folder)), None)


def steps_done(workdir: Path) -> dict[str, int]:
    """The newest checkpoint of every stage that has one."""
    found = {}
    for folder in sorted(workdir.glob("*/checkpoints")):
        steps = [int(path.name) for path in folder.glob("*") if path.name.isdecimal()]
        found |= {folder.parent.name: max(steps)} if steps else {}
    return found


def is_trained(config: ConfigDict, workdir: Path) -> bool:
    """Whether there is a finished model, and it is that of the checkpoints beside it: who removes those trains again. For
    evaluation alone the model suffices."""
    folder = model_folder(workdir)
    if folder is None:
        return False
    about, done = json.loads((folder / "config.json").read_text()), steps_done(workdir)
    if folder == workdir or (config.task == "eval" and not done):
        return True
    return about["steps"] == done if "steps" in about else bool(done)


def finished_model(workdir: Path, params: Params, stats: Stats, weights: dict) -> tuple[Params, Stats]:
    """Fresh parameters and statistics with the trained ones in their place.

    Raises:
      ConfigError: another CLIP than it was trained with; WeightsError: damage.
    """
    folder = model_folder(workdir)
    tree, about = load_params(folder)
    if about["clip_sha256"] != weights.get("clip"):
        raise ConfigError(
            f"{folder}: trained with CLIP weights {str(about['clip_sha256'])[:12]}, but config.clip.name holds "
            f"{str(weights.get('clip'))[:12]}; give the weights it was trained with"
        )
    return {**params, **{group: value for group, value in tree.items() if group != "stats"}}, tree.get("stats", stats)


def load_model(folder: Path) -> tuple[Method, Params, Stats, ConfigDict]:
    """The trained method of `save_model`, with its CLIP loaded from where the configuration says.

    Args:
      folder: the model's; of a work directory WORKDIR/model, which may also be what `main` wrote into WORKDIR.

    Raises:
      ConfigError: no trained model there, one of an earlier version, or another CLIP than it was trained with.
    """
    return _load(folder)[:4]


def _load(folder: Path) -> tuple[Method, Params, Stats, ConfigDict, dict]:
    home = model_folder(folder.parent) if folder.name == "model" else folder
    if home is None or not is_stored(home):
        raise ConfigError(f"{folder.parent} holds no trained model; run stage2.py with this --workdir first")
    about = json.loads((home / "config.json").read_text())
    if about.get("kind") != "gsclip" or "config" not in about:
        kind = about.get("kind")
        raise ConfigError(f"{home} holds weights of kind {kind!r}, no trained model; name a work directory of stage2.py")
    config = ConfigDict(about["config"])
    known = embedded()
    if "data" in config:
        config.data.update({key: value for key, value in BEFORE.items() if key not in config.data})
    missing = [f"data.{key}" for key in known.data if key not in config.get("data", {})]
    if missing:
        raise ConfigError(f"{home}: made by an earlier version, its configuration has no {', '.join(missing)}; train it again")
    method, params, stats, weights = build_model(config)
    params, stats = finished_model(home, params, stats, weights)
    return method, params, stats, config, weights


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.export")
    parser.add_argument("--workdir", required=True, type=Path, metavar="RUN")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR")

    def work() -> int:
        args = parser.parse_args(arguments)
        method, config = export(args.workdir, args.out)
        print(f"wrote {args.out}: {method.name} trained on {config.data.train_category}")
        return 0

    return guarded(work)


def export(workdir: Path, out: Path) -> tuple[Method, ConfigDict]:
    """Writes the model of a work directory into `out`, in half precision: a folder that takes the place of a work directory for
    experiments.predict and for eval.py.

    Raises:
      ConfigError: no model there, or `out` holds something else, which stays as it is.
    """
    source = model_folder(workdir)
    if source is not None and out.resolve() == source.resolve():
        raise ConfigError(f"--out {out} is the run's own model; name another folder")
    if (out / "config.json").exists() and json.loads((out / "config.json").read_text()).get("kind") != "gsclip":
        raise ConfigError(f"{out} holds something else (its config.json is no trained model's); name another --out")
    method, params, stats, config, weights = _load(workdir / "model")
    save_model(out, config, params, stats, weights, dtype="float16")
    return method, config


if __name__ == "__main__":
    sys.exit(command(main))
