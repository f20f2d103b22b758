"""Names from outside: text wherever they are shown, and never a way out of a folder."""

import csv
import io
from pathlib import Path

import pytest

from gsclip_jax.runtime import names

HOSTILE = [
    "<script>alert(1)</script>", "=cmd|' /C calc'!A0", "+1", "-1", "@SUM(1)", "\tx", "\rx", "\nx", " =1", "＝1", "'quoted'",
    "a,b", 'say "x"', "two\nlines", "..", "../../etc/passwd", "/etc/passwd", "a/b", "C:\\x", "", ".", "тест", "部品", "x" * 300,
    "a\udcff", "\ud800", "null\0",
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_a_cell_is_text_and_gives_the_name_back(name):
    text = io.StringIO(newline="")
    csv.writer(text).writerow([names.csv_text(name), "0.5"])
    (cell, value), = csv.reader(io.StringIO(text.getvalue(), newline=""))
    assert value == "0.5" and names.csv_name(cell) == names.decoded(name)
    assert cell.strip(" ")[:1] not in tuple(names.FORMULA)
    cell.encode()  # whatever bytes a file's name has


def test_plain_names_stay_as_they_are():
    for name in ("part", "bolt 2", "тест", "部品", "a.b"):
        assert names.csv_text(name) == names.one_line(name) == names.file_part(name) == name


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_a_file_stays_in_its_folder(name, tmp_path):
    path = tmp_path / names.file_part(name)
    assert path.parent == tmp_path and path.resolve().parent == tmp_path.resolve() and path.name not in ("", ".", "..")
    (tmp_path / f".{path.name}.12345678.npz.tmp").write_bytes(b"")  # room for what is put around it


def test_every_name_has_its_own_file():
    assert len({names.file_part(name) for name in HOSTILE}) == len(HOSTILE)


def test_a_label_is_one_line_without_control_characters():
    assert names.one_line("a\nb\x1b[2J\u202egpj.exe") == r"a\nb\x1b[2J\u202egpj.exe"
    assert Path(names.one_line("a\udcff")).name == r"a\udcff"
