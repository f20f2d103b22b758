"""Trains and evaluates what a configuration describes: from scans to a table of metrics and a page of pictures.

python -m experiments.run --config stage2.py[:preset] [--workdir DIR] [--config.section.key=value ...]

`main` reads the command line, `run` does all that a configuration asks for, `train_and_evaluate`
is one method from top to bottom.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from data_pipelines import leases, storage
from data_pipelines.command import command, guarded
from data_pipelines.files import write_json
from data_pipelines.progress import named
from experiments import checks, evaluations, protocol
from experiments.command_line import parse, usage
from experiments.compared import compared_with
from experiments.data import batch_size, index_rows, load_records, shares_statistics, test_categories, wants_rgb
from experiments.export import is_trained, steps_done
from experiments.identity import check_objects, check_weights, claim_workdir, settings
from experiments.scans import records_to_evaluate, training_key
from experiments.summary import Timer, say, table, versions
from gsclip_jax.build import build_model, parameter_count, remat_of
from gsclip_jax.evaluation import score as evaluate
from gsclip_jax.inspection.saved import finished_model, model_folder, save_model
from gsclip_jax.methods import METHODS, trains_on
from gsclip_jax.parts import ConfigError
from gsclip_jax.runtime.metric_writer import MetricWriter
from gsclip_jax.runtime.sharding import batch_places, make_mesh, place, replicated
from gsclip_jax.training.feature_store import FeatureStore, Source, find_features
from gsclip_jax.training.train import FitConfig, fit


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status; every expected failure is one line on standard error."""
    given = sys.argv[1:] if arguments is None else arguments

    def whole() -> None:
        if {"-h", "--help"} & set(given):
            return print(usage(given))
        config, workdir = parse(given)
        if arguments is None:  # a program of its own: JAX has not started yet
            jax.config.update("jax_num_cpu_devices", config.mesh.cpu_devices)
        for folder, key in ((workdir, "--workdir"), (storage.opened(config.cache), "config.cache")):
            if storage.store_of(folder) and jax.process_count() > 1:
                raise ConfigError(f"{key}: a run of several processes needs a path that all of them see, not a URL")
        with leases.working_in(workdir):
            run(config, workdir)

    return guarded(whole)


def run(config: ConfigDict, workdir: Path) -> None:
    """All that a configuration asks for: one method, the methods beside it, and the page that shows them."""
    # The same programs are compiled once a machine, not once a run: comparisons and reruns find them here.
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # the user's own stays
        jax.config.update("jax_compilation_cache_dir", str(storage.opened(config.cache).absolute() / "xla"))

    # ---- what cannot run is refused before anything does
    checks.check_values(config)
    if config.task != "pretrain":
        checks.check_all(config, workdir)

    # ---- configurations of another kind: pretraining, and one run for each auxiliary category
    if config.task == "pretrain":
        from experiments import pretrain  # here: TensorFlow takes seconds, and refusals need none of it

        claim_workdir(config, workdir)
        return pretrain.run(config, workdir)
    if config.task == "protocol":
        claim_workdir(config, workdir)
        return protocol.run(config, workdir, train_and_evaluate)

    # ---- the method, and those beside it
    results = train_and_evaluate(config, workdir)
    if config.task == "stage1":
        return say(f"stage 1 is trained: {workdir / 'stage1'}")
    compared, others = {}, compared_with(config, workdir)
    for number, (name, (other, folder)) in enumerate(others.items(), 1):
        say(f"\ncompared method {number} of {len(others)}: {name}")
        with named(name):
            compared[name] = train_and_evaluate(other, folder)

    # ---- report
    if jax.process_index() == 0:
        from experiments.report import write_report  # reads records: like pretrain

        say("\n" + table(results, compared))
        say("\nseconds: " + ", ".join(f"{phase} {value:.0f}" for phase, value in results["seconds"].items()))
        home = evaluations.home_of_page(config, workdir)
        write_report(config, home, results, compared, partial(records_to_evaluate, config, workdir, say))
        evaluations.show(home / "results.json")
        say(f"results: {workdir / 'results.json'}, pictures: {workdir / 'report.html'}")
        if home != workdir:
            say(f"they are kept in {home}, with the scores")
    return None


