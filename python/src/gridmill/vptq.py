"""`VPTQ_V*_K*`: learned points of neighbouring outputs. Page: `formats/vptq.md`."""

import re
from dataclasses import dataclass

import numpy as np
from gguf import GGMLQuantizationType

from .errors import FormatError
from .planes import (
    CODES,
    COLUMN_GROUPS,
    COLUMN_MEANS,
    COLUMN_NORMS,
    NORMS,
    OUTLIER_CODES,
    OUTLIER_TABLE,
    TABLE,
    Layout,
    Planes,
    halves,
    scaled,
)

# The group of a column that has codes and a table of its own.
OUTLIER = 255

_NUMBER = "([1-9][0-9]*)"
_NAME = re.compile(
    f"VPTQ_V{_NUMBER}_K{_NUMBER}(?:_R{_NUMBER})?(_S)?(?:_G{_NUMBER})?"
    f"(?:_O{_NUMBER}V{_NUMBER}K{_NUMBER})?(?:_(F16|BF16)(N)?)?"
)
_FORMATS = {
    "I8": GGMLQuantizationType.I8,
    "F16": GGMLQuantizationType.F16,
    "BF16": GGMLQuantizationType.BF16,
}


@dataclass(frozen=True)
class Outliers:
    """Columns that are coded apart."""

    count: int
    # Outputs per code.
    v: int
    # Points of the table.
    points: int


