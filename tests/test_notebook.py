"""The notebook of the documents runs from top to bottom and says what it says: its cells, in one namespace, in a new process."""

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

NOTEBOOK = Path(__file__).parents[1] / "docs" / "examples" / "own_parts.ipynb"


def test_the_notebook_is_small_and_was_run_in_order():
    book = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(book)
    cells = [cell for cell in book.cells if cell.cell_type == "code"]
    assert NOTEBOOK.stat().st_size < 150_000 and 5 <= len(cells) <= 8
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not [one for cell in cells for one in cell.outputs if one.output_type == "error"]
    assert any("image/png" in one.get("data", {}) for cell in cells for one in cell.outputs)


@pytest.mark.slow
def test_the_notebook_runs(tmp_path):
    book = nbformat.read(NOTEBOOK, as_version=4)
    program = "\n\n".join(cell.source for cell in book.cells if cell.cell_type == "code")
    told = "".join(one.text for cell in book.cells for one in cell.get("outputs", ()) if one.output_type == "stream")
    (tmp_path / "cells.py").write_text(program)
    env = dict(os.environ, MPLBACKEND="Agg", TMPDIR=str(tmp_path), PYTHONPATH=str(NOTEBOOK.parents[2]))
    done = subprocess.run([sys.executable, str(tmp_path / "cells.py")], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "the dented one: defective" in done.stdout and "a good part: sound" in done.stdout
    assert "the dented one: defective" in told and "a good part: sound" in told
