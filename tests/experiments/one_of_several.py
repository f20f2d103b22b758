"""One process of several, without rendering: a tiny model, both stages from stored features, scores and tables.

python -m tests.experiments.one_of_several FOLDER PORT PROCESSES PROCESS DEVICES SAVE_EVERY_S STEPS [DATA,VIEW,MODEL] [double]

FOLDER then has met0, met1, ... (they are together), trained.npz, results.json, and what a run has beside them. With `double` all
that is float32 is float64, parameters and scores too: what still differs between two meshes is no round-off.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines.command import guarded
from gsclip_jax.evaluation.score import mean, score_objects, tabulate
from gsclip_jax.runtime import clusters, distributed
from gsclip_jax.runtime.metric_writer import MetricWriter
from gsclip_jax.runtime.sharding import batch_places, make_mesh, place, replicated
from gsclip_jax.training.feature_store import Source, find_features
from gsclip_jax.training.train import FitConfig, fit
from tests import tiny

ROWS = 4
INDEX = [{"object_index": number, "category": "tiny", "name": str(number), "defect": ""} for number in range(ROWS)]


def main() -> int:
    folder, (port, processes, process, devices) = Path(sys.argv[1]), map(int, sys.argv[2:6])
    save_every_s, steps = float(sys.argv[6]), int(sys.argv[7])
    shape = [int(size) for size in sys.argv[8].split(",")] if len(sys.argv) > 8 else [-1, 1, 1]

    def work() -> None:
        jax.config.update("jax_num_cpu_devices", devices)
        if "double" in sys.argv:
            jax.config.update("jax_enable_x64", True)
            jnp.float32 = jnp.float64
        jax.config.update("jax_compilation_cache_dir", str(folder.parent / "xla"))
        here = clusters.told(f"127.0.0.1:{port}", processes, process) if processes > 1 else None
        distributed.start(here, {"steps": steps}, limit=600)
        with distributed.attended():
            (folder / f"met{process}").touch()
            train_and_score(folder, save_every_s, steps, shape)

    return distributed.program(lambda: guarded(work))


def train_and_score(folder: Path, save_every_s: float, steps: int, shape: list[int]) -> None:
    mesh, method = distributed.connected(make_mesh(shape[0], shape[2], shape[1])), tiny.method()
    params, stats = tiny.params(method)
    if jax.config.jax_enable_x64:
        params, stats = jax.tree.map(lambda x: x.astype(jnp.float64), (params, stats))
    params, stats = place(params, mesh), jax.device_put(stats, replicated(mesh))
    places = batch_places(mesh, ROWS)

    def mine(batch: dict) -> dict:
        first = np.zeros(len(places), bool)
        first[np.unique(places, return_index=True)[1]] = True
        return {name: value[places] for name, value in batch.items()} | {"real": first}

    def objects(_=None):
        return iter([mine(tiny.batch(ROWS))])

    for stage in method.stages:
        stage = replace(stage, epochs=1)
        source = Source(stage, params, stats, objects, ROWS, "tiny", mesh)
        store = find_features(source, folder / "features")
        writer = MetricWriter(folder / "metrics.jsonl") if distributed.is_first() else None

        def batches(first: int, store=store):
            while True:
                yield from store.join(objects())

        how = FitConfig(folder / stage.name, mesh, 0, save_every_s, log_every=1)
        params, stats = fit(stage, params, stats, batches, steps, how, writer)
    trained = distributed.whole({group: params[group] for stage in method.stages for group in stage.train}, mesh)
    if distributed.is_first():
        np.savez(folder / "trained.npz", *jax.tree.leaves(jax.device_get(trained)))
    score_objects(method, params, stats, INDEX, objects, folder / "eval", mesh=mesh)
    if distributed.is_first():
        tables = tabulate(INDEX, folder / "eval")
        (folder / "results.json").write_text(json.dumps({"categories": tables, "mean": mean(tables)}))


if __name__ == "__main__":
    sys.exit(main())
