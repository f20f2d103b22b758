"""Numbers of a run: JSON lines always, loggers where they are asked for, refused before work where they cannot be."""

import json
import subprocess
import sys

import pytest

from experiments.checks import check_values
from experiments.configs.common import embedded
from experiments.identity import RUNNING, part_of
from gsclip_jax.parts import ConfigError
from gsclip_jax.runtime.metric_writer import LOGGERS, MetricWriter, missing

VALUES = {"loss": 1.25, "grad_norm": 0.5}


def written(tmp_path, name):
    """A run in two parts, as after a kill."""
    if how := missing(name):
        pytest.skip(f"{name} is not installed: {how}")
    path = str(tmp_path / "run" / "metrics.jsonl")
    for step in (1, 2):  # processes of their own: their ends flush what is left
        program = f"MetricWriter({path!r}, ({name!r},)).write('stage1', {step}, {VALUES!r})"
        subprocess.run([sys.executable, "-c", f"from {MetricWriter.__module__} import MetricWriter; {program}"], check=True)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines == [{"stage": "stage1", "step": step, **VALUES} for step in (1, 2)]
    return tmp_path / "run"


def test_tensorboard_has_them(tmp_path):
    folder = written(tmp_path, "tensorboard")
    from tensorboardX.proto import event_pb2

    found = {}
    for path in sorted((folder / "tensorboard").iterdir()):
        data = path.read_bytes()
        while data:  # length, its checksum, the event, its checksum
            size = int.from_bytes(data[:8], "little")
            event = event_pb2.Event.FromString(data[12 : 12 + size])
            found |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
            data = data[16 + size :]
    assert found == {(f"stage1/{name}", step): value for name, value in VALUES.items() for step in (1, 2)}


def test_mlflow_has_them_in_one_run(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = written(tmp_path, "mlflow")
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("gsclip_jax").experiment_id])
    assert [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "stage1/loss")] == [(1, 1.25), (2, 1.25)]


def test_wandb_writes_without_an_account_where_it_is_offline(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    folder = written(tmp_path, "wandb")
    assert list((folder / "wandb").glob("offline-run-*/*.wandb"))


def test_loggers_are_no_part_of_a_run_and_unknown_ones_are_refused(monkeypatch):
    assert part_of("loggers") == RUNNING
    config = embedded()
    config.loggers = ("tensorbord",)
    with pytest.raises(ConfigError, match="did you mean 'tensorboard'"):
        check_values(config)
    monkeypatch.setitem(LOGGERS, "elsewhere", (None, "no_such_package", "elsewhere"))
    config.loggers = ("elsewhere",)
    with pytest.raises(ConfigError, match=r"loggers: 'elsewhere' is not installed here: pip install 'gsclip-jax\[elsewhere\]'"):
        check_values(config)
