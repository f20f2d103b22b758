"""The phases of a run: records, stage 1, stage 2, evaluation. Each does what is missing in the work directory and no more."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
from ml_collections import ConfigDict

from data_pipelines.input import eval_batches, steps_per_epoch, train_batches
from data_pipelines.locks import locked
from data_pipelines.records import RecordSet
from experiments.build import ConfigError, build_model, index_rows, load_records, parameter_count, target, test_categories
from experiments.export import save_model
from gsclip_jax import evaluate
from gsclip_jax.features import store_features
from gsclip_jax.method import Method, Params, Stage, Stats
from gsclip_jax.sharding import make_mesh, place, replicated
from gsclip_jax.train import fit
from gsclip_jax.writer import MetricWriter

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers", "open3d", "tensorflow-datasets", "numpy")
# Where a run happens, not what it computes: these may differ between a run and its continuation.
INCIDENTAL = ("cache", "workers", "mesh", "save_every_s", "task", "compare")


class Timer:
    """Seconds of every phase, summed over interrupted runs, in the work directory."""

    def __init__(self, path: Path):
        self.path = path
        self.seconds: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds[phase] = round(self.seconds.get(phase, 0.0) + time.monotonic() - began, 1)
            evaluate.write_json(self.path, self.seconds)


def versions() -> dict[str, str]:
    """What ran; a package that is not there is recorded as such (some are used by a few commands alone)."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def claim_workdir(config: ConfigDict, workdir: Path) -> None:
    """Writes config.json, or checks that the one there is of the same run.

    Raises:
      ConfigError: the directory holds another configuration; names what differs.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    path, config_json = workdir / "config.json", json.loads(config.to_json_best_effort())
    if path.exists():
        ours, theirs = _flat(config_json), _flat(json.loads(path.read_text()))
        differing = sorted(
            key for key in ours.keys() | theirs.keys()
            if ours.get(key) != theirs.get(key) and key.split(".")[0] not in INCIDENTAL
        )  # fmt: skip
        if differing:
            shown = ", ".join(f"{k} {theirs.get(k)!r} there, {ours.get(k)!r} now" for k in differing[:4])
            more = f" and {len(differing) - 4} more" if len(differing) > 4 else ""
            raise ConfigError(f"{workdir} holds a run with another configuration ({shown}{more}); choose another --workdir")
        return
    evaluate.write_json(path, config_json)


def _flat(tree: dict, prefix: str = "") -> dict:
    out = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            out.update(_flat(value, f"{prefix}{key}."))
        else:
            out[prefix + key] = list(value) if isinstance(value, tuple) else value
    return out


class Run:
    """One configuration in one work directory."""

    def __init__(self, config: ConfigDict, workdir: Path):
        self.config, self.workdir = config, workdir
        claim_workdir(config, workdir)
        self.time = Timer(workdir / "seconds.json")
        self.writer = MetricWriter(workdir / "metrics.jsonl")
        self.mesh = make_mesh(config.mesh.data, config.mesh.model)
        self._records: RecordSet | None = None
        self._target: RecordSet | None = None

    @property
    def records(self) -> RecordSet:
        if self._records is None:
            with self.time("render"):
                self._records = load_records(self.config, progress=say)
        return self._records

    @property
    def test_records(self) -> RecordSet:
        """What is evaluated: the same data set, or the target of a cross-data-set evaluation."""
        if not self.config.target.name:
            return self.records
        if self._target is None:
            with self.time("render"):
                self._target = load_records(target(self.config), progress=say)
        return self._target

    @property
    def results_file(self) -> Path:
        return self.workdir / "results.json"

    def train(self, upto: str) -> tuple[Method, Params, Stats, dict]:
        """The method trained through stage `upto`, from checkpoints where they are."""
        method, params, stats, weights = build_model(self.config)
        counts = parameter_count(params)
        if counts:
            say("parameters: " + ", ".join(f"{group} {count:,}" for group, count in counts.items()))
        params, stats = place(params, self.mesh), jax.device_put(stats, replicated(self.mesh))
        if len(weights.keys() & {"clip"}):
            self._same_weights(weights)
        for stage in method.stages:
            with self.time(stage.name):
                params, stats = self._stage(method, stage, params, stats, weights)
            if stage.name == upto:
                break
        return method, params, stats, weights

    def _same_weights(self, weights: dict) -> None:
        path = self.workdir / "weights.json"
        if path.exists() and json.loads(path.read_text()) != weights:
            raise ConfigError(
                f"{self.workdir} was trained from other weights than those given ({path.name}); choose another --workdir"
            )
        evaluate.write_json(path, weights)

    def _stage(self, method: Method, stage: Stage, params: Params, stats: Stats, weights: dict) -> tuple[Params, Stats]:
        records, category, seed = self.records, self.config.data.train_category, self.config.seed
        # What the stored features depend on: the records, the weights, and for stage 2 everything stage 1 made.
        used = {name: value for name, value in weights.items() if name != "surface"}  # that stream trains nothing, stores nothing
        made_by = json.dumps([records.key, category, used, stage.name, self._upstream(stage)])
        name = hashlib.sha256(made_by.encode()).hexdigest()[:16]
        everything = lambda: eval_batches(records, categories=[category], batch_size=stage.batch_size)  # noqa: E731
        count = len(records.rows([category]))
        folder = Path(self.config.cache) / "features" / name
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder.with_suffix(".lock")):  # runs of one sweep share what they have in common
            store = store_features(method, stage.name, params, stats, everything, count, folder, mesh=self.mesh)

        def batches(first: int) -> Iterator[dict]:
            found = train_batches(
                records, categories=[category], batch_size=stage.batch_size, seed=seed, start_step=first,
                process_index=jax.process_index(), process_count=jax.process_count(),
            )  # fmt: skip
            return store.join(found) if store else found

        return fit(
            method, stage, params, stats, batches, steps_per_epoch(records, [category], stage.batch_size),
            self.workdir / stage.name, mesh=self.mesh, seed=seed, writer=self.writer, save_every_s=self.config.save_every_s,
        )  # fmt: skip

    def _upstream(self, stage: Stage) -> dict:
        """The part of the configuration that shapes what is frozen in the stage."""
        config = json.loads(self.config.to_json_best_effort())
        model = {k: config[k] for k in ("variant", "clip", "pointnet2")}
        if stage.name == "stage1":
            return model
        config["model"].pop("surface_share")
        return {**model, "model": config["model"], "stage1": config["stage1"], "seed": config["seed"]}

    def evaluate(self, upto: str = "stage2") -> dict:
        """Scores and metrics of every test category; writes eval/, scores.csv and results.json."""
        records = self.test_records
        categories = test_categories(self.config, records)
        index = index_rows(records, categories)
        rgb = self._rgb()
        method, params, stats, weights = self.train(upto)

        def batches(missing: list[int]) -> Iterator[dict]:
            wanted = set(missing)
            left = [c for c in categories if any(row["category"] == c and row["object_index"] in wanted for row in index)]
            for batch in eval_batches(
                records, categories=left, batch_size=self.config.eval.batch_size, process_index=jax.process_index(),
                process_count=jax.process_count(),
            ):  # fmt: skip
                if jax.process_count() > 1 or wanted & set(batch["object_index"][batch["real"]].tolist()):
                    yield batch

        with self.time("eval"):
            evaluate.score_objects(method, params, stats, index, batches, self.workdir / "eval", mesh=self.mesh, rgb=rgb)
            tables = evaluate.tabulate(index, self.workdir / "eval")
        config = self.config
        if jax.process_index() == 0 and method.stages:
            save_model(self.workdir / "model", config, params, stats, weights)
        results = {
            "dataset": config.target.name or config.data.name, "trained_on": config.data.name,
            "train_category": config.data.train_category, "preset": config.preset,
            "variant": config.variant, "method": config.method, "seed": config.seed, "categories": tables,
            "mean": evaluate.mean(tables),
            "seconds": {phase: self.time.seconds.get(phase, 0.0) for phase in ("render", "stage1", "stage2", "eval")},
            "versions": versions(), "weights": weights,
        }  # fmt: skip
        if jax.process_index() == 0:
            evaluate.write_scores(index, self.workdir / "eval", self.workdir / "scores.csv")
            evaluate.write_json(self.results_file, results)
        return results


    def _rgb(self) -> bool:
        """Whether colour scores are wanted.

        Raises:
          ConfigError: they are, but this method or these records have none.
        """
        if not self.config.eval.rgb:
            return False
        if self.config.method != "gsclip":
            return False  # yardsticks run alongside have no colour scores
        batch = next(iter(eval_batches(self.test_records, batch_size=1)))
        if "rgb" not in batch or not batch["organised"][0]:
            raise ConfigError(
                f"config.eval.rgb needs organised scans with colour pictures, which {self.config.data.name!r} under "
                f"{self.config.data.root} has not; set config.eval.rgb=False"
            )
        return True


def say(line: str) -> None:
    if jax.process_index() == 0:
        print(line, flush=True)


def columns(mean: dict, released: bool = False) -> list[tuple[str, str]]:
    """Key and title of the metrics to show: those of the geometry, and of colour and both where there are any."""
    names = [("o_auroc", "O-AUROC"), ("o_ap", "O-AP"), ("p_auroc", "P-AUROC"), ("p_pro", "P-PRO")]
    if released:
        names += [("p_auroc_released", "P-AUROC as released"), ("p_pro_released", "P-PRO as released")]
    more = [(f"{part}_{key}", f"{part} {title}") for part in evaluate.PARTS for key, title in names]
    return names + [(key, title) for key, title in more if key in mean]


def table(results: dict, compared: dict[str, dict] | None = None) -> str:
    """The metrics as text, per category and mean, with the compared methods' means below."""
    shown = columns(results["mean"])
    rows = list(results["categories"].items()) + [("mean", results["mean"])]
    rows += [(f"  {name} (mean)", other["mean"]) for name, other in (compared or {}).items()]
    width = max(len(name) for name, _ in rows) + 2
    lines = [" " * width + "".join(f"{title:>{len(title) + 2}}" for _, title in shown)]
    for name, values in rows:
        cells = "".join(
            f"{'-' if values.get(key) is None else f'{100 * values[key]:.1f}':>{len(title) + 2}}" for key, title in shown
        )
        lines.append(f"{name:<{width}}{cells}")
    return "\n".join(lines)
