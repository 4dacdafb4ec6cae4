"""`HIGGS_P*_N*`: points of a fixed grid under a scale per group. Page: `formats/higgs.md`."""

from dataclasses import dataclass

import numpy as np
from gguf import GGMLQuantizationType

from .planes import CODES, NORMS, TABLE, Layout, Planes, scaled

# The number of the first type in files with native types.
FIRST_NUMBER = 0x48510000

# The widths of the parts that follow the low four bits, by bits per code.
PARTS = {4: (), 5: (1,), 6: (2,), 7: (2, 1)}


@dataclass(frozen=True)
class Higgs:
    """A grid type."""

    # In files with native types.
    number: int
    # Values per code.
    p: int
    # Bits per code: the grid has `1 << bits` points.
    bits: int

    @property
    def name(self) -> str:
        """As in the registry."""
        return f"HIGGS_P{self.p}_N{1 << self.bits}"

    @property
    def block_len(self) -> int:
        """Values of a block of the code plane."""
        if self.bits == 8:
            return 32
        return self.p * (16 if self.bits == 12 else 32)

    @property
    def block_bytes(self) -> int:
        """Bytes of a block of the code plane."""
        return self.block_len // self.p * self.bits // 8

    @property
    def has_norms(self) -> bool:
        """Always: a type without norms would have no scale."""
        return True

    @property
    def has_transform(self) -> bool:
        """Whether rows may be in another basis."""
        return True

    @property
    def has_table(self) -> bool:
        """Whether codes name points; else they are the integers themselves."""
        return (self.p, self.bits) != (1, 8)

    def layouts(self, rows: int, cols: int, group: int) -> dict[str, Layout]:
        """The planes of a weight, without its signs."""
        row_bytes = cols // self.block_len * self.block_bytes
        layouts = {
            CODES: Layout(GGMLQuantizationType.I8, (row_bytes, rows)),
            NORMS: Layout(GGMLQuantizationType.F16, (cols // group, rows)),
        }
        if self.has_table:
            shape = (self.p, 1 << self.bits)
            layouts[TABLE] = Layout(GGMLQuantizationType.I8, shape, is_shared=True)
        return layouts

    def check(self, planes: Planes, where: str) -> None:
        """Nothing can be wrong past the shapes: every code has a point."""

    def decode(self, rows: int, cols: int, group: int, planes: Planes) -> np.ndarray:
        """Values in the coded basis, `(rows, cols)` float32."""
        codes = self.unpack(planes[CODES])
        if self.has_table:
            table = planes[TABLE].view(np.int8).reshape(1 << self.bits, self.p)
            # -128 marks a point that is never written.
            integers = np.maximum(table, -127)[codes]
        else:
            integers = codes.view(np.int8)
        return scaled(integers.reshape(rows, cols), planes[NORMS], group)

    def unpack(self, plane: np.ndarray) -> np.ndarray:
        """The codes of the bytes of whole blocks, flat: uint8, or uint16 with 12 bits."""
        if self.bits == 8:
            return plane
        blocks = plane.reshape(-1, self.block_bytes)
        codes = _unpack_wide(blocks) if self.bits == 12 else _unpack_parts(blocks, self.bits)
        return codes.reshape(-1)


def _unpack_parts(blocks: np.ndarray, bits: int) -> np.ndarray:
    """`(blocks, 4 * bits)` bytes to `(blocks, 32)` codes of 4 to 7 bits."""
    low = blocks[:, :16]
    codes = np.concatenate([low & 0xF, low >> 4], axis=1)
    i = np.arange(32)
    start, shift = 16, 4
    for width in PARTS[bits]:
        size = 4 * width
        part = blocks[:, start : start + size]
        places = (width * (i // size)).astype(np.uint8)
        codes |= (part[:, i % size] >> places & ((1 << width) - 1)) << shift
        start, shift = start + size, shift + width
    return codes


def _unpack_wide(blocks: np.ndarray) -> np.ndarray:
    """`(blocks, 24)` bytes to `(blocks, 16)` codes of 12 bits."""
    low, high = blocks[:, :8], blocks[:, 8:].astype(np.uint16)
    return np.concatenate([low & 0xF, low >> 4], axis=1) | high << 4


# In the order of their numbers, which are never given twice.
TYPES: tuple[Higgs, ...] = tuple(
    Higgs(FIRST_NUMBER + at, p, bits)
    for at, (p, bits) in enumerate(
        [(1, 4), (2, 4), (2, 6), (2, 8), (4, 8), (1, 8), (1, 5), (1, 6), (2, 7), (2, 5), (4, 12)]
    )
)
