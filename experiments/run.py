"""Trains and evaluates what a configuration describes: from scans to a table of metrics and a page of pictures.

python -m experiments.run --config stage2.py[:preset] [--workdir DIR] [--config.KEY=VALUE ...] [--estimate]

`main` reads the command line, `run` does all that a configuration asks for, `train_and_evaluate`
is one method from top to bottom.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
from ml_collections import ConfigDict

from data_pipelines import leases, storage
from data_pipelines.command import command, guarded
from data_pipelines.files import write_json
from data_pipelines.progress import named
from experiments import checks, evaluations, protocol
from experiments.command_line import asked_estimate, parse, usage
from experiments.compared import compared_with
from experiments.data import batch_size, index_rows, load_records, shares_statistics, test_categories, wants_rgb
from experiments.estimate import show
from experiments.export import is_trained, steps_done
from experiments.identity import check_objects, check_weights, claim_workdir, of_all_processes, settings
from experiments.scans import records_to_evaluate, training_key
from experiments.summary import Timer, say, table, versions
from gsclip_jax.build import build_model, parameter_count, remat_of
from gsclip_jax.evaluation import score as evaluate
from gsclip_jax.inspection.saved import finished_model, model_folder, save_model, trained_groups
from gsclip_jax.methods import METHODS, trains_on
from gsclip_jax.parts import ConfigError
from gsclip_jax.runtime import clusters, distributed
from gsclip_jax.runtime.distributed import after_first, connected, is_first, shared, wait
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
        how, words = asked_estimate(given)
        config, workdir = parse(words)
        if how is None:
            return whole_run(config, workdir, own_process=arguments is None)
        if arguments is None:
            set_devices(config)
        return show(config, workdir, how)

    return distributed.program(lambda: guarded(whole))


def whole_run(config: ConfigDict, workdir: Path, own_process: bool) -> None:
    """`run`, as one process of those that the configuration or the cluster names, holding the work directory.

    Args:
      own_process: this program does nothing else, and JAX has not started yet. Otherwise it is a run of one process.

    Raises:
      ClusterError, ConnectionError: as `start`. ConfigError: as `run`, or several processes with a URL.
    """
    if own_process:
        start(config)
    for folder, key in ((workdir, "--workdir"), (storage.opened(config.cache), "config.cache")):
        if storage.store_of(folder) and distributed.count() > 1:
            raise ConfigError(f"{key}: a run of several processes needs a path that all of them see, not a URL")
    with distributed.attended(), leases.working_in(workdir) if is_first() else nullcontext():
        run(config, workdir)


def set_devices(config: ConfigDict) -> None:
    """The virtual devices of a CPU, before JAX starts."""
    jax.config.update("jax_num_cpu_devices", config.mesh.cpu_devices)


def start(config: ConfigDict) -> None:
    """Devices and processes, before anything touches JAX. Raises ClusterError, ConnectionError: as `distributed.start`."""
    set_devices(config)
    here = clusters.place(config.mesh.coordinator, config.mesh.processes, config.mesh.process)
    distributed.start(here, of_all_processes(config))


def run(config: ConfigDict, workdir: Path) -> None:
    """All that a configuration asks for: one method, the methods beside it, and the page that shows them."""
    # The same programs are compiled once a machine, not once a run: comparisons and reruns find them here.
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # the user's own stays
        jax.config.update("jax_compilation_cache_dir", str(storage.opened(config.cache).absolute() / "xla"))

    # ---- what cannot run is refused before anything does
    checks.check_values(config)
    if config.task != "pretrain":
        checks.check_all(config, workdir)
    elif distributed.count() > 1:
        raise ConfigError("pretraining runs as one process; start it alone, or with config.mesh.processes=1")
    wait("checked")

    # ---- configurations of another kind: pretraining, and one run for each auxiliary category
    if config.task == "pretrain":
        from experiments import pretrain  # here: TensorFlow takes seconds, and refusals need none of it

        after_first("claimed", lambda: claim_workdir(config, workdir))
        return pretrain.run(config, workdir)
    if config.task == "protocol":
        after_first("claimed", lambda: claim_workdir(config, workdir))
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
    if is_first():
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
    after_first("claimed", lambda: claim_workdir(config, workdir))
    if config.task != "stage1" and (found := shared("finished", lambda: evaluations.finished(config, workdir))):
        return found
    from data_pipelines import input as batches  # here: TensorFlow takes seconds, and what is finished needs none of it

    trained = shared("trained", lambda: is_trained(config, workdir))
    trains = METHODS[config.method].trains and not trained
    mesh = connected(make_mesh(config.mesh.data, config.mesh.model, config.mesh.view))
    time = Timer(workdir / "seconds.json")

    # ---- records: what is trained on, and what is evaluated
    records = tested = None
    with time("render"):
        if trains:
            records = after_first("records", lambda: load_records(config, say))
        if config.task != "stage1":
            same = records and not config.target.name
            tested = records if same else after_first("records", lambda: records_to_evaluate(config, workdir, say))

    # ---- method: its parameters, with the weights that it begins with or the trained ones
    method, params, stats, weights = build_model(config)
    after_first("weights", lambda: check_weights(workdir, weights, method.scores_only))
    if trained:
        params, stats = finished_model(model_folder(workdir), params, stats, weights)
    elif counts := parameter_count(params):
        say("parameters: " + ", ".join(f"{group} {count:,}" for group, count in counts.items()))
    params, stats = place(params, mesh), jax.device_put(stats, replicated(mesh))
    alone = method.for_inference()
    saving = method.with_remat(True).stages if remat_of(config) == "auto" else ()

    # ---- stages: each begins with the features of its objects that do not change while it trains
    if trains:
        category = [config.data.train_category]
        key = training_key(config, records)
        after_first("objects", lambda: check_objects(workdir, key, begun=bool(steps_done(workdir))))
    for number, stage in enumerate(method.stages if trains else ()):
        with time(stage.name):
            needed = trains_on(config)
            objects = {"categories": category, "batch_size": stage.batch_size}
            places = batch_places(mesh, stage.batch_size)
            everything = partial(batches.eval_batches, records, optional=needed, places=places, **objects)
            about = f"{records.key} {category[0]}"
            source = Source(alone.stages[number], params, stats, everything, len(records.rows(category)), about, mesh)
            stored = find_features(source, storage.opened(config.cache) / "features")
            store, needed = stored or FeatureStore(), () if stored else needed  # what the features read is in them
            read = partial(batches.train_batches, records, optional=needed, seed=config.seed, places=places, **objects)
            steps = batches.steps_per_epoch(records, category, stage.batch_size)
            how = FitConfig(workdir / stage.name, mesh, config.seed, config.save_every_s)
            writer = MetricWriter(workdir / "metrics.jsonl", config.loggers) if is_first() else None
            coming = lambda first: store.join(read(start_step=first))  # noqa: B023, E731  read within this iteration alone
            if saving:
                stage = replace(stage, saving=saving[number])  # taken where the memory asks for it
            params, stats = fit(stage, params, stats, coming, steps, how, writer)
        if config.task == "stage1" == stage.name and stage is not method.stages[-1]:
            return {}
    if trains and method.stages:
        learned, means = distributed.whole(trained_groups(params), mesh), distributed.whole(stats, mesh)
        if is_first():
            save_model(workdir / "model", config, learned, means, weights, steps=steps_done(workdir))
    if config.task == "stage1":
        return {}

    # ---- evaluation: a file of scores for each object
    index = index_rows(tested, test_categories(config, tested))
    # One hash stands alone in the key: evaluations of earlier versions are found again.
    more = [weights[name] for name in method.scores_only if name in weights]
    this = evaluations.of(workdir, config, tested.key, more[0] if len(more) == 1 else more or None)
    if is_first():
        this.claim({"settings": settings(config)})
        if this.is_first:
            this.show()  # its files are written where those of another may be shown
    wait("evaluation claimed")
    time_of = time if this.is_first else Timer(this.home / "seconds.json")
    with time_of("eval"):
        size, together = batch_size(config, mesh), shares_statistics(config)
        read = partial(batches.eval_batches, tested, batch_size=size, places=batch_places(mesh, size))
        unscored = partial(batches_with, read, index)
        how = {"mesh": mesh, "rgb": wants_rgb(config), "together": together}
        evaluate.score_objects(alone, params, stats, index, unscored, this.home / "eval", **how)
        tables = shared("tables", lambda: evaluate.tabulate(index, this.home / "eval"))

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
    if is_first():
        evaluate.write_scores(index, this.home / "eval", this.home / "scores.csv")
        write_json(this.home / "results.json", results)
    wait("results")
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
        if distributed.count() > 1 or wanted & set(batch["object_index"][batch["real"]].tolist()):
            yield batch


if __name__ == "__main__":
    sys.exit(command(main))
