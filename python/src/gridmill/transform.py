"""Signs and rotations of rows. Page: `formats/transform.md`.

Only additions, one order, and one multiplication at the end: the results have the bits of every
other implementation of the page.
"""

import math
import re
from dataclasses import dataclass
from functools import cache

import numpy as np

# The largest order of Paley's matrices that the format has.
ORDER_MAX = 256

_TEXT = re.compile(
    "none|hadamard:([1-9][0-9]*)|kronecker:([1-9][0-9]*)x([1-9][0-9]*)|parted:([1-9][0-9]*)"
)


@dataclass(frozen=True)
class Transform:
    """What the rows of a weight have gone through."""

    # As in the registry: `none`, `hadamard:64`, `kronecker:36x16`, `parted:64`.
    text: str
    # Of Sylvester's matrix.
    block: int
    # Of Paley's matrix, 1 for none.
    order: int
    # Loud values of a row, 0 where it is not parted.
    high: int = 0

    @property
    def is_none(self) -> bool:
        """Whether rows are in the original basis."""
        return self.text == "none"

    def fits(self, cols: int) -> bool:
        """Whether the pages allow this transform of rows of `cols` values."""
        if self.high:
            return self.high < cols
        if self.block & (self.block - 1):
            return False
        if self.text.startswith("kronecker"):
            return self.order * self.block == cols and paley(self.order) is not None
        return cols % self.block == 0


def by_text(text: str) -> Transform | None:
    """The transform that the registry writes so."""
    match = _TEXT.fullmatch(text)
    if match is None:
        return None
    numbers = [int(number) if number else 0 for number in match.groups()]
    block, order, inner, high = numbers
    return Transform(text, max(block, inner, 1), max(order, 1), high)


def inverse(transform: Transform, signs: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Turns rows back to the original basis: `signs * (scale * H^T values)`.

    `values` is `(rows, cols)` float32, `signs` `(cols,)` int8; the result is a new array.
    """
    if transform.is_none:
        return values.copy()
    if transform.high:
        return _inverse_parted(transform.high, signs, values)
    with np.errstate(all="ignore"):
        turned = _sylvester(values, transform.block)
        if transform.order > 1:
            turned = _paley_transposed(turned, transform.order, transform.block)
        scale = np.float32(1.0 / math.sqrt(transform.order * transform.block))
        turned = turned * scale
        turned *= signs.astype(np.float32)
    return turned


def _inverse_parted(high: int, signs: np.ndarray, values: np.ndarray) -> np.ndarray:
    """As `inverse`: each part for itself, then every value to its input."""
    low = values.shape[1] - high
    turned = np.empty_like(values)
    parts = [(values[:, :low], np.abs(signs) == 1), (values[:, low:], np.abs(signs) == 2)]
    with np.errstate(all="ignore"):
        for part, places in parts:
            block = part.shape[1] & -part.shape[1]
            back = _sylvester(np.ascontiguousarray(part), block)
            turned[:, places] = back * np.float32(1.0 / math.sqrt(block))
        turned *= np.sign(signs).astype(np.float32)
    return turned


def signs_of_seed(seed: int, count: int) -> np.ndarray:
    """The signs that a converter makes from a seed, `(count,)` int8; all +1 for seed 0."""
    if seed == 0:
        return np.ones(count, np.int8)
    mask = (1 << 64) - 1
    signs = np.empty(count, np.int8)
    state = seed
    for i in range(count):
        state = state + 0x9E3779B97F4A7C15 & mask
        z = state
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & mask
        z = (z ^ z >> 27) * 0x94D049BB133111EB & mask
        signs[i] = -1 if (z ^ z >> 31) >> 63 else 1
    return signs


def _sylvester(values: np.ndarray, block: int) -> np.ndarray:
    """Sylvester's matrix on every run of `block` values, not normalised."""
    shape = values.shape
    half = 1
    while half < block:
        pairs = values.reshape(-1, 2, half)
        a, b = pairs[:, 0], pairs[:, 1]
        values = np.stack([a + b, a - b], axis=1)
        half *= 2
    return values.reshape(shape)


def _paley_transposed(values: np.ndarray, order: int, block: int) -> np.ndarray:
    """Paley's transposed matrix across the runs of `block` values, not normalised."""
    runs = values.reshape(-1, order, block)
    plus = paley(order)
    # Sums start with their first value; -0 is what leaves every first value as it is.
    total = np.full((runs.shape[0], 1, block), -0.0, np.float32)
    sums = np.full(runs.shape, -0.0, np.float32)
    for k in range(order):
        run = runs[:, k : k + 1]
        total += run
        # Row k of the matrix is what value k adds to, because column k takes the place of row k.
        sums[:, plus[k]] += run
    return (sums + sums - total).reshape(values.shape)


@cache
def paley(order: int) -> np.ndarray | None:
    """Where Paley's matrix of this order has +1, `(order, order)` bool; `None` if there is none."""
    if order > ORDER_MAX or order % 4:
        return None
    if _is_prime(order - 1):
        # The order is a multiple of four, so this prime is 3 modulo 4.
        core = _bordered(order - 1)
        core[1:, 0] = -1
        return core + np.eye(order, dtype=np.int8) > 0
    q = order // 2 - 1
    if q % 4 == 1 and _is_prime(q):
        conference = _bordered(q)
        zeros = np.kron(conference == 0, np.array([[1, -1], [-1, -1]], np.int8))
        others = np.kron(conference, np.array([[1, 1], [1, -1]], np.int8))
        return zeros + others > 0
    return None


def _bordered(q: int) -> np.ndarray:
    """`[[0, 1...], [1..., Q]]` with `Q[a][b] = legendre(a - b)`, `(q + 1, q + 1)` int8."""
    legendre = np.full(q, -1, np.int8)
    legendre[np.arange(1, q) ** 2 % q] = 1
    legendre[0] = 0
    a = np.arange(q)
    matrix = np.ones((q + 1, q + 1), np.int8)
    matrix[0, 0] = 0
    matrix[1:, 1:] = legendre[(a[:, None] - a) % q]
    return matrix


def _is_prime(q: int) -> bool:
    return q >= 2 and all(q % d for d in range(2, math.isqrt(q) + 1))
