"""Good parts as references: distances by hand, what share they get, rates of false alarms by simulation, and what is refused."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from scipy.stats import binom

from data_pipelines.files import checksum
from data_pipelines.scan import DataError
from gsclip_jax.inspection import command
from gsclip_jax.inspection.calibration import Calibration, load_calibration
from gsclip_jax.inspection.references import (
    FIELDS,
    LEAST,
    Seen,
    load_references,
    make_references,
    nearest,
    reference_parts,
    references_beside,
    seen,
)
from gsclip_jax.method import Scores
from gsclip_jax.methods.surface import fusion
from gsclip_jax.methods.surface.descriptor import init_surface
from tests import tiny
from tests.gsclip_jax.test_inspect import part, rows

POINTS, KINDS = 40, np.linalg.qr(np.random.default_rng(9).normal(size=(8, 8)))[0]  # surfaces that good parts have, as tokens


def good_part(rng: np.random.Generator, rough: float = 0.1) -> tuple[Seen, Scores, dict, dict]:
    """A part as references see it, and as a model gives it: one stream of tokens at points, six kinds of surface."""
    batch = tiny.batch(1, seed=int(rng.integers(1 << 30)), points=POINTS, views=1)
    tokens = KINDS[rng.integers(0, 6, POINTS)] + rng.normal(size=(POINTS, 8)) * rough
    scores = Scores(rng.uniform(0, 0.1, 1), rng.uniform(0.1, 0.9, (1, POINTS)).astype(np.float32), np.zeros((1, 1, 8, 8)))
    given = scores, {"surface": tokens[None].astype(np.float32)}, batch
    return seen(*given), *given


def spoilt(one: Seen, tokens: bool = True, scores: bool = False) -> Seen:
    """The part with a defect at a point and its neighbours: of a surface that no good part has, or of high zero-shot scores."""
    at = one.fields["neighbours"][0, 3]
    changed, points, whole = one.tokens["surface"].copy(), one.points.copy(), one.object
    if tokens:
        changed[0, at] = KINDS[7]
    if scores:
        points[0, at], whole = 0.999, whole + 1
    return one._replace(tokens={"surface": changed}, points=points, object=whole)


def test_distances_by_hand():
    rng = np.random.default_rng(0)
    tokens, bank = rng.normal(size=(5000, 6)), rng.normal(size=(70, 6))
    unit = [values / np.linalg.norm(values, axis=1, keepdims=True) for values in (tokens, bank)]
    np.testing.assert_allclose(nearest(tokens, bank), 1 - (unit[0] @ unit[1].T).max(1), atol=1e-6)


def test_which_good_parts_are_references():
    """Half of them, but never so many that the others are too few for the rate; too few for a verdict anyway: half."""
    assert [len(reference_parts(count, 9)) for count in (5, 6, 8, 9, 11, 12, 15, 18, 20, 50)] == [0, 3, 4, 0, 0, 3, 6, 9, 10, 25]
    chosen = reference_parts(20, 9)
    assert chosen == sorted(set(chosen)) and chosen != list(range(10)) and chosen == reference_parts(20, 9) and LEAST == 3


@pytest.mark.parametrize("tokens, scores, share", [(True, False, 0.9), (False, True, 0.0)])
def test_the_share_goes_to_what_tells_dents(tokens, scores, share):
    rng = np.random.default_rng(1)
    parts = [good_part(rng)[0] for _ in range(5)]
    made = make_references("m", {}, parts, [spoilt(one, tokens, scores) for one in parts])
    best = max(made.found.values())
    assert best > 0.9 and made.found[f"{made.share:g}"] == best and abs(made.share - share) <= 0.5, made.found
    assert made.found[f"{0.9 - share:g}"] < 0.8 and made.bank["surface"].shape == (5, POINTS, 8)
    assert f"{best:.0%} stand out" in made.told() and made.parts == 5


def test_a_surface_that_no_good_part_has_scores_highest():
    rng = np.random.default_rng(2)
    parts = [good_part(rng)[0] for _ in range(6)]
    made = dataclasses.replace(make_references("m", {}, parts, [spoilt(one) for one in parts]), share=0.9)
    one, scores, _, batch = good_part(rng)
    batch["valid"][0, 7] = False
    bad = spoilt(one)
    alone, found = (made.join(scores, dict(each.tokens), batch) for each in (one, bad))
    hot = np.setdiff1d(bad.fields["neighbours"][0, 3], 7)
    assert found.points[0, hot].min() > alone.points[0].max() and found.points.dtype == np.float32 and found.points[0, 7] == 0
    assert found.object[0] == found.points[0, batch["valid"][0]].max() > alone.object[0] and abs(np.median(alone.points)) < 0.6
    assert found.views is scores.views


def test_false_alarms_are_as_many_as_stated():
    """Parts of the bank take no part in the calibration: over many draws the rate is the stated one within binomial error. Were
    the bank's own parts the calibration, it would be far off."""
    rng, draws, alarms, naive = np.random.default_rng(3), 100, 0, 0
    for _ in range(draws):
        parts = [good_part(rng, rng.uniform(0.02, 0.3)) for _ in range(3 + 4 + 1)]
        bank = [one[0] for one in parts[:3]]
        made = make_references("m", {}, bank, [spoilt(one) for one in bank])
        scores = [float(made.join(*given).object[0]) for _, *given in parts]
        known = (Calibration("m", {}, 0.2, tuple(good), tuple(good), 0.0) for good in (scores[3:7], scores[:3] + scores[3:4]))
        by_others, by_bank = (each.p_value(scores[-1]) <= 0.2 for each in known)
        alarms, naive = alarms + by_others, naive + by_bank
    assert binom.ppf(0.001, draws, 0.2) <= alarms <= binom.ppf(0.999, draws, 0.2)
    assert naive > binom.ppf(0.999, draws, 0.2)


