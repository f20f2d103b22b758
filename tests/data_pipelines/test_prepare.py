"""The command that turns scans into records: end to end on a small set, its errors, its checks, and Beam doing the same."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipelines import datasets as recipes
from data_pipelines import prepare
from data_pipelines.records import sheets
from data_pipelines.records import store as records
from data_pipelines.scan import DataError
from tests.data_pipelines.test_records import content, same
from tests.scans import write_pcd, write_set

SMALL = ("--points=600 --image-size=48 --views=3 --window=96 --point-size=4 --cloud-points=128 --neighbours=4 "
         "--workers=2").split()


def run(root, out, *more) -> tuple[int, list[str]]:
    said = []
    status = prepare.main(["--data=real3d", f"--root={root}", f"--out={out}", *SMALL, *more], said.append)
    return status, said


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("scans"))


@pytest.fixture(scope="module")
def made(root, tmp_path_factory):
    """The cache folder and what the command said."""
    out = tmp_path_factory.mktemp("cache")
    status, said = run(root, out)
    assert status == 0
    return out, said


def test_where_open3d_cannot_draw_nothing_is_drawn_unasked(root, tmp_path, monkeypatch, capsys):
    for name in ("__EGL_VENDOR_LIBRARY_DIRS", "LIBGL_DRIVERS_PATH"):  # where the GL library looks for what draws
        monkeypatch.setenv(name, "/nowhere")
    status, _ = run(root, tmp_path / "a")
    assert status == 1 and "Open3D cannot draw here" in capsys.readouterr().err
    status, said = run(root, tmp_path / "b", "--rasteriser=numpy")
    assert status == 0 and records.open_records(only(tmp_path / "b")).recipe.rasteriser == "numpy"


def only(out) -> Path:
    (folder,) = out.glob("real3d-*")
    return folder


def test_prepares_checks_and_shows(made):
    out, said = made
    found = records.open_records(only(out))
    assert len(found.index) == 8 and found.recipe.points == 600 and not found.skipped
    assert any(re.match(r"rendering: 8 of 8 objects, .*(a second|s each), \d+ s left", line) for line in said)
    table = {line.split()[0]: line.split()[1:] for line in said if re.match(r"(ball|egg|all) ", line)}
    size = sum(path.stat().st_size for path in found.dir.glob("object_records/1.0.0/*.tfrecord*")) / 8e6
    assert table["ball"][:3] == ["2", "2", "0"] and table["all"][:3] == ["4", "4", "0"]
    assert float(table["all"][3]) == pytest.approx(size, abs=1e-3)
    assert said[-1] == f"verified: {found.dir}"
    for category in ("ball", "egg"):
        sheet = np.asarray(Image.open(sheets.path_of(found.dir, category)))
        assert sheet.shape[1] == 3 * sheets.LARGEST and sheet.shape[0] > 4 * 2 * sheets.LARGEST
        red = (sheet[..., 0].astype(int) - sheet[..., 1] > 60).reshape(4, -1, sheet.shape[1]).any((1, 2))
        np.testing.assert_array_equal(red, [False, False, True, True])  # the order of the records


def test_a_run_of_the_experiments_finds_them(made, root, monkeypatch):
    out, _ = made
    from experiments import command_line as experiment
    from experiments import data

    same_values = [f"--config.data.{word[2:].replace('-', '_')}" for word in SMALL if not word.startswith("--workers")]
    config, _ = experiment.parse(["--config", "stage2.py:real3d", f"--config.data.root={root}", f"--config.cache={out}",
                                  "--config.data.train_category=egg", *same_values])
    monkeypatch.setattr(records, "_make", lambda *a: pytest.fail("prepared again"))
    assert data.load_records(config).dir == only(out)


@pytest.mark.parametrize("name", ["mvtec3d", "eyecandies", "real3d", "anomaly_shapenet"])
def test_published_recipes_are_those_of_the_presets(name):
    from data_pipelines.records.objects import recipe_of
    from experiments import data
    from experiments.configs.common import preset

    theirs = data.data_config(preset(name))
    ours = recipes.data_config(name, "", {})
    assert recipe_of(theirs).json() == recipe_of(ours).json() and theirs["reader"] == ours["reader"]


def test_published_values():
    """Of docs/data.md's sources: window, point size and cameras differ by data set, the rest does not."""
    wanted = {"mvtec3d": (1024, 12.0, "mvtec3d"), "eyecandies": (1036, 10.0, "eyecandies"), "real3d": (1036, 12.0, "ring"),
              "anomaly_shapenet": (1036, 12.0, "ring"), "prerendered": (1024, 12.0, "mvtec3d"), "folder": (1036, 12.0, "ring")}
    assert {name: (r["window"], r["point_size"], r["cameras"]) for name, r in recipes.RECIPES.items()} == wanted
    for name, found in recipes.RECIPES.items():
        keys = ("points", "image_size", "views", "cloud_points", "neighbours", "sample_seed", "zoom", "back_off")
        assert [found[key] for key in keys] == [112896, 336, 9, 3000, 16, 0, 0.7, None]
        assert not any(found[key] for key in ("cavity", "depth_relief", "fill_gaps"))
        assert found["reader"] == ({"image": 4} if name == "eyecandies" else {})
    sizes = recipes.RECIPES["mvtec3d"]["point_sizes"]
    assert len(sizes) == 10 and (sizes["rope"], sizes["cookie"], sizes["cable_gland"]) == (5, 6, 12)


