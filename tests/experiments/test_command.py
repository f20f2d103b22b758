"""How commands end: --help, a closed pipe, a platform that is not there; and what they say meanwhile."""

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest

from data_pipelines.progress import Progress, named
from experiments import summary
from experiments.command_line import load_config

ROOT = Path(__file__).parents[2]
PROGRAMS = sorted(
    path.relative_to(ROOT) for folder in ("benchmarks", "data_pipelines", "experiments", "gsclip_jax")
    for path in (ROOT / folder).rglob("*.py") if '\nif __name__ == "__main__"' in path.read_text()
)  # fmt: skip


def command_of(path: Path) -> list[str]:
    if path.parts[0] == "benchmarks":
        return [sys.executable, str(path)]
    return [sys.executable, "-m", ".".join(path.with_suffix("").parts).removesuffix(".__main__")]


def run(command: str | list[str], **environment) -> subprocess.CompletedProcess:
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    shell = isinstance(command, str)
    return subprocess.run(command, shell=shell, executable="/bin/bash" if shell else None, capture_output=True, text=True,
                          cwd=ROOT, env=env)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("path", PROGRAMS, ids=str)
def test_every_command_has_help(path):
    done = run([*command_of(path), "--help"])
    assert (done.returncode, done.stderr) == (0, "") and len(done.stdout) > 40


def test_help_of_a_configuration_lists_its_keys():
    done = run([sys.executable, "-m", "experiments.run", "--config", "stage2.py:real3d", "--help"])
    assert done.returncode == 0 and "stage1.epochs=15" in done.stdout and "real3d" in done.stdout


PROGRAM = """
import sys
from data_pipelines.command import command
def main():
    for number in range(50_000):
        print(number)
        print(number, file=sys.stderr)
    open(sys.argv[1], "w").write("done")
    return int(sys.argv[2])
sys.exit(command(main))
"""


@pytest.mark.parametrize("pipe, status", [("|", 0), ("|&", 0), ("|", 3)])
def test_a_closed_pipe_is_no_error_and_stops_no_work(tmp_path, pipe, status):
    (tmp_path / "program.py").write_text(PROGRAM)
    made = tmp_path / "made"
    done = run(f"set -o pipefail; {sys.executable} {tmp_path / 'program.py'} {made} {status} {pipe} head -1")
    assert done.returncode == status and done.stdout == "0\n" and made.read_text() == "done"
    assert "Error" not in done.stderr and "Exception" not in done.stderr


def test_a_command_in_a_closed_pipe():
    done = run(f"set -o pipefail; {sys.executable} -m experiments.run --help | true")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("platform", ["cuda", "nonsense"])
def test_a_platform_that_is_not_there_is_one_line(tmp_path, platform):
    command = [sys.executable, "-m", "experiments.run", "--config", "stage2.py", "--workdir", str(tmp_path / "w")]
    done = run([*command, f"--config.cache={tmp_path / 'cache'}"], JAX_PLATFORMS=platform)
    if "finds none" not in done.stderr and platform == "cuda":
        pytest.skip("there is a CUDA plug-in here")
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1
    assert line.startswith(f"error: JAX_PLATFORMS={platform}: no such device here") and "set JAX_PLATFORMS=cpu" in line


def test_a_package_that_is_not_installed_is_recorded_as_such(monkeypatch):
    def version(name, found=importlib.metadata.version):
        if name == "transformers":
            raise importlib.metadata.PackageNotFoundError(name)
        return found(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    found = summary.versions()
    assert found["transformers"] == "not installed" and found["jax"][0].isdigit()


def test_pretraining_writes_under_its_work_directory_unless_told():
    assert load_config("pretrain.py").out == ""
    tracked = [row.parent for row in (ROOT / "gsclip_jax" / "assets").rglob("*.safetensors")]
    assert tracked and not any(str(folder) in str(value) for folder in tracked for value in load_config("pretrain.py").values())


def test_the_time_left_leaves_the_compilation_out(monkeypatch, capsys):
    clock = [0.0]
    monkeypatch.setattr("data_pipelines.progress.time.monotonic", lambda: clock[0])
    progress = Progress("stage1", 100)
    clock[0] = 80.0  # compiled
    progress.update(0)
    clock[0] = 90.0
    progress.update(10, "loss 1.000")
    assert capsys.readouterr().err.splitlines() == ["stage1 0/100", "stage1 10/100, 90 s left  loss 1.000"]


def test_progress_names_the_run(capsys):
    with named("plain_clip"):
        Progress("evaluating", 2).update(2)
    Progress("evaluating", 2).update(2)
    assert capsys.readouterr().err.splitlines() == ["plain_clip evaluating 2/2", "evaluating 2/2"]
