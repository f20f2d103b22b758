"""Where numbers go while a run is under way: one JSON object a line, and the loggers that are asked for."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import uuid
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Protocol

from data_pipelines.files import write_atomic


class Logger(Protocol):
    """Shows numbers of a run somewhere else. What is written again after a kill may be there twice."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Values of a stage's step, named 'stage/name'."""


class TensorBoard:
    """Event files in workdir/tensorboard."""

    def __init__(self, workdir: Path):
        package, suffix = importlib.import_module("tensorboardX"), f".{uuid.uuid4().hex[:8]}"  # else named by the second alone
        self._writer = package.SummaryWriter(str(workdir / "tensorboard"), filename_suffix=suffix)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()


class WandB:
    """A Weights & Biases run named after the work directory, taken up again by a rerun; files of an offline one lie in it.
    Account and project are those of its own environment variables."""

    def __init__(self, workdir: Path):
        wandb = importlib.import_module("wandb")
        name = "-".join(workdir.absolute().parts[-2:])
        self._run = wandb.init(dir=str(workdir), name=name, id=_id(workdir), resume="allow", settings={"silent": True})

    def write(self, step: int, values: Mapping[str, float]) -> None:
        # No `step=`: it has to grow, and every stage begins at one.
        self._run.log({**values, **{f"{name.partition('/')[0]}/step": step for name in values}})


class MLflow:
    """An MLflow run named after the work directory; the store is that of MLFLOW_TRACKING_URI, else workdir/mlflow.db."""

    def __init__(self, workdir: Path):
        tracking = importlib.import_module("mlflow.tracking")
        uri = None if tracking.is_tracking_uri_set() else f"sqlite:///{workdir.absolute() / 'mlflow.db'}"
        self._client = tracking.MlflowClient(uri)
        place = str((workdir / "mlflow").absolute()) if uri else None
        found = self._client.get_experiment_by_name("gsclip_jax")
        experiment = found.experiment_id if found else self._client.create_experiment("gsclip_jax", place)
        name = _id(workdir)
        runs = self._client.search_runs([experiment], f"tags.workdir = '{name}'", max_results=1)
        run = runs[0] if runs else self._client.create_run(experiment, tags={"workdir": name}, run_name=workdir.name)
        self._run = run.info.run_id

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._client.log_metric(self._run, name, value, step=step)


# name -> (what shows, the package it needs, the extra of this project that installs it)
LOGGERS: dict[str, tuple[Callable[[Path], Logger], str, str]] = {
    "tensorboard": (TensorBoard, "tensorboardX", "tensorboard"),
    "wandb": (WandB, "wandb", "wandb"),
    "mlflow": (MLflow, "mlflow", "mlflow"),
}


def missing(name: str) -> str | None:
    """How to install what a logger of LOGGERS needs; None where it is there."""
    _, package, extra = LOGGERS[name]
    return None if importlib.util.find_spec(package) else f"pip install 'gsclip-jax[{extra}]'"


class MetricWriter:
    """Appends {"step", "stage", ...} lines to `path`; a resumed run drops the lines it is about to write again.

    Args:
      path: metrics.jsonl of the work directory.
      loggers: of LOGGERS, which show the same numbers.
    """

    def __init__(self, path: str | Path, loggers: Iterable[str] = ()):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._loggers = [LOGGERS[name][0](self.path.parent) for name in loggers]

    def rewind(self, stage: str, step: int) -> None:
        """Removes the lines of `stage` after `step`, and a torn last line: they belong to a killed run."""
        if not self.path.exists():
            return
        kept = []
        for line in self.path.read_text().splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue
            if not (row.get("stage") == stage and row.get("step", 0) > step):
                kept.append(line + "\n")
        write_atomic(self.path, "".join(kept))

    def write(self, stage: str, step: int, values: dict[str, float]) -> None:
        row = {"stage": stage, "step": step, **{name: float(f"{value:.6g}") for name, value in values.items()}}
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        for logger in self._loggers:
            logger.write(step, {f"{stage}/{name}": value for name, value in values.items()})


def _id(workdir: Path) -> str:
    """A name that a rerun in the same work directory has again."""
    return hashlib.sha256(str(workdir.absolute()).encode()).hexdigest()[:12]
