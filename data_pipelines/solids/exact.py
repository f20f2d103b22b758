"""Elementary functions and sums that give the same bits on every processor.

numpy's own sin, cos, exp, log and power, `@`, einsum and LAPACK pick their code by the processor's features (AVX2, AVX-512,
fused multiply-add), and the last bits follow. A last bit decides which point of two is kept, and then a scan is another one.
What is here is made of operations that IEEE 754 defines to the bit (+ - * / sqrt, rounding, comparison), one after another in
a fixed order. Sorting, searching and integers need nothing of the kind, except that equal elements must be sorted stably.

Angles are in radians. Elementwise functions are computed in float64; they return float32 where every input is float32.
"""

from __future__ import annotations

import math

import numpy as np

_CHUNK = 8192  # elements worked on at a time: they stay in the processor's cache
_SIN = [(-1) ** k / math.factorial(2 * k + 1) for k in range(11)]
_ATAN = [(-1) ** k / (2 * k + 1) for k in range(12)]
_EXP = [1 / math.factorial(k) for k in range(15)]
_LOG = [2 / (2 * k + 1) for k in range(12)]
# The first part has so few digits that its product with a small integer has no rounding error; the second is the rest.
_PI, _LN2 = (3.1415926534682512, 1.2154201013012384e-10), (0.6931471796706319, 8.893134238886677e-10)


def _series(x: np.ndarray, coefficients: list[float]) -> np.ndarray:
    """The polynomial with these coefficients, lowest first, by Horner's rule."""
    result = np.full_like(x, coefficients[-1])
    for c in coefficients[-2::-1]:
        result *= x
        result += c
    return result


def _elementwise(function):
    """`function` of float64 vectors, made to take numbers and arrays of any shape."""

    def wrapped(*inputs):
        arrays = np.broadcast_arrays(*inputs)
        single = all(np.asarray(x).dtype == np.float32 for x in inputs)
        result = np.empty(arrays[0].shape, np.float32 if single else np.float64)
        flat, sources = result.reshape(-1), [x.reshape(-1) for x in arrays]
        for start in range(0, len(flat), _CHUNK):
            part = slice(start, start + _CHUNK)
            flat[part] = function(*(x[part].astype(np.float64) for x in sources))
        return result[()]

    wrapped.__doc__, wrapped.__name__ = function.__doc__, function.__name__
    return wrapped


@_elementwise
def sin(x):
    """Sine, to 1e-15 for |x| up to some thousand."""
    turns = np.rint(x * (1 / math.pi))
    return _half_wave(x, turns, turns)


@_elementwise
def cos(x):
    """Cosine, to 1e-15 for |x| up to some thousand."""
    turns = np.rint(x * (1 / math.pi) - 0.5)
    return _half_wave(x, turns + 0.5, turns + 1)


def _half_wave(x, half_turns, number):
    """The sine's rise between two extremes, about x = half_turns * pi; falling where `number` is odd."""
    rest = x - half_turns * _PI[0] - half_turns * _PI[1]
    odd = np.abs(number - 2 * np.rint(0.5 * number))
    return (1 - 2 * odd) * rest * _series(rest * rest, _SIN)


@_elementwise
def arctan2(y, x):
    """Angle of (x, y) in [-pi, pi]; 0 at the origin. The sign of a zero does not matter."""
    a, b = np.abs(x), np.abs(y)
    larger = np.maximum(a, b)
    t = np.minimum(a, b) / np.where(larger > 0, larger, 1)
    for _ in range(2):  # half the angle, twice: then a few terms do
        t = t / (1 + np.sqrt(1 + t * t))
    angle = 4 * t * _series(t * t, _ATAN)
    angle = np.where(b > a, math.pi / 2 - angle, angle)
    angle = np.where(x < 0, math.pi - angle, angle)
    return np.where(y < 0, -angle, angle)


@_elementwise
def exp(x):
    """Exponential function, for |x| < 700."""
    return _exp(x)


def _exp(x):
    power_of_two = np.rint(x * (1 / math.log(2)))
    return np.ldexp(_series(x - power_of_two * _LN2[0] - power_of_two * _LN2[1], _EXP), power_of_two.astype(np.int32))


@_elementwise
def power(x, exponent):
    """x ** exponent for x >= 0 and exponent > 0."""
    mantissa, power_of_two = np.frexp(np.where(x > 0, x, 1))
    low = mantissa < math.sqrt(0.5)
    mantissa, power_of_two = np.where(low, 2 * mantissa, mantissa), power_of_two - low
    t = (mantissa - 1) / (mantissa + 1)
    logarithm = t * _series(t * t, _LOG) + power_of_two * _LN2[1] + power_of_two * _LN2[0]
    return np.where(x > 0, _exp(exponent * logarithm), 0)


def hypot(x, y):
    """Length of the vectors (x, y), elementwise."""
    return np.sqrt(x * x + y * y)


def dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Scalar products along the last axis, which is short: [..., K] and [..., K] -> [...]."""
    return sum((a[..., k] * b[..., k] for k in range(1, a.shape[-1])), start=a[..., 0] * b[..., 0])


def norm(x: np.ndarray) -> np.ndarray:
    """Lengths along the last axis, which is short: [..., K] -> [...]."""
    return np.sqrt(dot(x, x))


def times(a: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """a @ matrix for a [..., K] and a small matrix [K, M] or [K]."""
    if matrix.ndim == 1:
        return dot(a, np.broadcast_to(matrix, a.shape))
    return np.stack([times(a, column) for column in matrix.T], -1)


def total(x: np.ndarray) -> np.ndarray:
    """Sum along the first axis, one after another: [N, ...] -> [...]."""
    return np.cumsum(x, axis=0)[-1]


def mean(x: np.ndarray) -> np.ndarray:
    """Mean along the first axis: [N, ...] -> [...]."""
    return total(x) / len(x)


def principal_axes(points: np.ndarray) -> np.ndarray:
    """Unit vectors [3, 3], one a row, along which points [N, 3] spread, the widest first (Jacobi's rotations)."""
    away = points - mean(points)
    a = [[float(total(away[:, i] * away[:, j])) for j in range(3)] for i in range(3)]
    axes = [[float(i == j) for j in range(3)] for i in range(3)]
    for _ in range(12):  # sweeps; the rest shrinks quadratically
        for p, q in ((0, 1), (0, 2), (1, 2)):
            if a[p][q] == 0:
                continue
            slope = (a[q][q] - a[p][p]) / (2 * a[p][q])
            t = (1 if slope >= 0 else -1) / (abs(slope) + math.sqrt(slope * slope + 1))
            c = 1 / math.sqrt(t * t + 1)
            s = t * c
            for m in (a, axes):  # rows: of the matrix from the left, of the axes
                m[p], m[q] = ([c * x - s * y for x, y in zip(m[p], m[q], strict=True)],
                              [s * x + c * y for x, y in zip(m[p], m[q], strict=True)])  # fmt: skip
            for row in a:
                row[p], row[q] = c * row[p] - s * row[q], s * row[p] + c * row[q]
            a[p][q] = a[q][p] = 0.0
    order = sorted(range(3), key=lambda i: -a[i][i])
    return np.array([axes[i] for i in order])