def train_and_evaluate(config: ConfigDict, workdir: Path) -> dict:
    """One method in one work directory, from scans to tables. Every phase does what is missing of it, and no more.

    Returns:
      What results.json holds; {} of stage1.py, which evaluates nothing.
    """
    # ---- what is there already
    claim_workdir(config, workdir)
    if config.task != "stage1" and (found := evaluations.finished(config, workdir)):
        return found
    from data_pipelines import input as batches  # here: TensorFlow takes seconds, and what is finished needs none of it

    trains = METHODS[config.method].trains and not is_trained(config, workdir)
    mesh, time = make_mesh(config.mesh.data, config.mesh.model, config.mesh.view), Timer(workdir / "seconds.json")

    # ---- records: what is trained on, and what is evaluated
    records = tested = None
    with time("render"):
        if trains:
            records = load_records(config, say)
        if config.task != "stage1":
            tested = records if records and not config.target.name else records_to_evaluate(config, workdir, say)

    # ---- method: its parameters, with the weights that it begins with or the trained ones
    method, params, stats, weights = build_model(config)
    check_weights(workdir, weights, method.scores_only)
    if is_trained(config, workdir):
        params, stats = finished_model(model_folder(workdir), params, stats, weights)
    elif counts := parameter_count(params):
        say("parameters: " + ", ".join(f"{group} {count:,}" for group, count in counts.items()))
    params, stats = place(params, mesh), jax.device_put(stats, replicated(mesh))
    alone = method.for_inference()
    saving = method.with_remat(True).stages if remat_of(config) == "auto" else ()

    # ---- stages: each begins with the features of its objects that do not change while it trains
    if trains:
        category = [config.data.train_category]
        check_objects(workdir, training_key(config, records), begun=bool(steps_done(workdir)))
    for number, stage in enumerate(method.stages if trains else ()):
        with time(stage.name):
            needed = trains_on(config)
            objects = {"categories": category, "batch_size": stage.batch_size}
            everything = partial(batches.eval_batches, records, optional=needed, **objects)
            about = f"{records.key} {category[0]}"
            source = Source(alone.stages[number], params, stats, everything, len(records.rows(category)), about, mesh)
            stored = find_features(source, storage.opened(config.cache) / "features")
            store, needed = stored or FeatureStore(), () if stored else needed  # what the features read is in them
            places = batch_places(mesh, stage.batch_size)
            read = partial(batches.train_batches, records, optional=needed, seed=config.seed, places=places, **objects)
            steps = batches.steps_per_epoch(records, category, stage.batch_size)
            how = FitConfig(workdir / stage.name, mesh, config.seed, config.save_every_s)
            writer = MetricWriter(workdir / "metrics.jsonl", config.loggers)
            coming = lambda first: store.join(read(start_step=first))  # noqa: B023, E731  read within this iteration alone
            if saving:
                stage = replace(stage, saving=saving[number])  # taken where the memory asks for it
            params, stats = fit(stage, params, stats, coming, steps, how, writer)
        if config.task == "stage1" == stage.name and stage is not method.stages[-1]:
            return {}
    if trains and method.stages and jax.process_index() == 0:
        save_model(workdir / "model", config, params, stats, weights, steps=steps_done(workdir))
    if config.task == "stage1":
        return {}

    # ---- evaluation: a file of scores for each object
    index = index_rows(tested, test_categories(config, tested))
    # One hash stands alone in the key: evaluations of earlier versions are found again.
    more = [weights[name] for name in method.scores_only if name in weights]
    this = evaluations.of(workdir, config, tested.key, more[0] if len(more) == 1 else more or None)
    if jax.process_index() == 0:
        this.claim({"settings": settings(config)})
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("claimed")
    if this.is_first and jax.process_index() == 0:
        this.show()  # its files are written where those of another may be shown
    time_of = time if this.is_first else Timer(this.home / "seconds.json")
    with time_of("eval"):
        size, together = batch_size(config, mesh), shares_statistics(config)
        read = partial(batches.eval_batches, tested, batch_size=size, places=batch_places(mesh, size))
        unscored = partial(batches_with, read, index)
        how = {"mesh": mesh, "rgb": wants_rgb(config), "together": together}
        evaluate.score_objects(alone, params, stats, index, unscored, this.home / "eval", **how)
        tables = evaluate.tabulate(index, this.home / "eval")

    # ---- results: the tables, and all that they came from
    phases = ("render", *(stage.name for stage in method.stages))
    results = {
        "dataset": config.target.name or config.data.name, "trained_on": config.data.name,
        "train_category": config.data.train_category, "preset": config.preset,
        "variant": config.variant, "method": config.method, "seed": config.seed, "categories": tables,
        "mean": evaluate.mean(tables),
        "seconds": {phase: time.seconds.get(phase, 0.0) for phase in phases} | {"eval": time_of.seconds["eval"]},
        "versions": versions(), "weights": weights,
        "evaluation": {"key": this.key, "name": this.name, "settings": settings(config), "records": tested.key},
    }  # fmt: skip
    if jax.process_index() == 0:
        evaluate.write_scores(index, this.home / "eval", this.home / "scores.csv")
        write_json(this.home / "results.json", results)
    return results


def batches_with(read: Callable[..., Iterator[dict]], index: list[dict], missing: list[int]) -> Iterator[dict]:
    """Batches that hold an object of `missing` (`object_index`); of categories that are complete nothing is read.

    Args:
      read: categories -> batches with all their objects.
    """
    wanted = set(missing)
    left = list(dict.fromkeys(row["category"] for row in index if row["object_index"] in wanted))
    for batch in read(categories=left):
        # Several processes go through the same batches, each with its share of the objects.
        if jax.process_count() > 1 or wanted & set(batch["object_index"][batch["real"]].tolist()):
            yield batch


if __name__ == "__main__":
    sys.exit(command(main))