@dataclass(frozen=True)
class Vptq:
    """A type of learned points."""

    name: str
    # Outputs per code.
    v: int
    # Points of a table.
    points: int
    # Points of the second table, 1 for none.
    residual: int
    # Whether the rest of a code are signs.
    signs: bool
    # Tables, one per group of columns.
    tables: int
    outliers: Outliers | None
    # Of the numbers in every table: I8, F16 or BF16.
    format: str
    # Whether columns have a norm and a mean.
    has_column_norms: bool

    # Columns of a block of codes, so that a block is whole bytes.
    block_len = 8

    @property
    def bits(self) -> int:
        """Bits of a main code."""
        return self.points.bit_length() - 1

    @property
    def width(self) -> int:
        """Bits of a code with the second one, or with signs."""
        return self.bits + self.residual.bit_length() - 1 + (self.v - 1 if self.signs else 0)

    @property
    def has_norms(self) -> bool:
        """Whether rows have norms, as with all tables of integers."""
        return self.format == "I8"

    @property
    def has_transform(self) -> bool:
        """Whether rows may be in another basis."""
        return self.format == "I8"

    @property
    def has_groups(self) -> bool:
        """Whether columns say which table is theirs."""
        return self.tables > 1 or self.outliers is not None

    def layouts(self, rows: int, cols: int, group: int) -> dict[str, Layout]:
        """The planes of a weight, without its signs."""
        byte, number = GGMLQuantizationType.I8, _FORMATS[self.format]
        points = self.points + (self.residual if self.residual > 1 else 0)
        is_shared = self.format == "I8"
        layouts = {
            CODES: Layout(byte, (cols * self.width // 8, _ceil(rows, self.v))),
            TABLE: Layout(number, (self.v, self.tables * points), is_shared),
        }
        if self.has_norms:
            layouts[NORMS] = Layout(GGMLQuantizationType.F16, (cols // group, rows))
        if self.has_column_norms:
            layouts[COLUMN_NORMS] = Layout(number, (cols,))
            layouts[COLUMN_MEANS] = Layout(number, (cols,))
        if self.has_groups:
            layouts[COLUMN_GROUPS] = Layout(byte, (cols,))
        if self.outliers:
            blocks = _ceil(rows, self.outliers.v)
            layouts[OUTLIER_CODES] = Layout(byte, (2 * self.outliers.count, blocks))
            layouts[OUTLIER_TABLE] = Layout(number, (self.outliers.v, self.outliers.points))
        return layouts

    def check(self, planes: Planes, where: str) -> None:
        """Checks what the shapes leave open: groups of columns and codes of outliers.

        Raises:
            FormatError: a number is beyond its table, or the outliers are not as many as named.
        """
        if self.has_groups:
            groups = planes[COLUMN_GROUPS]
            expected = self.outliers.count if self.outliers else 0
            found = int(np.count_nonzero(groups == OUTLIER))
            if found != expected:
                raise FormatError(where, "outlier columns", expected, found)
            wrong = groups[(groups != OUTLIER) & (groups >= self.tables)]
            if wrong.size:
                raise FormatError(where, "column group", f"less than {self.tables}", wrong[0])
        if self.outliers:
            codes = planes[OUTLIER_CODES].view("<u2")
            wrong = codes[codes >= self.outliers.points]
            if wrong.size:
                raise FormatError(
                    where, "outlier code", f"less than {self.outliers.points}", wrong[0]
                )

    def decode(self, rows: int, cols: int, group: int, planes: Planes) -> np.ndarray:
        """Values in the coded basis, `(rows, cols)` float32."""
        main, second = self.unpack(planes[CODES], cols)
        if self.format == "I8":
            table = planes[TABLE].view(np.int8).astype(np.int16).reshape(-1, self.v)
            integers = table[main]
            if self.signs:
                integers = np.maximum(integers, -127)
                integers = np.where(self._are_turned(second), -integers, integers)
            if self.residual > 1:
                integers = integers + table[self.points + second]
            integers = np.clip(integers, -127, 127)
            return scaled(_outputs(integers, rows), planes[NORMS], group)
        # Overflows to infinity are what the format says.
        with np.errstate(all="ignore"):
            return self._decode_floats(rows, main, second, planes)

    def _are_turned(self, signs: np.ndarray) -> np.ndarray:
        """Whether numbers are turned, `(blocks, cols, v)` of signs `(blocks, cols)`."""
        bits = signs[..., None] >> np.arange(self.v - 1) & 1
        # The last makes the number of them even.
        return np.concatenate([bits, bits.sum(-1, keepdims=True) % 2], axis=-1) == 1

    def unpack(self, plane: np.ndarray, cols: int) -> tuple[np.ndarray, np.ndarray]:
        """The main codes, and the second ones or signs, each `(blocks, cols)` int64."""
        # Eight columns are whole bytes; a code is in up to five of them.
        runs = plane.reshape(-1, self.width)
        codes = np.zeros((len(runs), self.block_len), np.uint64)
        for column in range(self.block_len):
            first, end = column * self.width, (column + 1) * self.width
            for at in range(first // 8, _ceil(end, 8)):
                byte, place = runs[:, at].astype(np.uint64), 8 * at - first
                codes[:, column] |= byte << place if place >= 0 else byte >> -place
        codes = codes.astype(np.int64).reshape(-1, cols) & ((1 << self.width) - 1)
        return codes & (self.points - 1), codes >> self.bits

    def _decode_floats(
        self, rows: int, main: np.ndarray, second: np.ndarray, planes: Planes
    ) -> np.ndarray:
        """`decode` of tables in half precision or bfloat16; codes are `(blocks, cols)`."""
        table = self._numbers(planes[TABLE])
        groups = planes[COLUMN_GROUPS] if self.has_groups else np.zeros(main.shape[1], np.uint8)
        is_outlier = groups == OUTLIER
        # What an outlier's bits in `codes` name is not used; any table will do.
        groups = np.where(is_outlier, 0, groups)
        all_main = self.tables * self.points * self.v
        values = table[:all_main].reshape(self.tables, self.points, self.v)[groups, main]
        if self.residual > 1:
            residual = table[all_main:].reshape(self.tables, self.residual, self.v)
            values = self._round(values + residual[groups, second])
        values = _outputs(values, rows)
        if self.outliers:
            codes = planes[OUTLIER_CODES].view("<u2").reshape(-1, self.outliers.count)
            points = self._numbers(planes[OUTLIER_TABLE]).reshape(-1, self.outliers.v)
            values[:, is_outlier] = _outputs(points[codes], rows)
        if self.has_column_norms:
            values = self._round(values * self._numbers(planes[COLUMN_NORMS]))
            values = self._round(values + self._numbers(planes[COLUMN_MEANS]))
        return values

    def _numbers(self, plane: np.ndarray) -> np.ndarray:
        """The numbers of a plane in the type's format, flat float32."""
        if self.format == "F16":
            return halves(plane)
        return (plane.view("<u2").astype(np.uint32) << 16).view(np.float32)

    def _round(self, values: np.ndarray) -> np.ndarray:
        """Rounded to the type's format, to nearest, halves to even; float32 as before."""
        if self.format == "F16":
            return values.astype(np.float16).astype(np.float32)
        bits = values.view(np.uint32)
        rounded = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000
        # Adding would carry a not-a-number into another number.
        rounded = np.where(np.isnan(values), bits & 0xFFFF0000 | 0x400000, rounded)
        return rounded.astype(np.uint32).view(np.float32)


def by_name(name: str) -> Vptq | None:
    """The type of a name in capitals, if it is one of these types."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    signs = match[4] is not None
    numbers = match.groups()[:3] + match.groups()[4:8]
    v, points, residual, tables, *outlier = (int(n) if n else None for n in numbers)
    number_format, has_column_norms = match[9] or "I8", match[10] is not None
    outliers = Outliers(*outlier) if outlier[0] else None
    # A part that says nothing is left out of a name.
    fits = residual != 1 and (tables is None or 2 <= tables <= 16)
    fits &= 2 <= v <= 16 and _is_table(points) and (residual is None or _is_table(residual))
    if outliers:
        fits &= outliers.count <= 65535 and 1 <= outliers.v <= 16 and _is_table(outliers.points)
    if signs:
        fits &= number_format == "I8" and residual is None
    if number_format == "I8":
        fits &= tables is None and outliers is None
    if not fits:
        return None
    return Vptq(
        name,
        v,
        points,
        residual or 1,
        signs,
        tables or 1,
        outliers,
        number_format,
        has_column_norms,
    )


def _is_table(points: int) -> bool:
    return 2 <= points <= 65536 and points & (points - 1) == 0


def _ceil(count: int, size: int) -> int:
    """Pieces of `size` that hold `count`; the last may have more than is needed."""
    return -(-count // size)


def _outputs(points: np.ndarray, rows: int) -> np.ndarray:
    """`(blocks, cols, v)` numbers of points as the `(rows, cols)` of a weight."""
    blocks, cols, v = points.shape
    return points.transpose(0, 2, 1).reshape(blocks * v, cols)[:rows]
