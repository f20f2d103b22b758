"""The embedded data set: solids, defects with exact ground truth, files, and nothing trivial that tells the classes apart."""

import dis
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation
from scipy.stats import rankdata

from data_pipelines.datasets import open_reader
from data_pipelines.solids import defects, fields, meshing, synthetic
from data_pipelines.solids import shapes as solids
from data_pipelines.solids.synthetic import ALL_DEFECTS, SETS, make_object, write


def read_pcd(path: Path) -> np.ndarray:
    """Written here from the format's description, so that the writer is not checked by a reader of its own making."""
    header, _, body = path.read_bytes().partition(b"DATA binary\n")
    lines = dict(line.split(" ", 1) for line in header.decode().splitlines() if not line.startswith("#"))
    assert (lines["FIELDS"], lines["SIZE"], lines["TYPE"], lines["HEIGHT"]) == ("x y z", "4 4 4", "F F F", "1")
    xyz = np.frombuffer(body, "<f4").reshape(-1, 3)
    assert len(xyz) == int(lines["POINTS"]) == int(lines["WIDTH"])
    return xyz


@pytest.fixture(scope="module")
def easy_set(tmp_path_factory) -> Path:
    """The test categories at their plainest: 110 objects."""
    root = tmp_path_factory.mktemp("synthetic")
    write(root, categories=SETS["test"], seed=3, good=11, defective=11, points=2000, difficulty="easy", workers=2, colour=True)
    return root


# ---------------------------------------------------------------- solids


def test_sets_are_disjoint_by_generator():
    rows = solids.SETS_OF_GENERATORS
    assert list(SETS) == ["pretrain", "train", "dev", "test"]
    assert [len(SETS[name]) for name in ("train", "dev", "test")] == [3, 3, 5] and len(SETS["pretrain"]) >= 9
    generators = [g for row in rows.values() for g in row]
    names = [name for row in SETS.values() for name in row]
    # Neither one callable under two names, nor one body of code behind two callables.
    assert len({id(g) for g in generators}) == len({id(g.__code__) for g in generators}) == len(generators) >= 18
    assert len({g.__code__.co_code + repr(g.__code__.co_consts).encode() for g in generators}) == len(generators)
    assert len(set(names)) == len(names) and set(names) == set(solids.GENERATORS)
    assert all(solids.GENERATORS[name] is g for s in SETS for name, g in zip(SETS[s], rows[s], strict=True))
    # ... and no generator calls another.
    called = {step.argval for g in generators for step in dis.get_instructions(g) if step.opname == "LOAD_GLOBAL"}
    assert not called & set(names)


@pytest.mark.parametrize("category", solids.GENERATORS)
def test_solids_are_closed_and_vary(category):
    seen = []
    for seed in (0, 1, 2):
        body = solids.solid(category, np.random.default_rng(seed))
        mesh = meshing.mesh_field(*body, 40)
        edges = np.sort(mesh.faces[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2), 1)
        assert (np.unique(edges, axis=0, return_counts=True)[1] % 2 == 0).all()
        corners = mesh.vertices[mesh.faces]
        volume = np.einsum("fi,fi->", corners[:, 0], np.cross(corners[:, 1], corners[:, 2])) / 6
        assert volume > 0.02  # also: faces point outwards
        assert (np.abs(mesh.vertices) < body.half + 0.06).all()  # not cut off by its box
        assert np.abs(mesh.vertices).max() > 0.6
        seen.append(np.append(np.ptp(mesh.vertices, axis=0), volume))
    assert (np.ptp(seen, axis=0) / np.mean(seen, axis=0)).max() > 0.05


# ---------------------------------------------------------------- defects and their ground truth


@pytest.fixture(scope="module")
def sphere():
    solid = fields.Solid(fields.ball(0.8), np.full(3, 0.8))
    return solid, meshing.mesh_field(*solid, 64)


