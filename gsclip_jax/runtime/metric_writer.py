"""Where numbers go while a run is under way: one JSON object a line, TensorBoard where it is installed."""

from __future__ import annotations

import json
from pathlib import Path

from data_pipelines.files import write_atomic


class MetricWriter:
    """Appends {"step", "stage", ...} lines to `path`; a resumed run drops the lines it is about to write again.

    Args:
      path: metrics.jsonl of the work directory.
      tensorboard: also write event files beside it, if tensorflow's or torch's summary writer can be imported.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._tensorboard = _tensorboard_writer(self.path.parent / "tensorboard")

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
        if self._tensorboard is not None:
            for name, value in values.items():
                self._tensorboard.add_scalar(f"{stage}/{name}", value, step)


def _tensorboard_writer(folder: Path):
    try:
        from tensorboardX import SummaryWriter
    except ImportError:  # optional: the JSON lines hold everything
        return None
    return SummaryWriter(str(folder))


