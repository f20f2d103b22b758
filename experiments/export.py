"""Hands on a trained model as one folder: its parameters, or a program that needs none of the training code.

gsclip export --out MODEL [--workdir RUN] [--format params|stablehlo|onnx] [--calibration FILE] [--push OWNER/NAME]

gsclip inspect --model MODEL and gsclip_jax.load("MODEL") take any of them. Without --workdir it is the embedded model.

params      what training changed, and the configuration; it needs the CLIP it was trained with
stablehlo   a program for CPUs, CUDA GPUs and TPUs, with all its weights; it needs JAX
onnx        one file with all its weights, for onnxruntime on a CPU (the extra [onnx])
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ml_collections import ConfigDict

from data_pipelines import storage
from data_pipelines.command import Parser, command, guarded
from data_pipelines.files import write_atomic
from gsclip_jax.inspection.calibration import load_calibration
from gsclip_jax.inspection.exported import PROGRAMS, save_exported
from gsclip_jax.inspection.formats import CALIBRATION, kind_of
from gsclip_jax.inspection.hub import CARD, FILES, card, push
from gsclip_jax.inspection.model import EMBEDDED
from gsclip_jax.inspection.program import program_of
from gsclip_jax.inspection.saved import load_with_weights, model_folder, model_of, save_model
from gsclip_jax.parts import ConfigError
from gsclip_jax.runtime.names import of_model

FORMATS = ("params", *PROGRAMS)
SURFACE = ("note: what its surface stream takes for symmetries depends on how a runtime rounds; scores of some parts are more "
           "than 1e-5 from the other formats' (docs/inspection.md)")  # fmt: skip


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
    parser = Parser(prog="gsclip export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", metavar="RUN", help="a work directory of experiments.run (default: the embedded model)")
    parser.add_argument("--out", required=True, metavar="MODEL", help="folder of the exported model")
    parser.add_argument("--format", choices=FORMATS, default="params")
    parser.add_argument("--calibration", type=Path, metavar="FILE", help="of gsclip calibrate with this model, to lie with it")
    parser.add_argument("--half", action="store_true", help="params in half precision: half the size, slightly other scores")
    parser.add_argument("--push", metavar="OWNER/NAME", help="also upload it to the Hugging Face hub")
    parser.add_argument("--private", action="store_true", help="with --push: a new repository is private")

    def work() -> int:
        args = parser.parse_args(arguments)
        if args.half and args.format != "params":
            raise ConfigError(f"--half: programs ({args.format}) keep the scores of the model; use it with --format params")
        workdir = storage.opened(args.workdir, write=False) if args.workdir else None
        out = storage.opened(args.out)
        if workdir:
            storage.pull(workdir, of_model)
        storage.pull(out)
        about = export(workdir, out, args.format, args.calibration, args.half)
        storage.push(out)
        size = sum((out / name).stat().st_size for name in FILES if (out / name).exists())
        print(f"wrote {args.out}: {about['method']} trained on {about['category']} as {args.format}, {size / 1e6:.1f} MB")
        if args.format == "onnx" and about["surface"]:
            print(SURFACE, file=sys.stderr)
        if args.push:
            print(f"pushed: {push(out, args.push, args.private)}")
        return 0

    return guarded(work)


def export(workdir: Path | None, out: Path, kind: str = "params", calibration: Path | None = None, half: bool = False) -> dict:
    """Writes the model of a work directory, or the embedded one, into `out`; returns what the model card says of it.

    Args:
      kind: one of FORMATS.
      calibration: of good parts that this model scored, to lie with it.
      half: params in half precision.

    Raises:
      ConfigError: no model there, or `out` holds something else, which stays as it is; DataError: a calibration of another model;
        WeightsError: the model cannot be written in this format.
    """
    source = EMBEDDED if workdir is None else model_folder(workdir)
    if source is not None and out.resolve() == source.resolve():
        raise ConfigError(f"--out {out} is the run's own model; name another folder")
    there = [name for name in FILES if (out / name).exists()]
    if there and not kind_of(out):
        raise ConfigError(f"{out} holds something else (its {there[0]} is no exported model's); name another --out")
    method, params, stats, config, weights = load_with_weights(source or workdir / "model")
    model = model_of(source, "", method, params, stats, config)
    if calibration:
        settings = json.loads(calibration.read_text())["settings"] if calibration.is_file() else {}
        load_calibration(calibration, model.digest, settings)
    about = {"method": method.name, "data": config.data.name, "category": config.data.train_category,
             "surface": "surface" in params}  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=out) as scratch:
        made = Path(scratch)
        if kind == "params":
            stored = json.loads((source / "config.json").read_text())["weights"]["dtype"]
            save_model(made, config, params, stats, weights, dtype="float16" if half else stored)
            model = model_of(made, "", method, params, stats, config)
        else:
            rest = {"config": json.loads(config.to_json_best_effort()), "clip_sha256": weights.get("clip"),
                    "made_with": {name: version(name) for name in ("gsclip-jax", "jax") if _installed(name)}}  # fmt: skip
            save_exported(made, kind, program_of(method, params, stats, model.recipe), model, about | rest)
        if calibration:
            write_atomic(made / CALIBRATION, calibration.read_bytes())
        about |= {"format": kind, "digest": model.digest, "recipe": model.recipe.json(),
                  "clip": config.clip.name if kind == "params" and "clip" in weights else ""}  # fmt: skip
        write_atomic(made / CARD, card(about, {name: (made / name).stat().st_size for name in FILES if (made / name).exists()}))
        for name in sorted(FILES, key="config.json".__eq__):  # that vouches for the others, last
            if (made / name).exists():
                os.replace(made / name, out / name)
            else:
                (out / name).unlink(missing_ok=True)  # of another format that was here
    return about


def _installed(name: str) -> bool:
    try:
        return bool(version(name))
    except PackageNotFoundError:
        return False


if __name__ == "__main__":
    sys.exit(command(main))
