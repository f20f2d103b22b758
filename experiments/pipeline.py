"""The phases of a run: records, stage 1, stage 2, evaluation. Each does what is missing in the work directory and no more."""

from __future__ import annotations

import copy
import importlib.metadata
import json
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from data_pipelines.files import write_json
from data_pipelines.input import eval_batches, steps_per_epoch, train_batches
from data_pipelines.records.store import RecordSet
from data_pipelines.scan import DataError
from experiments import evaluations
from experiments.build import build_model, parameter_count
from experiments.data import (
    batch_size,
    index_rows,
    is_embedded,
    load_records,
    of_target,
    target,
    test_categories,
    wants_rgb,
)
from experiments.export import finished_model, is_trained, save_model, steps_done
from experiments.identity import claim_workdir, settings, shown
from experiments.scans import has_records, plan_records, training_key, without_training
from gsclip_jax.evaluation import score as evaluate
from gsclip_jax.method import Method, Params, Stage, Stats
from gsclip_jax.parts import ConfigError
from gsclip_jax.runtime.metric_writer import MetricWriter
from gsclip_jax.runtime.sharding import make_mesh, place, replicated
from gsclip_jax.training.feature_store import Source, find_features
from gsclip_jax.training.train import FitConfig, fit

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers", "open3d", "tensorflow-datasets", "numpy")


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
            write_json(self.path, self.seconds)