def test_eyecandies_from_the_sensors_side():
    """The sensor is above the conveyor and before the object: -z and +y in the reader's frame (its up is -z)."""
    from data_pipelines.rendering.cameras import views

    towards, up = np.array([0, 1, -1]) / 2**0.5, np.array([0, 0, -1])
    for name, angles in (("eyecandies", [120, 105, 90, 80, 70]), ("eyecandies_front", [30, 15, 0, 10, 20])):
        turned = views(name).rotations @ towards
        found = np.rad2deg(np.arccos(np.clip(turned[:5, 2], -1, 1)))
        np.testing.assert_allclose(found, angles, atol=1e-4)
    assert ((views("eyecandies_front").rotations @ up)[:, 1] > 0.2).all()  # upright


def test_bad_scans_stop_it_or_are_left_out_and_listed(made, tmp_path, capsys):
    root = write_set(tmp_path / "set", good=3)
    bad = root / "ball" / "test" / "9_good.pcd"
    write_pcd(bad, np.full((700, 3), np.nan))
    (root / "egg" / "gt" / "12_bulge.txt").unlink()  # ground truth that is not there
    (root / "ball" / "gt" / "12_bulge.txt").write_text("1 2 3\n")
    assert run(root, tmp_path / "out")[0] == 1
    assert re.search(r"error: .*12_bulge.pcd: defective sample without ground truth", capsys.readouterr().err)
    status, said = run(root, tmp_path / "out", "--skip-bad")
    found = records.open_records(only(tmp_path / "out"))
    assert status == 0 and capsys.readouterr().err == ""
    assert len([line for line in said if line.startswith("left out: ")]) == 3
    assert {Path(row["path"]).name for row in found.skipped} == {"9_good.pcd", "12_bulge.pcd"} and len(found.skipped) == 3
    assert all(row["error"] in "\n".join(said) for row in found.skipped)
    assert [row["object_index"] for row in content(found)] == list(range(7)) and len(found.index) == 7
    table = [line.split()[:4] for line in said if line.startswith(("ball", "egg"))]
    assert table == [["ball", "2", "1", "2"], ["egg", "3", "1", "1"]]
    kept = [row["name"] for row in found.index if row["category"] == "ball"]
    assert kept == ["8_good", "10_good", "11_bulge"] and [row["name"].decode() for row in content(found)][:3] == kept


def test_a_category_without_one_readable_scan(tmp_path, capsys):
    root = write_set(tmp_path / "set", categories=("ball",), good=2, defective=0)
    for path in (root / "ball" / "test").iterdir():
        write_pcd(path, np.full((700, 3), np.nan))
    assert run(root, tmp_path / "out", "--skip-bad")[0] == 1
    assert re.match(r"error: category 'ball': not one scan can be read \(.*NaN.*\)\n$", capsys.readouterr().err)
    assert not (only(tmp_path / "out") / records.INDEX).exists()


