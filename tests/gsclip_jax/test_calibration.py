"""Verdicts by good parts: hand-derived p-values, thresholds and intervals, coverage, drift, and what is refused."""

import json

import numpy as np
import pytest
from scipy.stats import binom, lognorm

from data_pipelines.scan import DataError
from gsclip_jax.inspection.calibration import Calibration, dented, load_calibration
from gsclip_jax.inspection.result import Part


def calibration(scores, rate=0.2, highest=None, dents=()) -> Calibration:
    return Calibration("m", {}, rate, tuple(scores), tuple(highest or scores), 0.1, tuple(dents))


def part(score: float) -> Part:
    empty = np.zeros((1, 3))
    return Part("a", "a", score, empty, np.zeros(1, np.float32), None, np.zeros(1, bool), *[np.zeros((0, 2, 2))] * 3)


def test_by_hand():
    made = calibration([0.1, 0.2, 0.3, 0.4], rate=0.2, highest=[0.5, 0.9, 0.6, 0.7])
    assert [made.p_value(score) for score in (0.05, 0.1, 0.25, 0.4, 0.41)] == [1.0, 1.0, 0.6, 0.4, 0.2]
    assert made.needed == 4 and made.threshold == 0.4 and made.point_threshold == 0.9
    assert made.judge(part(0.41)).kind == "defective" and made.judge(part(0.4)).kind == "sound"
    # The true rate above the highest of four is distributed as Beta(1, 4), whose quantiles are 1 - (1 - q)^(1/4).
    np.testing.assert_allclose(made.uncertainty(), [1 - 0.95**0.25, 1 - 0.05**0.25])
    made = calibration([0.1, 0.2, 0.3, 0.4], rate=0.4)
    assert made.threshold == 0.3 and made.judge(part(0.35)).kind == "defective" and made.judge(part(0.3)).kind == "sound"


def test_too_few_good_parts_cannot_tell():
    made = calibration([0.1, 0.2, 0.3], rate=0.2)
    verdict = made.judge(part(0.99))
    assert verdict.kind == "cannot tell" and verdict.threshold is None and "it takes 4" in verdict.reason
    assert made.uncertainty() is None and "no verdicts" in made.told() and made.drift([0.9] * 50) == ""
    assert [calibration([0.1], rate=rate).needed for rate in (0.05, 0.1, 0.2, 0.5)] == [19, 9, 4, 1]


def test_where_dents_do_not_stand_out_no_part_is_called_sound():
    scores = np.linspace(0.1, 0.4, 9)
    blind, seeing = (calibration(scores, 0.1, dents=dents) for dents in ([0.2] * 6 + [0.5] * 3, [0.5] * 8 + [0.2]))
    assert blind.judge(part(0.2)).kind == "cannot tell" and "33%" in blind.judge(part(0.2)).reason
    assert seeing.judge(part(0.2)).kind == "sound" and blind.judge(part(0.6)).kind == seeing.judge(part(0.6)).kind == "defective"


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.2])
def test_false_alarms_are_as_many_as_stated(rate):
    """Over many draws of 20 good parts and one more each: the rate itself, floor(rate * 21) / 21, within binomial error; and the
    interval holds the true rate of a threshold nine times in ten."""
    rng = np.random.default_rng(0)
    alarms, inside = 0, 0
    for _ in range(2000):
        scores = rng.lognormal(size=21)
        made = calibration(scores[:20], rate)
        alarms += made.judge(part(scores[20])).kind == "defective"
        low, high = made.uncertainty()
        inside += low <= lognorm.sf(made.threshold, 1) <= high
    exact = int(rate * 21 + 1e-9) / 21
    assert binom.ppf(0.001, 2000, exact) <= alarms <= binom.ppf(0.999, 2000, exact) and exact <= rate
    assert binom.ppf(0.001, 2000, 0.9) <= inside <= binom.ppf(0.999, 2000, 0.9)


def test_drift():
    rng = np.random.default_rng(0)
    made = calibration(rng.normal(size=40), 0.1)
    assert sum(bool(made.drift(rng.normal(size=60))) for _ in range(100)) <= 2
    assert made.drift(rng.normal(size=60) - 2).startswith("drift:") and made.drift(rng.normal(size=9) - 9) == ""
    assert "many defective" in made.drift([*rng.normal(size=30), *rng.normal(size=30) + 9])


def test_a_file_of_another_model_or_other_options_is_refused(tmp_path):
    path, made = tmp_path / "c.json", calibration([0.1, 0.2, 0.3, 0.4], dents=[0.5])
    made.save(path)
    assert load_calibration(path, "m", {}) == made and load_calibration(path, "m", {}, 0.5).rate == 0.5
    assert path.stat().st_size < 2000
    for arguments, said in ((("n", {}), "made with model m, this is n"), (("m", {"clean": True}), "clean=True"),
                            (("m", {}, 1.5), "false-alarm rate of 1.5")):  # fmt: skip
        with pytest.raises(DataError, match=said):
            load_calibration(path, *arguments)
    known = json.loads(path.read_text())
    for changes in ({"scores": []}, {"kind": "x"}, {"format": 2}, {"scores": [1, float("nan"), 2, 3]}, {"more": 1},
                    {"scores": "x"}):  # fmt: skip
        path.write_text(json.dumps({**known, **changes}))
        with pytest.raises(DataError, match="no calibration of this version") as refused:
            load_calibration(path, "m", {})
        assert "\n" not in str(refused.value)
    for content in ("", "[]", "{"):
        path.write_text(content)
        with pytest.raises(DataError, match="no calibration"):
            load_calibration(path, "m", {})
    with pytest.raises(DataError, match="No such file"):
        load_calibration(tmp_path / "none", "m", {})


def test_a_dent_goes_inwards_and_no_further_than_said():
    rng = np.random.default_rng(0)
    ball = rng.standard_normal((2000, 3))
    ball /= np.linalg.norm(ball, axis=1, keepdims=True)
    valid = np.arange(2000) % 50 > 0
    pushed = dented(ball, valid, ball[valid] * rng.choice([-1, 1], (valid.sum(), 1)), 0)
    moved = np.linalg.norm(pushed - ball, axis=1)
    assert 0 < (moved > 0).sum() < 200 and moved.max() <= 2 / 30 + 1e-9 and not moved[~valid].any()
    assert (np.linalg.norm(pushed, axis=1)[moved > 0.01] < 1).all()
