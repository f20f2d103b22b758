"""Coloured views (rgb_render): what is drawn, kept and read of them, from every data set that has colour, and who is refused."""

import re

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import binary_erosion

from data_pipelines import batch, input, prepare
from data_pipelines.datasets import open_reader
from data_pipelines.datasets.colours import coloured
from data_pipelines.records import objects, sheets
from data_pipelines.records import store as records
from data_pipelines.records.tfds import open_tfds
from data_pipelines.records.verify import verify
from data_pipelines.scan import DataError, Scan
from tests.data_pipelines import test_layouts, test_prerendered
from tests.data_pipelines.test_input import equal
from tests.data_pipelines.test_records import config
from tests.scans import write_set

ORANGE, BLUE = (150, 70, 20), (30, 60, 160)  # no light makes them too bright
EVERY = {"optional": batch.OPTIONAL}
SOLIDS = {"name": "synthetic", "train_category": "nut", "categories": ("nut",), "good": 1, "defective": 1,
          "scan_points": 500, "difficulty": "easy", "data_seed": 0, "rgb_render": True}


def only(out):
    (folder,) = out.glob("*-*/records.json")
    return records.open_records(folder.parent)


def everything(found, **options):
    return list(input.eval_batches(found, batch_size=len(found.index), **options))[0]