@pytest.mark.parametrize("kind", ["bulge", "dent", "hole", "crack"])
def test_displacement_is_the_ground_truth(sphere, kind):
    """On a sphere the displacement can be read off the radius, whatever the construction did."""
    made = defects.apply(kind, *sphere, "easy", 0.5, np.random.default_rng(1), np.eye(3))
    radius = np.linalg.norm(made.mesh.vertices, axis=1)
    np.testing.assert_allclose(np.linalg.norm(made.before, axis=1), 0.8, atol=0.004)  # colours are taken from there
    moved = (radius - 0.8) * (1 if kind == "bulge" else -1)
    labelled = made.amount > defects.THRESHOLD
    assert moved.max() == pytest.approx(made.depth, rel=0.06)
    assert moved.min() > -0.004
    clear = np.abs(moved - 0.05 * made.depth) > 0.004  # vertices of the mesh are that close to the sphere
    assert clear.mean() > 0.5 and labelled.sum() > 100
    assert (labelled == (moved > 0.05 * made.depth))[clear].all()


def test_hole_is_open(sphere):
    made = defects.apply("hole", *sphere, "easy", 0.5, np.random.default_rng(1), np.eye(3))
    rim = made.mesh.vertices[np.unique(made.mesh.faces)][made.amount[np.unique(made.mesh.faces)] > 0.5].mean(0)
    arcs = []
    for mesh in (sphere[1], made.mesh):
        middle = mesh.vertices[mesh.faces].mean(1)
        cosine = middle @ rim / np.linalg.norm(middle, axis=1) / np.linalg.norm(rim)
        arcs.append(0.8 * np.arccos(cosine.max()))  # of the face nearest to the hole's centre
    assert arcs[0] < 0.03 and arcs[1] > 0.6 * made.size


def test_break_labels_the_fracture(sphere):
    made = defects.apply("break", *sphere, "easy", 1.0, np.random.default_rng(2), np.eye(3))
    below = 0.8 - np.linalg.norm(made.mesh.vertices, axis=1)
    labelled = made.amount > defects.THRESHOLD
    assert labelled[below > 0.02].all() and not labelled[below < 0.002].all()
    assert (below[~labelled] < 0.01).all()  # what is left of the old surface
    edges = np.sort(made.mesh.faces[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2), 1)
    assert (np.unique(edges, axis=0, return_counts=True)[1] % 2 == 0).all()  # closed by the fracture
    assert below[labelled].max() > 0.05
    assert made.before is made.mesh.vertices  # a fracture shows the colours that lie inside


def test_bend_labels_where_it_turns():
    solid = fields.Solid(fields.box((0.9, 0.2, 0.2), 0.05), np.array([0.9, 0.2, 0.2]))
    mesh = meshing.mesh_field(*solid, 64)
    made = defects.apply("bend", solid, mesh, "easy", 0.5, np.random.default_rng(0), np.eye(3))
    moved = np.linalg.norm(made.mesh.vertices - mesh.vertices, axis=1)
    labelled = made.amount > defects.THRESHOLD
    assert made.before is mesh.vertices
    assert moved.max() == pytest.approx(made.depth) and made.depth > 0.05
    assert 0.02 < labelled.mean() < 0.3

    def rest_of_rigid_motion(chosen):
        """Largest distance that the best rotation and shift of these vertices leaves."""
        before, after = (m.vertices[chosen] - m.vertices[chosen].mean(0) for m in (mesh, made.mesh))
        return np.linalg.norm(before @ Rotation.align_vectors(after, before)[0].as_matrix().T - after, axis=1).max()

    beyond = ~labelled & (moved > 0.5 * moved.max())  # moved as one piece: sound
    assert beyond.sum() > 50 and rest_of_rigid_motion(beyond) < 2e-3
    assert rest_of_rigid_motion(labelled) > 1e-2
    assert (moved < 1e-9).mean() > 0.5 and not labelled[moved < 1e-9].any()
    lengths = [np.linalg.norm(np.diff(m.vertices[m.faces[:, :2]], axis=1), axis=2) for m in (mesh, made.mesh)]
    assert (lengths[1] / lengths[0]).max() < 2.5  # bent, not torn


