"""Saving and resuming training: the only file that knows Orbax (its v1 API).

A checkpoint holds the trainable groups, their optimiser state, running statistics and the step; never the frozen CLIP, which is
named by the hash of its file in the work directory's `config.json`.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from data_pipelines import storage

logging.getLogger("absl").setLevel(logging.WARNING)


class CheckpointError(ValueError):
    """A checkpoint that cannot be read; the message says which and what to do."""


class Checkpoints:
    """The checkpoints of one stage of one run, newest kept.

    Args:
      directory: created when missing. Unfinished saves of a killed run are removed (Orbax writes to a temporary name first).
      keep: how many of the newest checkpoints stay on disk.
    """

    def __init__(self, directory: str | Path, keep: int = 2):
        self.directory = Path(directory).absolute()  # Orbax refuses relative paths
        self.directory.mkdir(parents=True, exist_ok=True)
        self._checkpointer = ocp.training.Checkpointer(
            self.directory,
            preservation_policy=ocp.training.preservation_policies.LatestN(keep),
            cleanup_tmp_directories=True,
        )

    def latest_step(self) -> int | None:
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    def steps(self) -> list[int]:
        """Steps of the checkpoints on disk, ascending."""
        return [found.step for found in self._checkpointer.checkpoints]

    def delete(self, step: int) -> None:
        self._checkpointer.delete(step)

    def save(self, step: int, state: Any) -> None:
        """Writes `state` (a pytree of arrays) as `step`, replacing one of the same step."""
        self._checkpointer.save(step, state, force=True, overwrite=True)
        storage.sync(self.directory)

    def restore(self, like: Any, step: int | None = None) -> Any:
        """Returns the newest (or the given) checkpoint, placed and shaped like `like`.

        Raises:
          CheckpointError: there is none, or it does not hold the same tree of shapes.
        """
        step = self.latest_step() if step is None else step
        if step is None:
            raise CheckpointError(f"no checkpoint in {self.directory}; remove the folder to train again")
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
        try:
            return self._checkpointer.load(step, abstract)
        except (ValueError, KeyError, OSError) as error:
            raise CheckpointError(
                f"checkpoint {self.directory / str(step)} does not fit this configuration or is damaged "
                f"({str(error).splitlines()[0][:200]}); remove {self.directory} to train again"
            ) from error

    def close(self) -> None:
        self._checkpointer.close()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_) -> None:
        self.close()
