"""A trained model as one small directory: what training changed, the configuration, and the hash of the CLIP it belongs to.

python -m experiments.export --workdir runs/demo --out DIR      # a copy in half precision, to hand on
python -m experiments.predict part.ply --workdir DIR --out out  # DIR stands for a work directory from then on
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from ml_collections import ConfigDict

from data_pipelines import storage
from data_pipelines.command import command, guarded
from gsclip_jax.inspection.saved import load_with_weights, model_folder, save_model
from gsclip_jax.method import Method
from gsclip_jax.parts import ConfigError
from gsclip_jax.runtime.names import of_model


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


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.export")
    parser.add_argument("--workdir", required=True, metavar="RUN")
    parser.add_argument("--out", required=True, metavar="DIR")

    def work() -> int:
        args = parser.parse_args(arguments)
        workdir, out = storage.opened(args.workdir, write=False), storage.opened(args.out)
        storage.pull(workdir, of_model)
        storage.pull(out)
        method, config = export(workdir, out)
        storage.push(out)
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
    method, params, stats, config, weights = load_with_weights(workdir / "model")
    save_model(out, config, params, stats, weights, dtype="float16")
    return method, config


if __name__ == "__main__":
    sys.exit(command(main))