@pytest.mark.parametrize("kind", ALL_DEFECTS)
def test_difficulty_scales(kind):
    ranges = [defects.DIFFICULTIES[d][kind] for d in ("easy", "middle", "hard")]
    for plainer, subtler in zip(ranges, ranges[1:], strict=False):
        assert (np.array(plainer) > np.array(subtler)).all()  # sizes and depths, at both ends
    easy, hard = (
        [make_object(category, 0, 1, kind, points=2000, difficulty=difficulty)[2] for category in ("pawn", "cross")]
        for difficulty in ("easy", "hard")
    )
    assert sum(row["depth"] for row in easy) > 1.2 * sum(row["depth"] for row in hard)
    assert all(0.001 < row["defective_points"] / row["points"] < 0.35 for row in easy + hard)


@pytest.mark.parametrize("kind", ["good", "bulge", "bend"])
def test_points_are_spread_evenly(kind):
    xyz, labels, _ = make_object("dumbbell", 5, 0, kind, points=4000, difficulty="easy")
    nearest = cKDTree(xyz).query(xyz, 2)[0][:, 1]
    assert nearest.std() / nearest.mean() < 0.3  # independent draws: 0.52
    if kind != "good":
        assert nearest[labels].mean() == pytest.approx(nearest[~labels].mean(), rel=0.06)
    # Storage order says nothing about the place.
    assert abs(np.corrcoef(np.arange(len(xyz)), xyz[:, 0])[0, 1]) < 0.06


# ---------------------------------------------------------------- files


def test_layout_and_manifest(easy_set):
    manifest = json.loads((easy_set / "manifest.json").read_text())
    rows = {row["file"]: row for row in manifest["samples"]}
    files = {str(p.relative_to(easy_set)) for p in easy_set.glob("*/*/*.pcd")}
    assert files == set(rows) and len(files) == 5 * (2 + 11 + 11)
    assert {row["defect"] for row in rows.values()} == {"good", *ALL_DEFECTS}
    together = []
    for name, row in rows.items():
        category, split, stem = Path(name).with_suffix("").parts
        xyz = read_pcd(easy_set / name)
        assert len(xyz) == row["points"] and np.isfinite(xyz).all() and 20 < np.ptp(xyz, axis=0).max() < 90  # mm
        assert (row["category"], row["label"]) == (category, int(row["defect"] != "good"))
        truth = easy_set / category / "gt" / f"{stem}.txt"
        assert ("template" in stem) == (split == "train")
        if not row["label"]:
            assert not truth.exists() and row["defective_points"] == 0
            continue
        assert stem.endswith(row["defect"]) and row["size"] > 0 and row["depth"] > 0
        table = np.genfromtxt(truth, delimiter=" ")
        np.testing.assert_array_equal(table[:, :3].astype(np.float32), xyz)
        assert set(np.unique(table[:, 3])) == {0, 1} and table[:, 3].sum() == row["defective_points"] >= 4
        together.append(table[cKDTree(xyz).query(xyz, 2)[1][table[:, 3] == 1, 1], 3].mean())
    # Labels belong to their points: a labelled point's neighbour is mostly labelled too (at random: the share, some 5%).
    assert np.mean(together) > 0.6


def test_the_reader_of_real_data_reads_it(easy_set):
    reader = open_reader("synthetic", easy_set)
    assert reader.categories() == sorted(SETS["test"])
    samples = reader.samples("pawn")
    assert sorted(s.defect == "good" for s in samples) == [False] * 11 + [True] * 11
    assert len(reader.samples("pawn", "train")) == 2
    bad = next(s for s in samples if s.label)
    scan = reader.load(bad)
    rows = json.loads((easy_set / "manifest.json").read_text())["samples"]
    row = next(row for row in rows if bad.path.endswith(row["file"]))
    assert (len(scan.xyz), scan.mask.sum()) == (row["points"], row["defective_points"])