def mvtec3d(root):
    """A photograph whose left half is orange and whose right half is blue."""
    test_layouts.mvtec3d(root)
    for path in root.glob("tire/test/*/rgb/*.png"):
        picture = np.full((*np.asarray(Image.open(path)).shape[:2], 3), BLUE, np.uint8)
        picture[:, : picture.shape[1] // 2] = ORANGE
        Image.fromarray(picture).save(path)


def prerendered(root):
    test_layouts.prerendered(root)
    for grey in root.glob("tire/test/*/2d_rendering/*/view_*.png"):
        path = grey.parents[2] / "2d_rgb_rendering" / grey.parent.name / grey.name
        path.parent.mkdir(parents=True, exist_ok=True)
        view = int(re.findall(r"\d+", grey.name)[0])
        Image.new("RGB", (test_prerendered.SIDE,) * 2, (view, 20 + view, 200)).save(path)


LAYOUTS = {"mvtec3d": (mvtec3d, test_layouts.SMALL), "eyecandies": (test_layouts.eyecandies, test_layouts.SMALL),
           "prerendered": (prerendered, test_layouts.GIVEN)}


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_command_makes_verifies_and_shows_them(name, tmp_path, capsys):
    write, options = LAYOUTS[name]
    write(tmp_path / "set")
    found = test_layouts.ends_well(name, tmp_path / "set", tmp_path / "out", [*options, "--rgb-render"], capsys)
    one = everything(found, **EVERY)
    lengths = batch.check(one)
    views = one["rgb_render"].astype(float)
    if name == "prerendered":
        wanted = [(view, 20 + view, 200) for view in range(lengths["V"])]
        np.testing.assert_array_equal(views[0, :, 5, 7], wanted)  # view 10 comes after view 9
    else:
        covered = one["depth"] < 255
        assert (views.std(-1) < 1)[(one["render"] == 255) & ~covered].mean() > 0.98  # white, but for edges
        inner = binary_erosion(covered, np.ones((1, 1, 5, 5)))
        colours = 255 * views[inner] / (one["render"][inner][:, None] / 0.7)
        dyes = (ORANGE, BLUE) if name == "mvtec3d" else [(160, 9, 9)]  # image 4 of Eyecandies
        shares = [(np.abs(colours - dye).max(1) < 10).mean() for dye in dyes]
        assert min(shares) > 0.2 and sum(shares) > 0.5  # beside edges and rims
        if name == "mvtec3d":  # view 2 looks straight at the scan: left is left
            red = views[0, 2, ..., 0] - views[0, 2, ..., 2]
            assert np.argwhere(red > 30)[:, 1].max() < np.argwhere(red < -30)[:, 1].min() + 2
    with Image.open(sheets.path_of(found.dir, found.categories()[0])) as sheet:
        side = sheet.width // (lengths["V"] + ("rgb" in one))
        pixels = np.asarray(sheet).astype(int)
    assert len(pixels) == len(found.index) * (3 * side + sheets.CAPTION)
    third = pixels[sheets.CAPTION + 2 * side : sheets.CAPTION + 3 * side]
    assert (np.ptp(third, -1) > 60).mean() > 0.05  # colours


@pytest.mark.slow
def test_the_embedded_data_set_has_colour(tmp_path):
    small = config("", **SOLIDS)
    made = records.prepare(small, tmp_path, progress=lambda line: None)
    report = verify(made.dir, progress=lambda line: None, draw=True)
    assert report.problems == [] and len(report.sheets) == 1
    one = everything(made, **EVERY)
    assert np.ptp(one["rgb_render"].astype(int), -1)[one["depth"] < 255].mean() > 30
    plain = records.prepare(config("", **SOLIDS | {"rgb_render": False}), tmp_path, progress=lambda line: None)
    assert plain.key != made.key and [row["path"] for row in plain.index] == [row["path"] for row in made.index]
    assert equal(everything(plain, **EVERY), {name: value for name, value in one.items() if name != "rgb_render"})
    reader = open_reader("synthetic", next(tmp_path.glob("scans-*")))
    sample = reader.samples("nut")[0]
    path = reader.colour(sample)
    np.save(path, np.load(path)[1:])
    with pytest.raises(DataError, match=r"000_good.npy: expected the colours of \d+ points, found"):
        coloured(reader.load(sample), path, reader.name)


def test_records_without_them_are_what_they_were(tmp_path):
    """Key, index and features of records from before the field; they are read whatever is asked for."""
    mvtec3d(tmp_path / "set")
    run(tmp_path, "mvtec3d", test_layouts.SMALL)
    found = only(tmp_path / "out")
    assert "rgb_render" not in (found.dir / records.INDEX).read_text()
    assert set(open_tfds(found.dir)[0]) == {
        "render", "depth", "view_mask", "rgb", "pix", "seen", "valid", "point_mask", "xyz", "neighbours", "cloud", "organised",
        "label", "object_index", "name", "category", "defect"}
    one = everything(found, **EVERY)
    assert equal(one, everything(found)) and "rgb" in one and "rgb_render" not in one
    assert "rgb" not in everything(found, optional=())


def run(folder, name, options, *more):
    arguments = [f"--data={name}", f"--root={folder / 'set'}", f"--out={folder / 'out'}", *options, *more]
    return prepare.main(arguments, lambda line: None)


def test_who_does_not_ask_does_not_decode_them(tmp_path):
    mvtec3d(tmp_path / "set")
    assert run(tmp_path, "mvtec3d", test_layouts.SMALL, "--rgb-render") == 0
    found = only(tmp_path / "out")
    features, paths = open_tfds(found.dir)
    (example,) = input.tf.data.TFRecordDataset(paths[0]).as_numpy_iterator()
    stored = input.tf.train.Example.FromString(example)
    stored.features.feature["rgb_render"].bytes_list.value[0] = b"no picture"
    broken = stored.SerializeToString()
    assert "rgb_render" not in input.decoder(features, found.recipe, ("rgb",))(broken)
    with pytest.raises(input.tf.errors.InvalidArgumentError):
        input.decoder(features, found.recipe, ("rgb", "rgb_render"))(broken)
    with pytest.raises(ValueError, match="no optional field rgb_rendr; there are rgb, rgb_render"):
        everything(found, optional=("rgb_rendr",))
    one = next(input.train_batches(found, categories="tire", batch_size=2, seed=0, optional=("rgb_render",)))
    assert "rgb" not in one and one["rgb_render"].shape == (2, 9, 48, 48, 3)


def test_refused_in_one_line_before_anything_is_drawn(tmp_path, capsys):
    write_set(tmp_path / "set")
    assert run(tmp_path, "real3d", test_layouts.SMALL, "--rgb-render") == 1
    assert capsys.readouterr().err == ("error: --rgb-render needs coloured renderings of the auxiliary category; real3d has no "
                                       "colour: train on mvtec3d or eyecandies, or set it to False\n")
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").glob("real3d-*"))
    tree = tmp_path / "trees"
    prerendered(tree / "set")
    lost = next((tree / "set").glob("tire/test/crack/2d_rgb_rendering/*/view_3.png"))
    lost.unlink()
    assert run(tree, "prerendered", test_layouts.GIVEN, "--rgb-render") == 1
    assert re.search(r"error: .*view_3.png: no such file, one of 11 coloured views", capsys.readouterr().err)
    test_layouts.prerendered(tmp_path / "plain" / "set")
    assert run(tmp_path / "plain", "prerendered", test_layouts.GIVEN, "--rgb-render") == 1
    assert "prerendered has no colour" in capsys.readouterr().err


def test_the_colours_files_are_part_of_the_key(tmp_path):
    prerendered(tmp_path / "set")
    reader = open_reader("prerendered", tmp_path / "set")

    def key(**changes):
        settings = {"points": 576, "image_size": 24, "window": 96, "views": 11, **changes}
        return records.plan_of(config(tmp_path / "set", name="prerendered", train_category="", **settings), tmp_path / "set",
                               tmp_path / "cache").key

    plain, coloured = key(), key(rgb_render=True)
    assert plain != coloured and plain == key(rgb_render=False)
    path = reader.colour(reader.samples("tire")[0]) / "view_0.png"
    Image.new("RGB", (24, 24), (9, 9, 9)).save(path)
    assert key() == plain and key(rgb_render=True) != coloured


def test_one_object_is_made_with_its_colours():
    """A cell takes its own pixel of the photograph; what lies behind shows nothing."""
    y, x = np.mgrid[:24, :24] / 24.0
    front = np.stack([x, y, np.zeros_like(x)], -1).reshape(-1, 3)
    xyz = np.concatenate([front, front - [0, 0, 0.2]])  # a blue plate behind a red one
    colours = np.repeat([[250, 10, 10], [10, 10, 250]], len(front), 0).astype(np.uint8)
    recipe = objects.recipe_of(config("", cameras=[[["y", 0.0]]], views=1, points=len(xyz), image_size=64, window=64, zoom=0.9,
                                      point_size=5, rgb_render=True))
    made = objects.make_object(Scan(xyz, np.zeros(len(xyz), bool), np.ones(len(xyz), bool), colours=colours), recipe, "a", "b")
    picture = made["rgb_render"][0].astype(float)
    inside = made["depth"][0] < 255
    assert inside.any() and (picture[inside][:, 0] > 3 * picture[inside][:, 2]).mean() > 0.97
    assert (picture[0, 0] == 255).all()
    white = objects.make_object(Scan(xyz, np.zeros(len(xyz), bool), np.ones(len(xyz), bool), colours=np.full_like(colours, 255)),
                                recipe, "a", "b")
    wanted = np.minimum(white["render"][..., None] / 0.7, 255)
    np.testing.assert_allclose(white["rgb_render"], np.repeat(wanted, 3, -1), atol=1)
    np.testing.assert_array_equal(white["render"], made["render"])
