"""One process of several, without rendering: trains a tiny stage from stored features, for `test_processes.py`.

python -m tests.experiments.one_of_several FOLDER PORT PROCESSES PROCESS DEVICES SAVE_EVERY_S STEPS
"""

from __future__ import annotations

import sys
from pathlib import Path

import jax
import numpy as np

from data_pipelines.command import guarded
from gsclip_jax.runtime import clusters, distributed
from gsclip_jax.runtime.metric_writer import MetricWriter
from gsclip_jax.runtime.sharding import batch_places, make_mesh
from gsclip_jax.training.feature_store import Source, find_features
from gsclip_jax.training.train import FitConfig, fit
from tests import tiny

ROWS = 4


def main() -> int:
    folder, (port, processes, process, devices) = Path(sys.argv[1]), map(int, sys.argv[2:6])
    save_every_s, steps = float(sys.argv[6]), int(sys.argv[7])

    def work() -> None:
        jax.config.update("jax_num_cpu_devices", devices)
        here = clusters.told(f"127.0.0.1:{port}", processes, process) if processes > 1 else None
        distributed.start(here, {"steps": steps}, limit=60)
        with distributed.attended():
            train(folder, save_every_s, steps)

    return distributed.program(lambda: guarded(work))


def train(folder: Path, save_every_s: float, steps: int) -> None:
    mesh, stage = make_mesh(), tiny.STAGE2
    params, stats = tiny.params(tiny.method())
    places = batch_places(mesh, ROWS)

    def mine(batch: dict) -> dict:
        first = np.zeros(len(places), bool)
        first[np.unique(places, return_index=True)[1]] = True
        return {name: value[places] for name, value in batch.items()} | {"real": first}

    def objects():
        return iter([mine(tiny.batch(ROWS))])

    source = Source(stage, params, stats, objects, ROWS, "tiny", mesh)
    store = find_features(source, folder / "features")
    writer = MetricWriter(folder / "metrics.jsonl") if distributed.is_first() else None

    def batches(first: int):
        while True:
            yield from store.join([mine(tiny.batch(ROWS))])

    how = FitConfig(folder, mesh, 0, save_every_s, log_every=1)
    params, _ = fit(stage, params, stats, batches, steps, how, writer)
    trained = distributed.whole({group: params[group] for group in stage.train}, mesh)
    if distributed.is_first():
        leaves = jax.tree.leaves(jax.device_get(trained))
        np.savez(folder / "trained.npz", *leaves)


if __name__ == "__main__":
    sys.exit(main())