def digests(root: Path) -> dict[str, str]:
    files = (p for p in root.rglob("*") if p.is_file())
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_same_bytes_whatever_workers_and_interruptions(tmp_path):
    settings = dict(categories=("bolt", "star"), seed=1, good=1, defective=2, points=300, difficulty="middle")
    write(tmp_path / "one", **settings, workers=1)
    write(tmp_path / "two", **settings, workers=2)
    expected = digests(tmp_path / "one")
    assert len(expected) == 1 + 2 * (2 + 1 + 2 * 2 + 5)
    assert digests(tmp_path / "two") == expected

    # As killed before the last object's row was written: its cloud may be there, and need not be whole.
    root = tmp_path / "two"
    row = next((root / "bolt" / "meta").glob("001_*.json"))
    (root / "bolt" / "test" / f"{row.stem}.pcd").write_bytes(b"# .PCD")
    row.unlink()
    (root / "manifest.json").write_text(json.dumps({**json.loads((root / "manifest.json").read_text()), "samples": []}))
    kept = (root / "star" / "test" / "000_good.pcd").stat().st_mtime_ns
    write(root, **settings, workers=1)
    assert digests(root) == expected
    assert (root / "star" / "test" / "000_good.pcd").stat().st_mtime_ns == kept

    with pytest.raises(ValueError, match=r"manifest\.json: holds synthetic data of other settings \(seed 1 -> 2\)"):
        write(root, **{**settings, "seed": 2})
    assert digests(root) == expected
    other = make_object("bolt", 2, 0, "good", points=300, difficulty="middle")[0]
    same = make_object("bolt", 1, 0, "good", points=300, difficulty="middle")[0]
    assert same.shape != other.shape or not np.allclose(same, other)


