"""The command `python -m data_pipelines.prepare` on every layout: it ends well, and what it made is verified and shown."""

import numpy as np
import pytest
import tifffile
from PIL import Image

from data_pipelines import prepare
from data_pipelines.datasets import RECIPES
from data_pipelines.records import sheets
from data_pipelines.records import store as records
from tests.data_pipelines import test_anomaly_shapenet, test_eyecandies, test_mvtec3d, test_prerendered
from tests.scans import ellipsoid, write_pcd, write_set

SMALL = "--points=1024 --image-size=48 --window=96 --cloud-points=64 --neighbours=4 --workers=1".split()
# The pictures that come with these scans are of one size.
GIVEN = ["--cameras=ring", f"--views={test_prerendered.COUNT}", f"--points={test_prerendered.SIDE**2}",
         f"--image-size={test_prerendered.SIDE}", *SMALL[2:]]


def mvtec3d(root):
    xyz, mask = test_mvtec3d.table()
    for kind, gt in (("good", None), ("cut", mask.astype(np.uint8) * 7)):
        test_mvtec3d.write_scan(root / "tire" / "test" / kind, "000", xyz, gt)


def eyecandies(root):
    for name, defects in (("00", ("dents",)), ("01", ())):
        test_eyecandies.write_scan(root / "Candy" / "test_public" / "data", name, defects)


def anomaly_shapenet(root):
    test_anomaly_shapenet.write_class(root / "pcd", "vase0", ("positive0", "bulge1"))


def prerendered(root):
    for specie in ("good", "crack"):
        test_prerendered.write_scan(root / "tire" / "test" / specie, "000", "tiff", 0, specie != "good")


def tiffs(root):
    xyz, mask = test_mvtec3d.table()
    for kind in ("good", "cut"):
        (root / "lid" / kind).mkdir(parents=True)
        tifffile.imwrite(root / "lid" / kind / "a.tiff", np.where(mask[..., None], xyz, 0))
    (root / "lid" / "masks").mkdir()
    Image.fromarray(mask.astype(np.uint8)).save(root / "lid" / "masks" / "a.png")


def clouds(root):
    for kind in ("good", "bump"):
        write_pcd(root / "ball" / kind / "a.pcd", ellipsoid(700, 3, kind == "bump")[0])


def both(root):
    tiffs(root)
    write_pcd(root / "lid" / "bump" / "b.pcd", ellipsoid(700, 3, True)[0])


LAYOUTS = {"mvtec3d": mvtec3d, "eyecandies": eyecandies, "anomaly_shapenet": anomaly_shapenet, "prerendered": prerendered,
           "real3d": lambda root: write_set(root, ("egg",), good=1, defective=1), "folder of clouds": clouds,
           "folder of tiffs": tiffs, "folder of both": both}


def ends_well(name, root, out, options, capsys):
    """Prepares, and verifies in both ways; returns the records."""
    said = []
    status = prepare.main([f"--data={name}", f"--root={root}", f"--out={out}", *options], said.append)
    assert status == 0 and capsys.readouterr().err == "", said
    (folder,) = out.glob(f"{name}-*")
    found = records.open_records(folder)
    assert said[-1] == f"verified: {folder}" and found.index
    assert {f"contact sheet: {sheets.path_of(folder, category)}" for category in found.categories()} <= set(said)
    for category in found.categories():
        with Image.open(sheets.path_of(folder, category)) as sheet:
            assert np.asarray(sheet).std() > 5
    for again in ([f"--out={out}", "--verify"], [f"--data={name}", f"--root={root}", f"--out={out}", "--verify", *options]):
        said.clear()
        assert prepare.main(again, said.append) == 0 and said[-1] == f"verified: {folder}" and "note" not in "".join(said)
    return found


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout(layout, tmp_path, capsys):
    name = layout.split()[0]
    LAYOUTS[layout](tmp_path / "set")
    options = GIVEN if name == "prerendered" else SMALL
    found = ends_well(name, tmp_path / "set", tmp_path / "out", options, capsys)
    assert {row["label"] for row in found.index} == {0, 1} and not found.skipped


def test_no_layout_is_left_out():
    assert {layout.split()[0] for layout in LAYOUTS} == set(RECIPES)


@pytest.mark.slow
@pytest.mark.parametrize("name, folder", [("mvtec3d", "mvtec3d"), ("eyecandies", "eyecandies"), ("real3d", "real3d_ad"),
                                          ("anomaly_shapenet", "anomaly_shapenet"), ("prerendered", "prerendered")])
def test_every_layout_of_the_sample_sets(name, folder, shared_data, tmp_path, capsys):
    options = ["--cloud-points=64", "--workers=1"] if name == "prerendered" else SMALL
    ends_well(name, shared_data / folder, tmp_path, options, capsys)
