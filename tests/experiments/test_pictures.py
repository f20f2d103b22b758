"""Pictures: scores on the pixels that show their points, letters of any language."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from data_pipelines.records.objects import Recipe, make_object
from data_pipelines.rendering import lettering
from data_pipelines.rendering.cameras import views
from data_pipelines.rendering.views import Look, SplatRasteriser, render_object, shown_points
from data_pipelines.scan import Scan
from experiments import pictures
from gsclip_jax.inspection import heat

RECIPE = Recipe(points=4096, image_size=96, views=9, cameras="ring", window=192, point_size=8.0, cloud_points=64, neighbours=8,
                sample_seed=0, back_off=True, zoom=0.55, fill_gaps=True)  # fmt: skip


@pytest.fixture(scope="module")
def scene() -> tuple[dict, np.ndarray]:
    """A ball that lies on a plate: its underside, hidden by the plate, has high scores as the rest of it has."""
    rng = np.random.default_rng(0)
    plate = np.concatenate([rng.uniform(-4, 4, (6000, 2)), np.zeros((6000, 1))], 1)[:, [0, 1, 2]]
    ball = rng.standard_normal((3000, 3))
    ball /= np.linalg.norm(ball, axis=1, keepdims=True)
    xyz = np.concatenate([plate, ball + [0, 0, 1.0]]).astype(np.float32)
    whole = np.ones(len(xyz), bool)
    made = make_object(Scan(xyz=xyz, mask=~whole, valid=whole), RECIPE, "", "", SplatRasteriser())
    on_plate = made["xyz"][:, 2] < 1e-6
    return made, on_plate


def test_no_pixel_of_the_plate_has_a_score_that_no_point_of_it_has(scene):
    made, on_plate = scene
    rng = np.random.default_rng(1)
    scores = np.where(on_plate, rng.uniform(0, 0.2, len(on_plate)), rng.uniform(0.6, 1, len(on_plate))).astype(np.float32)
    worst = 0.0
    for view in range(RECIPE.views):
        shown = heat.front(made, RECIPE, view)
        found, painted = heat.heat(scores, made, view, shown)
        plate = (shown >= 0) & on_plate[shown]
        assert found[plate].max(initial=0) <= 0.2 and found[(shown >= 0) & ~plate].min(initial=1) >= 0.6
        assert (painted == (made["render"][view] < 250)).mean() > 0.99, "all of the object has scores, nothing else has"
        by_seen, _ = heat.spread(scores, made["pixel"][view], made["visible"][view], 96)
        worst = max(worst, by_seen[plate].max(initial=0))
    assert worst > 0.6, "this scene has points that would be painted on the plate's pixels"


def test_a_white_highlight_has_the_scores_of_its_points(scene):
    made, _ = scene
    shown = heat.front(made, RECIPE, 0)
    bright = {**made, "render": np.where(shown >= 0, 255, made["render"]).astype(np.uint8)}
    found, painted = heat.heat(np.full(len(made["xyz"]), 0.5, np.float32), bright, 0, shown)
    assert painted[shown >= 0].all() and not painted.all() and (found[painted] == 0.5).all()


def test_what_is_shown_is_what_was_rendered():
    """The points drawn again are those that the rendered view shows, gaps, empty points and all."""
    xyz = np.random.default_rng(0).uniform(-1, 1, (800, 3)).astype(np.float32)
    valid, cameras = np.arange(800) % 5 > 0, views("ring", 3, True)
    made = render_object(xyz, valid, valid & (xyz[:, 0] > 0.5), cameras, Look(64, 64, 5.0), draw=SplatRasteriser())
    for view in range(3):
        shown = shown_points(xyz, valid, cameras, view, 64, 5.0)
        np.testing.assert_array_equal(shown >= 0, made["render"][view] < 250)
        np.testing.assert_array_equal((shown >= 0) & (xyz[shown, 0] > 0.5), made["view_mask"][view])
        assert valid[shown[shown >= 0]].all()


@pytest.fixture(scope="module")
def nested() -> tuple[dict, np.ndarray]:
    """A ball inside a ball, which no view sees."""
    height = 1 - (2 * np.arange(4036) + 1) / 4036
    turn = np.arange(4036) * np.pi * (3 - 5**0.5)  # evenly, along a spiral
    ball = np.stack([np.cos(turn) * np.sqrt(1 - height**2), np.sin(turn) * np.sqrt(1 - height**2), height], 1)
    ball = np.concatenate([ball, 0.5 * ball[::68]])
    whole = np.ones(len(ball), bool)
    made = make_object(Scan(xyz=ball.astype(np.float32), mask=~whole, valid=whole), RECIPE, "", "", SplatRasteriser())
    return made, np.linalg.norm(made["xyz"], axis=1) < 0.9


def test_pictures_that_came_with_the_data_leave_out_points_no_view_sees(nested):
    """Without cameras: such points hold the pixels of another one, and would be painted there."""
    made, inner = nested
    scores = np.where(inner, 0.9, 0.1).astype(np.float32)
    assert heat.shared(made["pixel"], made["visible"])[inner].all()
    for view in range(RECIPE.views):
        found, painted = heat.heat(scores, made, view)
        assert found[painted].max() == np.float32(0.1) and painted.sum() > 0.95 * (made["render"][view] < 250).sum()
    assert heat.spread(scores, made["pixel"][4], made["visible"][4], 96)[0].max() == np.float32(0.9)


def test_pixels_far_from_any_point_are_not_painted():
    pixel, seen = np.array([[[5, 5]]]), np.ones((1, 1), bool)
    fields = {"render": np.full((1, 40, 40), 255, np.uint8), "pixel": pixel, "visible": seen}
    fields["render"][0, 4:7, 4:7] = fields["render"][0, 30:33, 30:33] = 100
    found, painted = heat.heat(np.float32([0.5]), fields, 0)
    assert painted[4:7, 4:7].all() and not painted[30:].any() and found[5, 5] == 0.5


def test_heat_maps_are_nan_where_no_scored_point_is_shown(nested):
    made, inner = nested
    maps = heat.heat_maps(np.where(inner, 0.9, 0.1).astype(np.float32), made, RECIPE)
    assert maps.shape == made["render"].shape and np.isnan(maps[made["render"] == 255]).all()
    assert np.nanmax(maps) == np.float32(0.1) and np.isfinite(maps).sum() > 0.9 * (made["render"] < 250).sum()


def drawn(text: str) -> bytes:
    picture = Image.new("L", (600, 40), 255)
    lettering.draw(ImageDraw.Draw(picture), (4, 28), text, 20, 0)
    return picture.tobytes()


@pytest.mark.parametrize("text", ["Größe", "деталь", "εξάρτημα", "قطعة", "חלק", "部品", "आकार", "🔧"])
def test_letters_of_any_language_differ_from_each_other(text):
    """Not boxes: what no font has stands as its code."""
    assert len({drawn(sign) for sign in set(text)}) == len(set(text)) and 0 < lettering.width(text, 20) < 600


def test_what_cannot_be_seen_or_drawn_is_an_escape():
    assert drawn("a\u202eb\n") == drawn(r"a\u202eb\n")
    lettering.width("\udcff\ud800\0", 20)


def test_labels_are_whole_and_inside():
    assert lettering.wrapped("short", 17, 260) == ["short"]
    long = lettering.wrapped("a_rather_long_name_of_a_part_" * 3, 17, 260)
    assert all(lettering.width(line, 17) <= 260 for line in long) and "".join(long) == "a_rather_long_name_of_a_part_" * 3
    assert lettering.wrapped("x" * 1000, 17, 260)[4] == "…"
    panel = np.zeros((20, 20, 3), np.uint8)
    sheet = pictures.sheet([[panel, panel]], ["rendered view", "depth view"], ["y" * 400 + "\nview 1"])
    left = np.asarray(sheet)[:, : sheet.width - 2 * 140]
    assert (left[:, :4] == 255).all() and (left[-3:] == 255).all() and (left < 128).any()
