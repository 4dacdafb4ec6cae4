"""Roles, layouts and bytes of planes. Page: `formats/planes.md`."""

from typing import NamedTuple

import numpy as np
from gguf import GGMLQuantizationType

CODES = "codes"
NORMS = "norms"
TABLE = "table"
SIGNS = "signs"
COLUMN_NORMS = "column_norms"
COLUMN_MEANS = "column_means"
COLUMN_GROUPS = "column_groups"
OUTLIER_CODES = "outlier_codes"
OUTLIER_TABLE = "outlier_table"

# A group of a row is a multiple of so many values.
GROUP_STEP = 16

# The bytes of a weight's planes, flat, by role.
Planes = dict[str, np.ndarray]


class Layout(NamedTuple):
    """How a plane is declared in the file."""

    type: GGMLQuantizationType
    # The contiguous dimension first, as GGUF stores it.
    shape: tuple[int, ...]
    # Whether several weights may have the plane.
    is_shared: bool = False


def halves(plane: np.ndarray) -> np.ndarray:
    """Half-precision numbers of a plane, widened to float32."""
    return plane.view("<f2").astype(np.float32)


def scaled(integers: np.ndarray, norms: np.ndarray, group: int) -> np.ndarray:
    """Integers under one norm for each `group` neighbours of a row; rounds once.

    `integers` is `(rows, cols)` of any integer type, `norms` the bytes of the plane; the result is
    `(rows, cols)` float32.
    """
    rows, cols = integers.shape
    grouped = integers.astype(np.float32).reshape(rows, cols // group, group)
    # Infinities and not-a-numbers among the norms of a broken file are no error here.
    with np.errstate(all="ignore"):
        grouped *= halves(norms).reshape(rows, cols // group, 1)
    return grouped.reshape(rows, cols)