def test_bad_arguments_in_one_line(tmp_path):
    for wrong, message in (
        ({"categories": ["vases"]}, "unknown synthetic category 'vases'"),
        ({"categories": []}, "no categories"),
        ({"defects": ["scratch"]}, "unknown synthetic defect 'scratch'"),
        ({"difficulty": "soft"}, "unknown synthetic difficulty 'soft'"),
        ({"points": 5}, "points=5"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            write(tmp_path / "none", **{"categories": ["vase"], "seed": 0, **wrong})
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "none").exists()
    out = str(tmp_path / "none")
    command = [sys.executable, "-m", "data_pipelines.solids.synthetic", "--out", out, "--categories", "vases"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(synthetic.__file__).parents[2])
    assert done.returncode == 1 and done.stderr.startswith("error: unknown synthetic category 'vases'")
    assert done.stderr.count("\n") == 1 and not (tmp_path / "none").exists()


# ---------------------------------------------------------------- no give-away


def trivial_scores(xyz: np.ndarray) -> dict[str, float]:
    """What could tell good from defective objects without looking at a defect."""
    xyz = xyz.astype(np.float64)
    sides = np.ptp(xyz, axis=0)
    nearest = cKDTree(xyz).query(xyz, 2)[0][:, 1]
    scores = {"count": len(xyz), "volume": sides.prod(), "nearest": nearest.mean(), "nearest_std": nearest.std()}
    scores["radius"] = np.linalg.norm(xyz - xyz.mean(0), axis=1).max()
    scores |= {f"side_{axis}": side for axis, side in zip("xyz", sides, strict=True)}
    return scores | {f"sorted_side_{i}": side for i, side in enumerate(np.sort(sides))}


def colours_of(root: Path, row: dict) -> np.ndarray:
    return np.load(root / row["category"] / "colour" / f"{Path(row['file']).stem}.npy").astype(np.float64)


def trivial_colours(colours: np.ndarray) -> dict[str, float]:
    """The same of the points' colours [S, 3]."""
    scores = {f"mean_{name}": value for name, value in zip("rgb", colours.mean(0), strict=True)}
    scores |= {f"std_{name}": value for name, value in zip("rgb", colours.std(0), strict=True)}
    bright = colours.mean(1)
    return scores | {"darkest": np.quantile(bright, 0.01), "brightest": np.quantile(bright, 0.99), "different": len(
        np.unique(colours, axis=0)) / len(colours)}


def auroc(scores: np.ndarray, labels: np.ndarray) -> float:
    positives = labels.sum()
    return (rankdata(scores)[labels].sum() - positives * (positives + 1) / 2) / (positives * (~labels).sum())


def test_nothing_trivial_separates_the_classes(easy_set):
    rows = [row for row in json.loads((easy_set / "manifest.json").read_text())["samples"] if "/test/" in row["file"]]
    labels, category = np.array([row["label"] for row in rows], bool), np.array([row["category"] for row in rows])
    table = [trivial_scores(read_pcd(easy_set / row["file"])) | trivial_colours(colours_of(easy_set, row)) for row in rows]
    assert len(rows) >= 100
    found = {}
    for name in table[0]:
        score = np.array([row[name] for row in table])
        within = np.zeros(len(score))
        for c in set(category):
            within[category == c] = rankdata(score[category == c]) / (category == c).sum()
        found[name], found[f"{name}, ranked per category"] = auroc(score, labels), auroc(within, labels)
    assert {name: value for name, value in found.items() if not 0.4 <= value <= 0.6} == {}


def test_colour_does_not_show_where_the_defect_is(easy_set):
    """Neither a colour nor how colours change from point to point; of every kind of defect, and of all together."""
    rows = [row for row in json.loads((easy_set / "manifest.json").read_text())["samples"] if row["label"]]
    found: dict[str, list[dict[str, float]]] = {}
    for row in rows:
        truth = np.genfromtxt(easy_set / row["category"] / "gt" / f"{Path(row['file']).stem}.txt")
        xyz, labels, colours = truth[:, :3], truth[:, 3] > 0, colours_of(easy_set, row)
        near = cKDTree(xyz).query(xyz, 7)[1][:, 1:]
        scores = {name: auroc(colours[:, i], labels) for i, name in enumerate("rgb")}
        scores["contrast"] = auroc(np.abs(colours[near].mean(1) - colours).max(1), labels)
        found.setdefault(row["defect"], []).append(scores)
    assert set(found) == set(ALL_DEFECTS)
    means = {kind: {name: np.mean([one[name] for one in ones]) for name in ones[0]} for kind, ones in found.items()}
    together = {name: np.mean([kind[name] for kind in means.values()]) for name in means["bend"]}
    assert {name: value for name, value in together.items() if not 0.45 <= value <= 0.55} == {}, together
    outside = {kind: one for kind, one in means.items() if any(not 0.3 <= value <= 0.7 for value in one.values())}
    assert outside == {}  # some nine scans a kind


def test_colours_come_beside_the_same_scans(tmp_path):
    settings = dict(categories=("nut",), seed=1, good=1, defective=1, points=300)
    write(tmp_path / "plain", **settings)
    write(tmp_path / "coloured", **settings, colour=True)
    plain, coloured = digests(tmp_path / "plain"), digests(tmp_path / "coloured")
    assert plain.items() < coloured.items()
    write(tmp_path / "plain", **settings, colour=True)  # a folder of before
    assert digests(tmp_path / "plain") == coloured
    more = coloured.keys() - plain.keys()
    assert len(more) == len(list((tmp_path / "plain").rglob("*.pcd"))) and all("nut/colour/" in name for name in more)
    good, bad = (np.load(path) for path in sorted((tmp_path / "plain" / "nut" / "colour").glob("00*.npy")))
    assert good.dtype == np.uint8 and good.shape == (len(read_pcd(tmp_path / "plain" / "nut" / "test" / "000_good.pcd")), 3)
    assert np.abs(good.mean(0) - bad.mean(0)).max() < 12  # of one material
