"""Good parts as references, beyond zero-shot: how unlike those of good parts a part's tokens are joins its zero-shot score.

As PatchCore (Roth et al. 2022) and WinCLIP+ (Jeong et al. 2023) do for pictures: tokens of good parts are a memory bank, and what
has no near token there (cosine) is suspicious. Tokens are those that the method compares with its texts anyway: of the surface's
points and of the patches of views. The bank knows no places: a part may lie turned and be scanned from another side.

Which part of the score the references have is chosen by the bank's own parts alone, each compared with the others: the share at
which most dents put into them stand out of them. Parts of the bank take no part in the calibration, so that what that says of
false alarms holds: parts to be judged and parts of the calibration are compared with the same bank, which knows none of them.

Axes: B = 1 object, V views, P patches, M scored points, E embedding; R reference parts, K tokens kept of each.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from safetensors.numpy import save

from data_pipelines.batch import Batch
from data_pipelines.files import checksum, write_atomic
from data_pipelines.scan import DataError
from gsclip_jax.method import Scores, Tokens
from gsclip_jax.models.layers import normalise
from gsclip_jax.models.lift import lift
from gsclip_jax.models.precision import EXACT
from gsclip_jax.models.similarity import patch_grid
from gsclip_jax.models.smoothing import smooth_neighbours

KIND, FORMAT = "gsclip references", "1"
ENDING = ".safetensors"  # of their file, beside the calibration
LEAST = 3  # reference parts: fewer say little of each other
SHARES = (0.0, 0.25, 0.5, 0.75, 0.9)  # of the references in the score
TOKENS = 8192  # of a stream that the bank keeps
BLOCK = 2048  # tokens that are compared at once
WIDTH, ROUNDS = 1.0, 6  # of the smoothing of distances (models.smoothing)
SPREAD = 0.95  # quantile of good parts' points that lies one unit above their middle
ZERO_SHOT = "zero-shot"
FIELDS = ("pixel", "visible", "valid", "xyz", "neighbours")  # of a batch


class Seen(NamedTuple):
    """A part as it is compared: numpy, with the batch axis B = 1."""

    object: np.ndarray  # [B], zero-shot
    points: np.ndarray  # [B,M], zero-shot, probabilities
    tokens: Mapping[str, np.ndarray]  # stream -> [B,M,E] or [B,V,P,E], float16
    fields: Mapping[str, np.ndarray]  # FIELDS of the batch
    size: int  # of the views


@dataclasses.dataclass(frozen=True)
class References:
    """The bank, and how it joins the zero-shot score.

    Fields:
      model: digest of the model that made the tokens (`detector.Model`).
      settings: what else tokens depend on (cleaning).
      share: of the references in the joined score, in [0, 1].
      bank: stream -> unit tokens float16 [R,K,E].
      scale: stream, or ZERO_SHOT -> middle and spread of the points of good parts: scores are counted in these.
      found: share -> the chance that a reference part with a dent scores higher than one without.
    """

    model: str
    settings: Mapping[str, Any]
    share: float
    bank: Mapping[str, np.ndarray]
    scale: Mapping[str, tuple[float, float]]
    found: Mapping[str, float]

    @property
    def parts(self) -> int:
        """R."""
        return len(next(iter(self.bank.values())))

    def join(self, scores: Scores, tokens: Tokens, batch: Batch) -> Scores:
        """The zero-shot scores of one object [B = 1,...] with the references' part in them.

        Points are counted in spreads of good parts: 0 is the middle of these, 1 what one in twenty of their points has. The
        object's score is that of its highest point. With a share of 0 the scores stay as they are.
        """
        if not self.share:
            return scores
        part = seen(scores, {stream: tokens[stream] for stream in self.bank}, batch)
        return self.joined(scores, self.ways(part), part.fields["valid"])

    def ways(self, part: Seen) -> dict[str, np.ndarray]:
        """What each stream, and the zero-shot score, say of the points of a part: [B,M] each."""
        return _ways({stream: kept.reshape(-1, kept.shape[-1]) for stream, kept in self.bank.items()}, part)

    def joined(self, scores: Scores, ways: Mapping[str, np.ndarray], valid: np.ndarray) -> Scores:
        """`join` of what `ways` found; `valid` bool [B,M]."""
        if not self.share:
            return scores
        points = np.where(valid, joined(self.share, self.scale, ways), 0).astype(np.float32)
        return scores._replace(object=np.where(valid, points, -np.inf).max(-1), points=points)

    def told(self) -> str:
        """One line on what they are worth."""
        alone, both = (self.found[_name(share)] for share in (0.0, self.share))
        return (f"{self.parts} good parts are references, with a share of {self.share:g} in the score: of dents put into them "
                f"{both:.0%} stand out, {alone:.0%} by the zero-shot score alone")  # fmt: skip

    def save(self, path: str | Path) -> None:
        """Writes a .safetensors file: the bank, and the rest as its metadata."""
        about = {"kind": KIND, "format": FORMAT, "model": self.model}
        about |= {key: json.dumps(getattr(self, key)) for key in ("settings", "share", "scale", "found")}
        write_atomic(Path(path), save({key: np.ascontiguousarray(kept) for key, kept in self.bank.items()}, about))


def load_references(path: str | Path, model: str, settings: Mapping[str, Any]) -> References:
    """What `References.save` wrote.

    Args:
      model, settings: of the parts that are to be compared.

    Raises:
      DataError: no such file, no references, or of another model or other settings; one line.
    """
    try:
        with safetensors.safe_open(path, "np") as file:
            about = file.metadata() or {}
            if about.get("kind") != KIND or about.get("format") != FORMAT:
                raise ValueError
            known = {key: json.loads(about[key]) for key in ("settings", "share", "scale", "found")}
            bank = {stream: file.get_tensor(stream) for stream in file.keys()}
            found = References(about["model"], **{**known, "bank": bank})
        if not bank or {*bank, ZERO_SHOT} != set(found.scale) or not {_name(0.0), _name(found.share)} <= set(found.found):
            raise ValueError
        if any(kept.ndim != 3 or kept.dtype != np.float16 or not np.isfinite(kept).all() for kept in bank.values()):
            raise ValueError
        if not all(len(pair) == 2 and all(map(math.isfinite, pair)) and pair[1] > 0 for pair in found.scale.values()):
            raise ValueError
    except FileNotFoundError:
        raise DataError(f"{path}: missing; it lies beside its calibration, make both with gsclip calibrate") from None
    except (safetensors.SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError):
        raise DataError(f"{path}: no references of this version; make them with gsclip calibrate") from None
    if found.model != model:
        raise DataError(f"{path}: made with model {found.model[:12]}, this is {model[:12]}; calibrate again with this model")
    if found.settings != json.loads(json.dumps(settings)):
        raise DataError(f"{path}: its good parts were prepared with other options; give the same, or calibrate again")
    return found


def references_beside(calibration: Path, digest: str, model: str, settings: Mapping[str, Any]) -> References:
    """Those of a calibration file, which lie beside it.

    Args:
      digest: that the calibration names (`Calibration.references`).
      model, settings: as `load_references`.

    Raises:
      DataError: as `load_references`, or another file than the calibration was made with.
    """
    path = calibration.with_suffix(ENDING)
    found = load_references(path, model, settings)
    if checksum(path) != digest:
        raise DataError(f"{path}: not the references that {calibration.name} was made with; make both with gsclip calibrate")
    return found


def reference_parts(count: int, needed: int) -> list[int]:
    """Which of so many good parts are references, drawn at random with one seed; the others make the calibration.

    Half of them, but so many are left that the false-alarm rate allows verdicts (`needed` of `calibration`). Where they are too
    few for verdicts anyway, half. None where that leaves less than LEAST.
    """
    half = count // 2
    chosen = min(half, count - needed) if count >= needed else half
    return sorted(np.random.default_rng(0).permutation(count)[:chosen].tolist()) if chosen >= LEAST else []


def seen(scores: Scores, tokens: Tokens, batch: Batch) -> Seen:
    """What is kept of a part until the bank is made."""
    kept = {stream: np.asarray(values, np.float16) for stream, values in tokens.items()}
    fields = {key: np.asarray(batch[key]) for key in FIELDS}
    return Seen(np.asarray(scores.object), np.asarray(scores.points), kept, fields, batch["render"].shape[2])


def make_references(model: str, settings: Mapping[str, Any], parts: Sequence[Seen], dented: Sequence[Seen]) -> References:
    """The bank of good parts, and the share that it gets.

    Args:
      parts: at least two.
      dented: the same parts with a dent put into each.
    """
    bank = {stream: _drawn([part.tokens[stream] for part in parts]) for stream in parts[0].tokens}
    ways = []  # of a part and of its dented twin: what each stream says of its points, by the other parts
    for number, twins in enumerate(zip(parts, dented, strict=True)):
        others = {stream: np.delete(kept, number, axis=0).reshape(-1, kept.shape[-1]) for stream, kept in bank.items()}
        for part in twins:
            valid = part.fields["valid"][0]
            ways.append({name: values[0][valid] for name, values in _ways(others, part).items()})
    good, spoilt = ways[::2], ways[1::2]
    scale = {name: _scale(np.concatenate([way[name] for way in good])) for name in good[0]}
    found = {}
    for share in SHARES:
        if share:
            sound, bad = (np.array([joined(share, scale, way).max() for way in group]) for group in (good, spoilt))
        else:
            sound, bad = (np.array([float(part.object[0]) for part in group]) for group in (parts, dented))
        higher = bad[:, None] - sound
        found[_name(share)] = float(((higher > 0) + 0.5 * (higher == 0)).mean())
    share = max(SHARES, key=lambda share: (found[_name(share)], share))
    return References(model, json.loads(json.dumps(settings)), share, bank, scale, found)


def joined(share: float, scale: Mapping[str, tuple[float, float]], ways: Mapping[str, np.ndarray]) -> np.ndarray:
    """What streams and the zero-shot score say of points, [...] each, counted in spreads of good parts and joined."""
    counted = {name: (np.asarray(ways[name]) - middle) / spread for name, (middle, spread) in scale.items()}
    zero_shot = counted.pop(ZERO_SHOT)
    return (1 - share) * zero_shot + share * sum(counted.values()) / len(counted)


def _ways(bank: Mapping[str, np.ndarray], part: Seen) -> dict[str, np.ndarray]:
    tokens = {stream: part.tokens[stream] for stream in bank}
    return {**jax.device_get(_away(dict(bank), tokens, dict(part.fields), part.size)), ZERO_SHOT: _odds(part.points)}


def _name(share: float) -> str:
    return f"{share:g}"


def _scale(values: np.ndarray) -> tuple[float, float]:
    middle, high = np.quantile(values.astype(np.float64), [0.5, SPREAD])
    return float(middle), max(float(high - middle), 1e-6)


def _odds(points: Any) -> np.ndarray:
    points = np.clip(np.asarray(points, np.float32), 1e-6, 1 - 1e-6)
    return np.log(points) - np.log1p(-points)


def _drawn(tokens: Sequence[np.ndarray]) -> np.ndarray:
    """Unit tokens [R,K,E] of R parts, each [B,...,E]: as many of each, drawn at random with one seed."""
    rows = [np.asarray(part, np.float32).reshape(-1, part.shape[-1]) for part in tokens]
    count = min(TOKENS // len(rows), *map(len, rows))
    drawn = [part[np.random.default_rng(number).permutation(len(part))[:count]] for number, part in enumerate(rows)]
    unit = np.stack(drawn)
    return (unit / np.maximum(np.linalg.norm(unit, axis=-1, keepdims=True), 1e-12)).astype(np.float16)


@functools.partial(jax.jit, static_argnames="size")
def _away(bank: Mapping[str, jax.Array], tokens: Tokens, fields: Mapping[str, jax.Array], size: int) -> dict[str, jax.Array]:
    """Distances of every scored point from the bank [K,E], by stream: [B,M], smoothed over neighbours in space.

    Args:
      size: of the views, in whose pixels `fields["pixel"]` counts.
    """
    found = {}
    for stream, values in tokens.items():
        away = nearest(values.reshape(-1, values.shape[-1]), bank[stream]).reshape(values.shape[:-1])
        if values.ndim == 4:  # patches of views
            cells = patch_grid(away[..., None])[..., 0]
            away = lift(cells, fields["pixel"], fields["visible"], fields["valid"], size)
        found[stream] = smooth_neighbours(away, fields["xyz"], fields["neighbours"], fields["valid"], width=WIDTH, rounds=ROUNDS)
    return found


def nearest(tokens: jax.Array, bank: jax.Array) -> jax.Array:
    """1 - cosine of every token [N,E] and the most similar one of the bank [K,E], float32 [N]."""
    bank, count = normalise(bank), len(tokens)
    blocks = jnp.pad(normalise(tokens), ((0, -count % BLOCK), (0, 0))).reshape(-1, BLOCK, tokens.shape[-1])
    most = jax.lax.map(lambda block: jnp.matmul(block, bank.T, precision=EXACT).max(-1), blocks)
    return 1 - most.reshape(-1)[:count]