def versions() -> dict[str, str]:
    """What ran; a package that is not there is recorded as such (some are used by a few commands alone)."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


class Run:
    """One configuration in one work directory."""

    def __init__(self, config: ConfigDict, workdir: Path):
        self.config, self.workdir, self.trained_in = config, workdir, workdir
        claim_workdir(config, workdir)
        self.time = Timer(workdir / "seconds.json")
        self.mesh = make_mesh(config.mesh.data, config.mesh.model)
        self._records: RecordSet | None = None
        self._test_records: RecordSet | None = None

    @property
    def records(self) -> RecordSet:
        """What is trained on, with what is evaluated of the same data set."""
        if self._records is None:
            with self.time("render"):
                self._records = load_records(self.config, progress=say)
        return self._records

    @property
    def test_records(self) -> RecordSet:
        """What is evaluated: the same data set, or the target of a cross-data-set evaluation."""
        if self._test_records is None:
            with self.time("render"):
                self._test_records = self._load_test_records()
        return self._test_records

    def _load_test_records(self) -> RecordSet:
        if self.config.target.name:
            try:
                return load_records(target(self.config), progress=say)
            except ValueError as error:
                raise of_target(error) from None
        if is_trained(self.config, self.trained_in) and not has_records(self.config):
            return load_records(without_training(self.config), progress=say)
        return self.records

    def results(self) -> dict | None:
        """What was found of this model on what the configuration evaluates, where that is complete."""
        path = evaluations.find(self.workdir, self.config)
        if path is None:
            return None
        found = json.loads(path.read_text())
        key = found.get("evaluation", {}).get("records")
        return None if key and self._planned_key() not in (None, key) else found

    def reported(self) -> Run:
        """The same run in the folder of its evaluation, for `report.write_report`; a page of other pictures or comparisons than
        the configuration asks for is taken away, as it is made anew."""
        path = evaluations.find(self.workdir, self.config)
        this = path and evaluations.of_results(path)
        if this and this.is_first:
            this.show()  # its page is written where that of another may be shown
        other = copy.copy(self)
        other.workdir = this.home if this else self.workdir
        mark = other.workdir / "eval" / evaluations.MARK
        about = json.loads(mark.read_text()) if mark.exists() else {}
        if about and about.get("shown") != shown(self.config):
            if "shown" in about:
                (other.workdir / "report.html").unlink(missing_ok=True)
            write_json(mark, about | {"shown": shown(self.config)})
        return other

    def _planned_key(self) -> str | None:
        """The key of the records that the scans here give; None where that cannot be told without writing or without scans."""
        wanted = target(self.config) if self.config.target.name else self.config
        try:
            return None if is_embedded(wanted) else plan_records(wanted).key
        except DataError:  # results are still there to be shown
            return None

    def train(self, upto: str) -> tuple[Method, Params, Stats, dict]:
        """The method trained through stage `upto`, from the finished model or from checkpoints where they are."""
        method, params, stats, weights = build_model(self.config)
        self._same_weights(weights, method.scores_only)
        if is_trained(self.config, self.workdir):
            params, stats = finished_model(self.workdir, params, stats, weights)
            return method, place(params, self.mesh), jax.device_put(stats, replicated(self.mesh)), weights
        counts = parameter_count(params)
        if counts:
            say("parameters: " + ", ".join(f"{group} {count:,}" for group, count in counts.items()))
        params, stats = place(params, self.mesh), jax.device_put(stats, replicated(self.mesh))
        for stage in method.stages:
            with self.time(stage.name):
                params, stats = self._stage(method, stage, params, stats)
            if stage.name == upto and stage != method.stages[-1]:
                return method, params, stats, weights
        if jax.process_index() == 0 and method.stages:
            save_model(self.workdir / "model", self.config, params, stats, weights, steps=steps_done(self.workdir))
        return method, params, stats, weights

    def _same_weights(self, weights: dict, scores_only: tuple[str, ...]) -> None:
        """Raises ConfigError where the work directory was trained from others; those that no loss reads may differ."""
        path = self.workdir / "weights.json"
        ours = {name: value for name, value in weights.items() if name not in scores_only}
        if path.exists():
            theirs = {name: value for name, value in json.loads(path.read_text()).items() if name not in scores_only}
            if "sentences" not in theirs:  # earlier versions did not note them
                ours.pop("sentences", None)
            if ours != theirs:
                names = ", ".join(sorted(n for n in ours.keys() | theirs.keys() if ours.get(n) != theirs.get(n)))
                raise ConfigError(
                    f"{self.workdir} was trained from other weights than those given ({names}; {path.name}); choose another "
                    "--workdir"
                )
        elif ours:
            write_json(path, weights)

    def _stage(self, method: Method, stage: Stage, params: Params, stats: Stats) -> tuple[Params, Stats]:
        records, category, seed = self.records, self.config.data.train_category, self.config.seed
        self._same_objects()
        everything = lambda: eval_batches(records, categories=[category], batch_size=stage.batch_size)  # noqa: E731
        computed = next(other for other in method.for_inference().stages if other.name == stage.name)
        count, content = len(records.rows([category])), f"{records.key} {category}"
        source = Source(computed, params, stats, everything, count, content, self.mesh)
        store = find_features(source, Path(self.config.cache) / "features")

        def batches(first: int) -> Iterator[dict]:
            found = train_batches(
                records, categories=[category], batch_size=stage.batch_size, seed=seed, start_step=first,
                process_index=jax.process_index(), process_count=jax.process_count(),
            )  # fmt: skip
            return store.join(found) if store else found

        run = FitConfig(self.workdir / stage.name, self.mesh, seed, self.config.save_every_s)
        steps = steps_per_epoch(records, [category], stage.batch_size)
        return fit(stage, params, stats, batches, steps, run, MetricWriter(self.workdir / "metrics.jsonl"))

    def _same_objects(self) -> None:
        """Raises ConfigError where a begun training saw other scans than the ones here."""
        path, key = self.workdir / "objects.json", training_key(self.config, self.records)
        if not steps_done(self.workdir) or not path.exists():  # nothing is trained yet, or an earlier version began it
            write_json(path, {"key": key})
        elif json.loads(path.read_text())["key"] != key:
            raise ConfigError(
                f"{self.workdir} began its training on other scans of {self.config.data.train_category!r}, or on records that "
                "another version made of them; choose another --workdir, or remove this one"
            )

    def evaluate(self, upto: str = "stage2") -> dict:
        """Scores and metrics of every test category; writes eval/, scores.csv and results.json into the evaluation's folder."""
        config = self.config
        records = self.test_records
        categories = test_categories(config, records)
        index = index_rows(records, categories)
        rgb = wants_rgb(config)
        method, params, stats, weights = self.train(upto)
        # One hash stands alone in the key: evaluations of earlier versions are found again.
        more = [weights[name] for name in method.scores_only if name in weights]
        this = evaluations.of(self.workdir, config, records.key, more[0] if len(more) == 1 else more or None)
        about = {"key": this.key, "name": this.name, "settings": settings(config), "records": records.key}
        if jax.process_index() == 0:
            this.claim({"settings": about["settings"]})
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("claimed")
        if this.is_first and jax.process_index() == 0:
            this.show()  # its files are written where those of another may be shown
        home = this.home
        size, time_of = batch_size(config, self.mesh), self.time if this.is_first else Timer(home / "seconds.json")

        def batches(missing: list[int]) -> Iterator[dict]:
            wanted = set(missing)
            left = [c for c in categories if any(row["category"] == c and row["object_index"] in wanted for row in index)]
            for batch in eval_batches(
                records, categories=left, batch_size=size, process_index=jax.process_index(),
                process_count=jax.process_count(),
            ):  # fmt: skip
                if jax.process_count() > 1 or wanted & set(batch["object_index"][batch["real"]].tolist()):
                    yield batch

        with time_of("eval"):
            evaluate.score_objects(
                method.for_inference(), params, stats, index, batches, home / "eval", mesh=self.mesh, rgb=rgb
            )
            tables = evaluate.tabulate(index, home / "eval")
        phases = ("render", *(stage.name for stage in method.stages))
        results = {
            "dataset": config.target.name or config.data.name, "trained_on": config.data.name,
            "train_category": config.data.train_category, "preset": config.preset,
            "variant": config.variant, "method": config.method, "seed": config.seed, "categories": tables,
            "mean": evaluate.mean(tables),
            "seconds": {phase: self.time.seconds.get(phase, 0.0) for phase in phases}
            | {"eval": time_of.seconds["eval"]},
            "versions": versions(), "weights": weights, "evaluation": about,
        }  # fmt: skip
        if jax.process_index() == 0:
            evaluate.write_scores(index, home / "eval", home / "scores.csv")
            write_json(home / "results.json", results)
        return results


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