def test_files_of_another_model_or_other_options_are_refused(tmp_path):
    rng = np.random.default_rng(4)
    parts = [good_part(rng)[0] for _ in range(3)]
    made, path = make_references("m", {"clean": True}, parts, [spoilt(one) for one in parts]), tmp_path / "c.safetensors"
    made.save(path)
    again = load_references(path, "m", {"clean": True})
    np.testing.assert_array_equal(again.bank["surface"], made.bank["surface"])
    scale = {stream: list(pair) for stream, pair in made.scale.items()}
    assert dataclasses.replace(again, bank={}) == dataclasses.replace(made, bank={}, scale=scale)
    assert references_beside(tmp_path / "c.json", checksum(path), "m", {"clean": True}).share == made.share
    for work, said in (
        (lambda: load_references(path, "n", {"clean": True}), "made with model m, this is n"),
        (lambda: load_references(path, "m", {}), "other options"),
        (lambda: load_references(tmp_path / "none", "m", {}), "missing"),
        (lambda: references_beside(tmp_path / "c.json", "0" * 64, "m", {"clean": True}), "not the references that c.json"),
    ):
        with pytest.raises(DataError, match=said) as refused:
            work()
        assert "\n" not in str(refused.value)
    content, tensors = path.read_bytes(), load_file(path)
    about = {"kind": "gsclip references", "format": "1", "model": "m", "settings": "{}", "share": "1",
             "found": '{"0": 1, "1": 1}', "scale": '{"surface": [0, 1], "zero-shot": [0, 1]}'}  # fmt: skip
    save_file(tensors, path, about)
    assert load_references(path, "m", {}).share == 1
    for changes in ({"kind": "x"}, {"format": "2"}, {"share": "0.3"}, {"share": "x"}, {"scale": "{}"}, {"found": "[]"},
                    {"scale": '{"surface": [0, 0], "zero-shot": [0, 1]}'}):  # fmt: skip
        save_file(tensors, path, {**about, **changes})
        with pytest.raises(DataError, match="no references of this version"):
            load_references(path, "m", {})
    for damaged in (content[:-9], b"", b"{}"):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="no references of this version"):
            load_references(path, "m", {})


def test_who_does_not_compare_is_refused_a_calibration_of_compared_scores(tmp_path):
    made = Calibration("m", {}, 0.2, (0.1,) * 4, (0.1,) * 4, 0.0, references="a" * 64)
    made.save(tmp_path / "c.json")
    assert load_calibration(tmp_path / "c.json", "m", {}, references=True) == made
    with pytest.raises(DataError, match="without --references"):
        load_calibration(tmp_path / "c.json", "m", {})


def test_what_a_part_is_compared_by():
    gsclip, batch = tiny.method(), tiny.batch(1)
    params, stats = tiny.params(gsclip)
    params["surface"] = init_surface(jax.random.key(5), tiny.CLIP.embed_dim, (8, 8))
    for method, streams in ((gsclip, {"render": (1, 3, 16, 16), "depth": (1, 3, 16, 16)}),
                            (fusion.with_surface(gsclip, 0.5), {"surface": (1, 64, 16), "depth": (1, 3, 16, 16)})):  # fmt: skip
        scores, tokens = jax.eval_shape(method.predict_with_tokens, params, stats, batch)
        assert {stream: found.shape for stream, found in tokens.items()} == streams and scores.points.shape == (1, 64)
    one, scores, tokens, batch = good_part(np.random.default_rng(5))
    assert set(one.fields) == set(FIELDS) and one.tokens["surface"].dtype == np.float16 and one.size == tiny.CLIP.image_size


@pytest.mark.slow
def test_good_parts_are_references_and_lie_beside_the_calibration(tmp_path, capsys):
    for seed in range(8):
        part(tmp_path / "good" / f"{seed}.xyz", seed)
    part(tmp_path / "in" / "a.xyz", 9)
    given = [str(tmp_path / "in"), "--good", str(tmp_path / "good"), "--rate", "0.2"]
    assert command.main([*given, "--references", "--out", str(tmp_path / "out")]) == 0
    told = capsys.readouterr().out
    assert "4 good parts are references" in told and "4 good parts: defective above" in told
    known = json.loads((tmp_path / "out" / "calibration.json").read_text())
    assert known["references"] == checksum(tmp_path / "out" / "calibration.safetensors") and len(known["scores"]) == 4
    row = rows(tmp_path / "out")[0]
    assert row["verdict"]["threshold"] == max(known["scores"]) and row["verdict"]["point_threshold"] == max(known["highest"])
    # The part's score is that of its highest scored point; a point of the file has that of the scored one nearest to it.
    assert 0.9 * row["score"] < row["highest_point_score"] <= row["score"]
    assert "are references" in (tmp_path / "out" / "index.html").read_text()
    by_file = [str(tmp_path / "in"), "--calibration", str(tmp_path / "out" / "calibration.json")]
    assert command.main([*by_file, "--out", str(tmp_path / "o2")]) == 0 and rows(tmp_path / "o2")[0]["score"] == row["score"]
    assert command.main([*given, "--out", str(tmp_path / "o3")]) == 0
    assert not (tmp_path / "o3" / "calibration.safetensors").exists() and 0 < rows(tmp_path / "o3")[0]["score"] < 1
    (tmp_path / "out" / "calibration.safetensors").unlink()
    capsys.readouterr()
    assert command.main([*by_file, "--out", str(tmp_path / "o4")]) == 1
    assert "calibration.safetensors: missing" in capsys.readouterr().err and not (tmp_path / "o4").exists()
