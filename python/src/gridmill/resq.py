"""`RESQ_P2_N256`: the loud inputs in 8 bits, the others as points. Page: `formats/resq.md`."""

from dataclasses import dataclass

import numpy as np
from gguf import GGMLQuantizationType

from .planes import CODES, NORMS, TABLE, Layout, Planes, scaled

# Loud inputs come in multiples of this.
UNIT = 64


def high(cols: int) -> int:
    """The loud values of a row: the multiple nearest to an eighth, the larger of two."""
    return UNIT * max(1, (cols // UNIT + 4) // 8)


@dataclass(frozen=True)
class Resq:
    """The type."""

    name: str = "RESQ_P2_N256"
    # What a row is a multiple of.
    block_len: int = UNIT
    has_norms: bool = True
    has_transform: bool = True
    has_table: bool = True

    def fits(self, cols: int, transform: str, group: int) -> bool:
        """Whether a row of this length, transform and group can be parted."""
        return cols >= 2 * UNIT and transform == f"parted:{high(cols)}" and 2 * group == cols

    def layouts(self, rows: int, cols: int, group: int) -> dict[str, Layout]:
        """The planes of a weight, without its signs."""
        row_bytes = (cols - high(cols)) // 2 + high(cols)
        byte = GGMLQuantizationType.I8
        return {
            CODES: Layout(byte, (row_bytes, rows)),
            NORMS: Layout(GGMLQuantizationType.F16, (2, rows)),
            TABLE: Layout(byte, (2, 256), is_shared=True),
        }

    def check(self, planes: Planes, where: str) -> None:
        """Nothing can be wrong past the shapes: every code has a point."""

    def decode(self, rows: int, cols: int, group: int, planes: Planes) -> np.ndarray:
        """Values in the coded basis, `(rows, cols)` float32."""
        low = cols - high(cols)
        codes = planes[CODES].reshape(rows, -1)
        # -128 marks a point that is never written.
        table = np.maximum(planes[TABLE].view(np.int8).reshape(256, 2), -127)
        quiet = table[codes[:, : low // 2]].reshape(rows, low)
        loud = np.ascontiguousarray(codes[:, low // 2 :]).view(np.int8)
        norms = planes[NORMS].reshape(rows, 2, 2)
        parts = [
            scaled(part, np.ascontiguousarray(norms[:, at]).reshape(-1), part.shape[1])
            for at, part in enumerate([quiet, loud])
        ]
        return np.concatenate(parts, axis=1)


TYPE = Resq()
