"""A frame and an order of a scan's points that depend on the points alone: not on their order, unit, place or attitude.

Coordinates stay float64 until here: survey coordinates of millions of metres leave float32 too few digits for the part. From here
on they are whole numbers of GRID steps a radius, which float32 holds exactly and whose squared distances float64 holds exactly,
so that every later comparison comes out the same on any processor.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

GRID = 1 << 24  # steps a radius: as fine as float32 is near one
_CELLS = 1 << 7  # cells a radius, for the order of points


class Frame(NamedTuple):
    """Where a scan lies, how large it is and how it is turned."""

    centre: np.ndarray  # [3] float64, the mean of its distinct points, in the scan's unit
    radius: float  # largest distance from it, in the scan's unit
    axes: np.ndarray  # [3, 3] float64, a principal axis a row, each pointing where the points reach farther

    def steps(self, xyz: np.ndarray, turned: bool = False) -> np.ndarray:
        """Points [S, 3] in the scan's unit -> whole numbers [S, 3] float64 of GRID steps; `turned`: along the principal axes."""
        scaled = (np.asarray(xyz, np.float64) - self.centre) * (GRID / self.radius)
        if turned:  # sums in a fixed order: a matrix product's depends on the processor
            scaled = np.stack([scaled[:, 0] * a[0] + scaled[:, 1] * a[1] + scaled[:, 2] * a[2] for a in self.axes], 1)
        return np.rint(scaled)

    def unit(self, xyz: np.ndarray) -> np.ndarray:
        """Points [S, 3] in the scan's unit -> float32 [S, 3], centred and in radii, in the scan's own attitude; exact multiples
        of 1 / GRID."""
        return (self.steps(xyz) / GRID).astype(np.float32)


def frame_of(xyz: np.ndarray) -> Frame:
    """The frame of distinct points [S, 3], at least two.

    The mean, and the third moments that say which way an axis points, are sums without rounding: bit-equal in any order.
    """
    points = np.asarray(xyz, np.float64)
    middle = (points.min(0) + points.max(0)) / 2  # small numbers first: the sums keep their digits
    centre = middle + _mean(points - middle)
    off = points - centre
    radius = float(np.sqrt(np.square(off[:, 0]) + np.square(off[:, 1]) + np.square(off[:, 2])).max())
    off /= radius
    spread = np.empty((3, 3))
    for i in range(3):
        for j in range(i, 3):
            spread[i, j] = spread[j, i] = math.fsum(off[:, i] * off[:, j]) / len(off)
    axes = np.linalg.eigh(spread)[1].T
    lean = [math.fsum((off[:, 0] * a[0] + off[:, 1] * a[1] + off[:, 2] * a[2]) ** 3) for a in axes]
    return Frame(centre, radius, axes * np.where(np.array(lean) < 0, -1.0, 1.0)[:, None])


def _mean(points: np.ndarray) -> np.ndarray:
    return np.array([math.fsum(column) for column in points.T]) / len(points)


def distinct(steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(first [D], which [S]) of points [S, 3] in whole numbers: the index of one of every place, and the place of every point.

    Places come in the order of their coordinates, whatever the order of the points.
    """
    order = np.lexsort(steps.T)
    new = np.ones(len(order), bool)
    new[1:] = (steps[order[1:]] != steps[order[:-1]]).any(1)
    which = np.empty(len(order), np.int64)
    which[order] = np.cumsum(new) - 1
    return order[new], which


def shuffled(steps: np.ndarray, seed: int) -> np.ndarray:
    """An order [S] of distinct points [S, 3] in whole numbers of GRID steps that looks drawn at random and is decided by where
    the points lie.

    A point's place in it is a hash of the cell it is in and of its rank inside the cell. So a point that round-off moves, comes
    or goes changes the order of its own cell alone, where a permutation drawn by index would change everything.
    """
    # Half a cell aside: the middle of a flat part must not lie on the border between two.
    cell = np.floor(steps * (_CELLS / GRID) + 0.5).astype(np.int64) + _CELLS
    key = (cell[:, 0] << 40) + (cell[:, 1] << 20) + cell[:, 2]
    order = np.lexsort((*steps.T, key))
    key = key[order]
    start = np.ones(len(key), bool)
    start[1:] = key[1:] != key[:-1]
    first = np.flatnonzero(start)
    inside = np.arange(len(key)) - np.repeat(first, np.diff(np.append(first, len(key))))
    hashed = _mixed(_mixed(key.astype(np.uint64) ^ _mixed(np.uint64(seed))) + inside.astype(np.uint64))
    return order[np.argsort(hashed, kind="stable")]


def _mixed(number: np.ndarray) -> np.ndarray:
    """A well-spread 64-bit hash of 64-bit numbers. Source: the finaliser of SplitMix64 (Steele et al., 2014)."""
    with np.errstate(over="ignore"):
        number = np.asarray(number, np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        number = (number ^ (number >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        number = (number ^ (number >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return number ^ (number >> np.uint64(31))