def test_full_disk_is_no_bad_scan(root, tmp_path):
    """Or --skip-bad would leave out everything that no longer fits."""
    from data_pipelines.datasets import open_reader
    from data_pipelines.records import objects

    reader = open_reader("real3d", root)
    recipe = objects.recipe_of(recipes.data_config("real3d", "", {"points": 600, "image_size": 48, "window": 96, "views": 3}))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(DataError, match="no disk space left"):
        patch.setattr(objects.os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        objects.make_part(reader, reader.samples("ball")[0], recipe, tmp_path / "0.npz")
    assert not list(tmp_path.iterdir())


def test_verify_names_what_is_broken(made, root, capsys):
    out, _ = made
    first, second = sorted(only(out).glob("object_records/1.0.0/*.tfrecord*"))[:2]
    whole = first.read_bytes()
    try:
        assert prepare.main([f"--out={out}", "--verify"], lambda line: None) == 0
        first.write_bytes(whole[:200] + bytes([whole[200] ^ 1]) + whole[201:])
        assert prepare.main([f"--out={out}", "--verify"], lambda line: None) == 1
        assert re.fullmatch(rf"error: {re.escape(str(first))}: not what was written .*\n", capsys.readouterr().err)
        assert run(root, out)[0] == 1  # the preparation itself sees it as well
        first.write_bytes(whole)
        away = second.rename(only(out) / "away")
        capsys.readouterr()
        assert run(root, out, "--verify")[0] == 1
        assert re.fullmatch(rf"error: {re.escape(str(second))}: missing; .*\n", capsys.readouterr().err)
        away.rename(second)
    finally:
        first.write_bytes(whole)


def test_verify_counts_against_the_source_and_the_index(made, tmp_path, capsys, root):
    out, _ = made
    extra = write_set(tmp_path / "set", good=3)
    said = []
    assert prepare.main([f"--out={out}", "--verify"], said.append) == 0 and not [line for line in said if "note" in line]
    index = only(out) / records.INDEX
    whole = index.read_text()
    stored = json.loads(whole)
    try:
        index.write_text(json.dumps(stored | {"source": stored["source"] | {"root": str(extra)}}))
        assert prepare.main([f"--out={out}", "--verify"], said.append) == 1
        err = capsys.readouterr().err
        assert "category 'ball': 2 records and 0 skipped, but 3 good scans" in err and "note: the scans in" in "\n".join(said)
        rows = stored["index"]
        index.write_text(json.dumps(stored | {"index": [rows[1], rows[0], *rows[2:]]}))
        assert prepare.main([f"--out={out}", "--verify"], said.append) == 1
        assert "not the record of ball/9_good (it is of 8_good" in capsys.readouterr().err
    finally:
        index.write_text(whole)


def test_wrong_input_is_one_line_with_the_nearest_word(root, tmp_path, capsys):
    good = ["--data=real3d", f"--root={root}", f"--out={tmp_path}"]
    wrong = [(["--data=real4d", *good[1:]], "unknown data set 'real4d', did you mean 'real3d'"),
             ([*good, "--pionts=5"], "unknown option '--pionts=5', did you mean '--points'"),
             ([*good, "--points=many"], "argument --points: 'many' is no whole number"),
             ([*good, "--points=3"], "--points is 3; it has to be at least 16"),
             ([*good, "--cavity=2"], "--cavity is 2.0; it has to be between 0 and 1"),
             ([*good, "--categories=bal"], "no category 'bal'.*did you mean 'ball'"),
             ([*good, "--cameras=rong"], "--cameras: unknown camera list 'rong', did you mean 'ring'"),
             ([*good, "--reader=imgae=3"], "--reader: the reader of 'real3d' has no option 'imgae'; it takes none"),
             ([*good, "--reader=image"], "'image' is not of the form key=value"),
             (good[:2], "--out is missing"), (good[::2], "--root is missing"),
             (["--data=real3d", "--root=/nowhere", good[2]], "data root /nowhere does not exist.*set --root"),
             ([*good, "--verify"], "holds no finished records"), ([f"--out={tmp_path}", "--verify"], "holds no finished records"),
             ([*good, "--", "--runner=x"], "add --beam before it"),
             ([*good, "--verify", "--skip-bad"], "--verify changes nothing")]
    for arguments, message in wrong:
        assert prepare.main(arguments, lambda line: None) == 1
        err = capsys.readouterr().err
        assert re.match(rf"error: .*{message}", err) and err.count("\n") == 1, (arguments, err)


def test_beam_makes_the_same_records(made, root, tmp_path, capsys):
    pytest.importorskip("apache_beam", reason="Apache Beam is optional: requirements-beam.txt")
    status, said = run(root, tmp_path, "--beam", "--", "--runner=DirectRunner", "--direct_num_workers=1", "--nonsens=1")
    assert status == 0 and any("Beam does not know --nonsens" in line for line in said)
    found, plain = records.open_records(only(tmp_path)), records.open_records(only(made[0]))
    assert found.key == plain.key and found.index == plain.index and same(content(found), content(plain))
    assert run(root, tmp_path / "other", "--beam", "--", "--direct_num_workers=abc")[0] == 1
    assert capsys.readouterr().err.count("\n") == 1
    write_pcd(tmp_path / "set" / "ball" / "test" / "1_good.pcd", np.full((700, 3), np.nan))
    assert run(tmp_path / "set", tmp_path / "bad", "--beam")[0] == 1
    assert "1_good.pcd: 700 of 700 points are NaN" in capsys.readouterr().err.splitlines()[-1]


def test_beam_that_is_not_there_is_one_line(root, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "apache_beam", None)
    monkeypatch.delitem(__import__("sys").modules, "data_pipelines.records.beam", raising=False)
    monkeypatch.delattr("data_pipelines.records.beam", raising=False)
    assert run(root, tmp_path, "--beam")[0] == 1
    assert re.match(r"error: --beam needs Apache Beam.*requirements-beam.txt", capsys.readouterr().err)
    assert not list(tmp_path.iterdir())
