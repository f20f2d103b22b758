"""One small run for all tests that need a finished one and do not train in it."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from experiments import run

SMALL = [
    "--config.data.synthetic.train_good=3", "--config.data.synthetic.train_defective=3", "--config.data.synthetic.good=2",
    "--config.data.synthetic.defective=2", "--config.data.categories=vase", "--config.data.points=1024",
    "--config.data.synthetic.scan_points=1500", "--config.data.cloud_points=256", "--config.data.views=3",
    "--config.data.image_size=80",
    "--config.pointnet2.centroids=64,32,16,8", "--config.stage1.epochs=1", "--config.stage2.epochs=1",
    "--config.compare=surface_variation", "--config.eval.pictures=2",
]  # fmt: skip


@pytest.fixture(scope="session")
def small_run(tmp_path_factory) -> Callable[[Path], tuple[Path, list[str]]]:
    """Puts a copy of a finished work directory somewhere; returns it and the command that made it. It is trained once for all
    of xdist's processes, from nothing and in a folder with a blank in its name."""
    base = tmp_path_factory.getbasetemp()
    root = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "a small run"

    def command(workdir: Path) -> list[str]:
        return ["--config", "stage2.py", "--workdir", str(workdir), f"--config.cache={root / 'cache'}", *SMALL]

    def copied(workdir: Path) -> tuple[Path, list[str]]:
        with FileLock(root.with_suffix(".lock")):
            if not (root / "w" / "results.json").exists():
                assert run.main(command(root / "w")) == 0
            shutil.copytree(root / "w", workdir)
        return workdir, command(workdir)

    return copied
