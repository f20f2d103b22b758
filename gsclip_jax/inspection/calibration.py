"""What good parts let one say of others: conformal p-values, thresholds with their uncertainty, drift, and when to say nothing.

Source: Vovk et al., Algorithmic learning in a random world (2005); the distribution of the false-alarm rate given the good parts
is that of Vovk, Conditional validity of inductive conformal predictors (2012).
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy  # its stats load when they are used: half a second that a ranking does not need

from data_pipelines.files import write_atomic
from data_pipelines.scan import DataError
from gsclip_jax.inspection.page import GoodParts
from gsclip_jax.inspection.result import Part, Verdict

KIND, FORMAT = "gsclip calibration", 1
RATE = 0.1  # false alarms, where nobody says otherwise
SEEN = 0.5  # share of the defects put into good parts that has to be found before a part is called sound
DRIFT = 10  # incoming parts before anything is said of drift
SURE = 0.001  # probability under which a coincidence is none


@dataclasses.dataclass(frozen=True)
class Calibration:
    """The scores of good parts.

    Fields:
      model: digest of the model that scored them (`detector.Model`); another model's scores mean something else.
      settings: what else scores depend on (cleaning).
      rate: the false-alarm rate asked for, in (0, 1).
      scores: [G], of the parts.
      highest: [G], the highest point score of each.
      middle: the median score of their points.
      dented: [D], scores of good parts with a dent put into them; () where nobody tried.
      references: SHA-256 of the file with the good parts that all scores are compared with (`references.References`); '' for
        zero-shot scores.
    """

    model: str
    settings: Mapping[str, Any]
    rate: float
    scores: tuple[float, ...]
    highest: tuple[float, ...]
    middle: float
    dented: tuple[float, ...] = ()
    references: str = ""

    def __post_init__(self):
        if not 0 < self.rate < 1:
            raise DataError(f"a false-alarm rate of {self.rate} is none; give one between 0 and 1")
        values = np.array([*self.scores, *self.highest, *self.dented, self.middle], float)
        if not len(self.scores) or len(self.scores) != len(self.highest) or not np.isfinite(values).all():
            raise DataError("a calibration needs the finite scores of at least one good part")

    @property
    def needed(self) -> int:
        """Good parts that the rate takes, at least."""
        return needed(self.rate)

    def _from_top(self) -> int:
        """k: a part is called defective that scores above the k-th highest good part; 0 where there are too few of them."""
        return math.floor(self.rate * (len(self.scores) + 1) + 1e-9)

    @property
    def threshold(self) -> float | None:
        """The object score above which a part is called defective; None with too few good parts."""
        return _kth_highest(self.scores, self._from_top())

    @property
    def point_threshold(self) -> float | None:
        """The same for points: that share of good parts has a point above it."""
        return _kth_highest(self.highest, self._from_top())

    def p_value(self, score: float) -> float:
        """Share of good parts, this part counted as one, that score at least as high. Of a good part it is at most `r` with a
        probability of at most `r`, whatever the model."""
        return (1 + sum(good >= score for good in self.scores)) / (len(self.scores) + 1)

    def uncertainty(self, level: float = 0.9) -> tuple[float, float] | None:
        """Between which false-alarm rates the true one of the threshold lies with probability `level`: the good parts are a
        sample. None without a threshold."""
        k, count = self._from_top(), len(self.scores)
        if not k:
            return None
        low, high = scipy.stats.beta.ppf([(1 - level) / 2, (1 + level) / 2], k, count + 1 - k)
        return float(low), float(high)

    @property
    def power(self) -> float | None:
        """Share of the parts with a dent put into them that scores above the threshold; None where nobody tried."""
        return float((np.array(self.dented) > self.threshold).mean()) if self.dented and self.threshold is not None else None

    def judge(self, part: Part) -> Verdict:
        """The verdict on a part, which this calibration's model scored."""
        p, count = self.p_value(part.score), len(self.scores)
        if self.threshold is None:
            why = f"{count} good parts are too few for a false-alarm rate of {self.rate:g}: it takes {self.needed}"
            return Verdict("cannot tell", p, None, None, why)
        limits = self.threshold, self.point_threshold
        if p <= self.rate:
            above = f"it scores higher than {count + 1 - round(p * (count + 1))} of {count} good parts"
            return Verdict("defective", p, *limits, f"{above}; of good parts at most {self.rate:.0%} are expected to")
        if self.power is not None and self.power < SEEN:
            why = f"so do good parts with a dent put into them: {self.power:.0%} of these are above the threshold"
            return Verdict("cannot tell", p, *limits, f"it scores as good parts do, but {why}")
        return Verdict("sound", p, *limits, f"{p:.0%} of good parts score as high or higher")

    def drift(self, scores: Sequence[float]) -> str:
        """One sentence where incoming parts no longer look like the good parts, else nothing.

        Two things are told apart: more parts above the threshold than the rate explains, which may also be defects, and parts
        below it that are distributed otherwise than the good ones (two-sample Kolmogorov-Smirnov).
        """
        threshold = self.threshold
        if threshold is None or len(scores) < DRIFT:
            return ""
        values, good = np.asarray(scores, float), np.array(self.scores)
        above, most = int((values > threshold).sum()), (self.uncertainty() or (0, self.rate))[1]
        below, known = values[values <= threshold], good[good <= threshold]
        if len(below) >= DRIFT and len(known) > 3 and scipy.stats.ks_2samp(below, known).pvalue < SURE:
            return (f"drift: the {len(below)} parts below the threshold do not score as the good parts did; look whether the "
                    "scanner, its settings or the parts have changed, and calibrate again")  # fmt: skip
        if scipy.stats.binom.sf(above - 1, len(values), most) < SURE:
            return (f"drift, or many defective parts: {above} of {len(values)} parts are above the threshold, where a rate of "
                    f"{self.rate:g} lets one expect {self.rate * len(values):.0f}; look at some of them, and calibrate again if "
                    "they are good")  # fmt: skip
        return ""

    def told(self) -> str:
        """One line on what it is worth."""
        count, between = len(self.scores), self.uncertainty()
        if between is None:
            return f"{count} good parts: too few for a false-alarm rate of {self.rate:g}, which takes {self.needed}; no verdicts"
        text = (f"{count} good parts: defective above {self.threshold:.4g}, at a false-alarm rate of {self.rate:g} (with so many "
                f"parts it lies between {between[0]:.1%} and {between[1]:.1%}, nine times in ten)")  # fmt: skip
        return text if self.power is None else f"{text}; {self.power:.0%} of dents put into good parts are found"

    def for_page(self, warnings: Sequence[str] = ()) -> GoodParts:
        return GoodParts(np.array(self.scores), self.threshold, self.rate, self.middle, self.point_threshold, tuple(warnings))

    def save(self, path: str | Path) -> None:
        """Writes a small JSON file."""
        known = {"kind": KIND, "format": FORMAT, **dataclasses.asdict(self)}
        write_atomic(Path(path), json.dumps(known, indent=1) + "\n")


