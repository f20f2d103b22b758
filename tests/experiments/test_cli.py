"""The console command: every subcommand is the module's own main, with its options, help and exit status."""

import importlib
import subprocess
import sys

import pytest

from experiments.cli import COMMANDS


def gsclip(*arguments):
    return subprocess.run([sys.executable, "-m", "experiments.cli", *arguments], capture_output=True, text=True)


def test_without_a_subcommand_it_lists_them():
    done = gsclip("--help")
    assert done.returncode == 0 and all(name in done.stdout for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_the_commands_own(name, capsys):
    done = gsclip(name, "--help")
    module = importlib.import_module(COMMANDS[name][0])
    try:
        status = module.main(["--help"])
    except SystemExit as ended:
        status = ended.code
    assert done.returncode == (status or 0) == 0 and done.stdout == capsys.readouterr().out


def test_a_wrong_option_is_the_commands_one_line():
    done = gsclip("run", "--config", "stage3.py")
    assert done.returncode == 1 and "did you mean 'stage" in done.stderr and len(done.stderr.splitlines()) == 1
    assert gsclip("prepare", "--pionts=5").returncode == 1
    assert gsclip("inspct").returncode == 2


def test_help_says_what_keys_are_for():
    out = gsclip("run", "--config", "stage2.py:real3d", "--help").stdout.splitlines()
    found = {line.split("=")[0].strip(): line for line in out if line.startswith("  ")}
    assert "learned context tokens" in found["model.n_ctx"]  # of a method's Config
    assert "scored points M" in found["data.points"] and "categories" not in found["data.points"]
    assert "sides" not in found["seed"] and found["model.switches"].endswith("by name")
