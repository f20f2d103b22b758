"""What lies in a data set beside what is meant: it is neither taken nor in the way, and everything left out is said."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from data_pipelines import prepare
from data_pipelines.datasets import listing, open_reader
from data_pipelines.records import sheets
from data_pipelines.records import store as records
from data_pipelines.scan import DataError
from tests.data_pipelines import test_anomaly_shapenet, test_mvtec3d, test_prerendered
from tests.data_pipelines.test_layouts import SMALL, tiffs
from tests.scans import ellipsoid, write_pcd, write_set


def lines(reader) -> str:
    for category in reader.categories():
        reader.samples(category)
    return "\n".join(reader.listing.lines())


def everything(reader) -> list:
    return [sample for category in reader.categories() for sample in reader.samples(category)]


def ids(reader, category) -> list[str]:
    return [sample.id for sample in reader.samples(category)]


def litter(folder: Path) -> None:
    """What file servers and operating systems leave in every folder."""
    for name in ("@eaDir/0.ply", ".AppleDouble", "$RECYCLE.BIN/good", "lost+found"):
        (folder / name).mkdir(parents=True)
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", "._000.tiff", "._8_good.pcd", "._a.pcd", "._a.tiff"):
        (folder / name).write_bytes(b"\0\5\x16\7")


def clouds(root, *kinds):
    for i, kind in enumerate(kinds):
        write_pcd(root / kind / "a.pcd", ellipsoid(300, i, kind != "good")[0])


LAYOUTS = {
    "real3d": lambda root: write_set(root, ("egg",), 300, 1, 1),
    "anomaly_shapenet": lambda root: test_anomaly_shapenet.write_class(root, "vase0", ("positive0", "bulge1")),
    "mvtec3d": lambda root: [test_mvtec3d.write_scan(root / "lid" / "test" / kind, "000", test_mvtec3d.table()[0])
                             for kind in ("good", "cut")],
    "prerendered": lambda root: [test_prerendered.write_scan(root / "lid" / "test" / kind, "000", "tiff", 0, kind != "good")
                                 for kind in ("good", "cut")],
    "folder": lambda root: clouds(root / "part", "good", "dent"),
    "folder of tiffs": tiffs,
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_litter_of_systems_changes_nothing(layout, tmp_path):
    name, root = layout.split()[0], tmp_path / "set"
    LAYOUTS[layout](root)
    before = everything(open_reader(name, root))
    assert not lines(open_reader(name, root))
    for folder in [root, *(path for path in root.rglob("*") if path.is_dir())]:
        litter(folder)
    reader = open_reader(name, root)
    assert before == everything(reader)
    assert {row["why"] for row in reader.listing.rows()} == {listing.HIDDEN}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_endings_in_any_spelling(layout, tmp_path):
    name, root = layout.split()[0], tmp_path / "set"
    LAYOUTS[layout](root)
    reader = open_reader(name, root)
    before = [reader.load(sample) for sample in everything(reader)]
    for path in [path for path in root.rglob("*.*") if path.is_file()]:
        path.rename(path.with_suffix(path.suffix.upper() if path.suffix != ".tiff" else ".TIF"))
    reader = open_reader(name, root)
    after = [reader.load(sample) for sample in everything(reader)]
    assert len(after) == len(before) and not lines(reader)
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one.xyz, other.xyz)
        np.testing.assert_array_equal(one.mask, other.mask)
        assert (one.rgb is None) == (other.rgb is None)


def test_folders_links_and_other_files_among_the_scans(tmp_path):
    clouds(tmp_path / "part", "good", "dent")
    good = tmp_path / "part" / "good"
    (good / "old.pcd").mkdir()
    (good / "scan.las").write_bytes(b"LASF")
    (good / "lost.pcd").symlink_to(tmp_path / "nowhere.pcd")
    (good / "self.pcd").symlink_to(good / "self.pcd")
    os.mkfifo(good / "pipe.pcd")  # reading it would wait for ever
    (tmp_path / "part" / "notes").mkdir()
    (tmp_path / "docs").mkdir()
    write_pcd(tmp_path / "part" / "reference.pcd", ellipsoid(300, 5)[0])
    (tmp_path / "part" / "masks").mkdir()
    (tmp_path / "part" / "masks" / "aa.txt").write_text("0\n")
    reader = open_reader("folder", tmp_path)
    assert reader.categories() == ["part"] and ids(reader, "part") == ["dent_a", "good_a"]
    said = {row["why"]: row["names"] for row in reader.listing.rows()}
    assert said == {
        "no category (nothing laid out as <category>/good/* and <category>/defective/*)": ["docs"],
        "in no folder that says what kind of scan it is": ["part/reference.pcd"],
        "a folder where files are expected": ["part/good/old.pcd"], "no scan in it": ["part/notes"],
        "another format": ["part/good/scan.las"], "neither a file nor a folder": ["part/good/pipe.pcd"],
        "a link that leads nowhere": ["part/good/lost.pcd"],
        "not readable (Too many levels of symbolic links)": ["part/good/self.pcd"],
        "marks that no defective scan takes": ["part/masks/aa.txt"]}
    assert "left out, another format: 1 (part/good/scan.las)" in reader.listing.lines()


def test_names_in_a_line_are_few(tmp_path):
    found = listing.Listing(tmp_path)
    for i in range(50):
        found.leave(tmp_path / f"{i:02}\n\x1b.txt", "text")
    assert found.lines() == ["left out, text: 50 (00\\n\\x1b.txt, 01\\n\\x1b.txt, 02\\n\\x1b.txt, ...)"]
    (row,) = found.rows()
    assert row["count"] == 50 and len(row["names"]) == listing.KEPT


def test_categories_with_defective_scans_alone(tmp_path):
    clouds(tmp_path / "set" / "full", "good", "dent")
    clouds(tmp_path / "set" / "bad", "dent", "crack")
    clouds(tmp_path / "one" / "part", "dent")
    reader = open_reader("folder", tmp_path / "set")
    assert reader.categories() == ["bad", "full"] and [s.label for s in reader.samples("bad")] == [1, 1]
    for root, home in ((tmp_path / "one", tmp_path / "one"), (tmp_path / "one" / "part", tmp_path / "one" / "part")):
        reader = open_reader("folder", root)
        assert reader.root == home and reader.categories() == ["part"] and ids(reader, "part") == ["dent_a"]
    said = []
    assert prepare.main(["--data=folder", f"--root={tmp_path / 'set'}", f"--out={tmp_path / 'out'}", *SMALL], said.append) == 0
    assert "category 'bad' has no good scan: all its 2 count as defective" in said


def test_a_stray_scan_beside_the_folders_moves_no_level(tmp_path):
    """As a file server keeps @eaDir/reference.ply for reference.ply."""
    clouds(tmp_path / "part", "good", "dent")
    write_pcd(tmp_path / "part" / "reference.pcd", ellipsoid(300, 5)[0])
    assert open_reader("folder", tmp_path).categories() == ["part"]


@pytest.mark.parametrize("name", ["Good", "GOOD"])
def test_good_in_any_spelling(name, tmp_path):
    clouds(tmp_path / "part", name, "dent")
    assert {(s.defect, s.label) for s in open_reader("folder", tmp_path).samples("part")} == {("good", 0), ("dent", 1)}
    test_mvtec3d.write_scan(tmp_path / "m" / "lid" / "test" / name, "000", test_mvtec3d.table()[0])
    assert [s.label for s in open_reader("mvtec3d", tmp_path / "m").samples("lid")] == [0]


@pytest.mark.parametrize("stem, template", [
    ("10_temperature", False), ("10_attempt_good", False), ("11_tempered_sink", False), ("12_template_crack", False),
    ("1_template", True), ("2_template_cut", True), ("template3", True), ("3_temp", True)])
def test_templates_are_told_by_the_word(stem, template, tmp_path):
    root = write_set(tmp_path, ("egg",), 300, 1, 1)
    write_pcd(root / "egg" / "test" / f"{stem}.pcd", ellipsoid(300, 3)[0])
    reader = open_reader("real3d", root)
    assert (stem in ids(reader, "egg")) != template
    assert lines(reader) == (f"left out, a template: 1 (egg/test/{stem}.pcd)" if template else "")
    (root / "egg" / "gt" / f"{stem}.txt").write_text("0 0 0 1\n")  # somebody marked it: a scan
    assert stem in ids(open_reader("real3d", root), "egg")


def test_ground_truth_of_no_scan_is_said(tmp_path):
    root = write_set(tmp_path / "r", ("egg",), 300, 1, 1)
    shutil.copy(root / "egg" / "gt" / "9_bulge.txt", root / "egg" / "gt" / "77_bulge.txt")
    assert "ground truth of no scan: 1 (egg/gt/77_bulge.txt)" in lines(open_reader("real3d", root))
    LAYOUTS["mvtec3d"](tmp_path / "m")
    gt = tmp_path / "m" / "lid" / "test" / "cut" / "gt"
    shutil.copy(gt / "000.png", gt / "001.png")
    (tmp_path / "m" / "lid" / "test" / "hole" / "xyz").mkdir(parents=True)
    said = lines(open_reader("mvtec3d", tmp_path / "m"))
    assert "ground truth of no scan: 1 (lid/test/cut/gt/001.png)" in said and "nothing in its xyz/: 1 (lid/test/hole)" in said


def test_two_spellings_of_one_name(tmp_path):
    """The one spelt as the layout has it is read; two scans would meet under one name."""
    LAYOUTS["mvtec3d"](tmp_path)
    xyz = tmp_path / "lid" / "test" / "cut" / "xyz"
    gt = tmp_path / "lid" / "test" / "cut" / "gt"
    for name in ("000.TIFF", "000.tif"):
        (xyz / name).write_bytes(b"not the one")
    (gt / "000.PNG").write_bytes(b"nor this")
    reader = open_reader("mvtec3d", tmp_path)
    (cut,) = [sample for sample in reader.samples("lid") if sample.defect == "cut"]
    assert Path(cut.path).name == "000.tiff" and Path(cut.mask_path).name == "000.png"
    assert "differs in its ending alone from a file that is read: 3 (" in lines(reader)
    clouds(tmp_path / "f" / "part", "good")
    shutil.copy(tmp_path / "f" / "part" / "good" / "a.pcd", tmp_path / "f" / "part" / "good" / "a.PCD")
    assert sorted(ids(open_reader("folder", tmp_path / "f"), "part")) == ["good_a.PCD", "good_a.pcd"]  # told apart, both read


def barred(monkeypatch, *folders: Path) -> None:
    """Folders that cannot be entered, also for root, who can enter all."""
    scandir = os.scandir

    def fake(path="."):
        if any(Path(path) == folder or Path(path).is_relative_to(folder) for folder in folders):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(listing.os, "scandir", fake)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_folders_that_cannot_be_entered(layout, tmp_path, monkeypatch):
    name, root = layout.split()[0], tmp_path / "disk"
    LAYOUTS[layout](root / "a" / "set")
    for folder in ("private", "a/private", "a/set/private"):
        (root / folder).mkdir()
    barred(monkeypatch, root / "private", root / "a" / "private", root / "a" / "set" / "private")
    reader = open_reader(name, root)
    assert reader.root == root / "a" / "set" and len(reader.categories()) == 1
    assert lines(reader) == "left out, cannot be entered (Permission denied): 1 (private)"
    barred(monkeypatch, root / "a")
    with pytest.raises(DataError, match=r"no category folder.*cannot be entered \(Permission denied\): 2 \(a, private\)"):
        open_reader(name, root)


def test_a_real_folder_of_another_owner(tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root can enter every folder")
    clouds(tmp_path / "part", "good", "dent")
    (tmp_path / "lost+found").mkdir(mode=0o000)
    (tmp_path / "part" / "private").mkdir(mode=0o000)
    try:
        reader = open_reader("folder", tmp_path)
        assert ids(reader, "part") == ["dent_a", "good_a"] and "cannot be entered" in lines(reader)
    finally:
        (tmp_path / "part" / "private").chmod(0o700)
        (tmp_path / "lost+found").chmod(0o700)


def test_records_list_what_was_left_out_and_the_command_says_it(tmp_path, capsys):
    clouds(tmp_path / "set" / "part", "good", "dent")
    (tmp_path / "set" / "part" / "good" / "b.las").write_bytes(b"LASF")
    for _ in range(2):  # found again: it is still so
        said = []
        arguments = ["--data=folder", f"--root={tmp_path / 'set'}", f"--out={tmp_path / 'out'}", *SMALL]
        assert prepare.main(arguments, said.append) == 0
        assert "left out, another format: 1 (part/good/b.las)" in said
    (folder,) = (tmp_path / "out").glob("folder-*")
    assert records.open_records(folder).left_out == [{"why": "another format", "count": 1, "names": ["part/good/b.las"]}]
    assert capsys.readouterr().err == ""


def test_nothing_found_says_what_lies_there(tmp_path):
    (tmp_path / "part" / "good").mkdir(parents=True)
    (tmp_path / "part" / "good" / "a.las").write_bytes(b"LASF")
    with pytest.raises(DataError, match=r"holds no category folder .*another format: 1 \(part/good/a.las\)"):
        open_reader("folder", tmp_path)


@pytest.mark.parametrize("name", ["..", "a/b", "../../etc", "\x1b[31m", "line\nbreak", "=cmd|'/c calc'!A1", "<script>", "ü" * 120,
                                  "a\udcff"])
def test_sheets_lie_beside_the_records_whatever_a_category_is_called(name, tmp_path):
    path = sheets.path_of(tmp_path, name)
    assert path.parent == tmp_path and path.name.isprintable() and len(path.name.encode()) < 200 and path.suffix == ".png"
    assert path != sheets.path_of(tmp_path, name + "x")
    assert sheets.path_of(tmp_path, "left bracket").name == "sheet-left bracket.png"


def test_categories_of_any_name_come_through(tmp_path):
    names = ["<script>alert(1)<", "=cmd", "line\nbreak", "\x1b[31mred", "ü" * 120, "日本", "'; --", "-n", "%s{0}"]
    for name in names:
        clouds(tmp_path / "set" / name, "good", "dent\t1")
    said = []
    assert prepare.main(["--data=folder", f"--root={tmp_path / 'set'}", f"--out={tmp_path / 'out'}", *SMALL], said.append) == 0
    assert all(line.isprintable() for line in said) and said[-1].startswith("verified: ")
    (folder,) = (tmp_path / "out").glob("folder-*")
    assert records.open_records(folder).categories() == sorted(names) and len(list(folder.glob("sheet-*.png"))) == len(names)


def test_a_name_that_is_no_text_is_left_out(tmp_path):
    clouds(tmp_path / "part", "good", "dent")
    os.mkdir(os.fsencode(tmp_path / "part") + b"/caf\xe9")
    assert r"a name that is not UTF-8 (rename it): 1 (part/caf\udce9)" in lines(open_reader("folder", tmp_path))