def needed(rate: float) -> int:
    """Good parts of a calibration that a false-alarm rate takes, at least."""
    return math.ceil(1 / rate - 1e-9) - 1


def load_calibration(path: str | Path, model: str, settings: Mapping[str, Any], rate: float | None = None,
                     references: bool = False) -> Calibration:  # fmt: skip
    """What `Calibration.save` wrote.

    Args:
      model, settings: of the parts that are to be judged.
      rate: instead of the one it was saved with.
      references: whether the caller compares with references, too; without, a calibration of such scores is refused.

    Raises:
      DataError: no such file, no calibration, or one of another model or other settings; one line.
    """
    try:
        known = json.loads(Path(path).read_text(encoding="utf-8"))
        if known.pop("kind") != KIND or known.pop("format") != FORMAT:
            raise ValueError
        found = Calibration(**{**known, **{key: tuple(map(float, known[key])) for key in ("scores", "highest", "dented")}})
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; make one with gsclip calibrate") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        why = f" ({error})" if isinstance(error, DataError) else ""
        raise DataError(f"{path}: no calibration of this version{why}; make one with gsclip calibrate") from None
    if found.model != model:
        raise DataError(f"{path}: made with model {str(found.model)[:12]}, this is {model[:12]}; calibrate again with this model")
    if found.settings != json.loads(json.dumps(settings)):
        raise DataError(f"{path}: its good parts were prepared with {_words(found.settings)}, now it is {_words(settings)}; give "
                        "the same options, or calibrate again")  # fmt: skip
    if found.references and not references:
        raise DataError(f"{path}: its scores are compared with reference parts, which is not done here; make one with gsclip "
                        "calibrate without --references")  # fmt: skip
    return found if rate is None else dataclasses.replace(found, rate=rate)


def _words(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in settings.items()) or "nothing"


def _kth_highest(values: Sequence[float], k: int) -> float | None:
    return sorted(values, reverse=True)[k - 1] if k else None


def dented(xyz: np.ndarray, valid: np.ndarray, normals: np.ndarray, seed: int) -> np.ndarray:
    """A scan [S,3] with a dent: points within a tenth of its longest side about one of them are pushed along their normals, by up
    to a thirtieth of it, all to one side.

    Args:
      normals: [V,3] of the `valid` rows, of any sign.
    """
    points = xyz[valid]
    side = np.ptp(points, axis=0).max()
    middle = np.random.default_rng(seed).integers(len(points))
    facing = normals * np.where(normals @ normals[middle] < 0, -1.0, 1.0)[:, None]
    near = np.exp(-np.square(np.linalg.norm(points - points[middle], axis=1) / (0.1 * side)) * 3)
    inwards = facing if facing[middle] @ (points.mean(0) - points[middle]) > 0 else -facing
    pushed = xyz.copy()
    pushed[valid] = points + (side / 30 * np.where(near > 0.05, near, 0))[:, None] * inwards
    return pushed
