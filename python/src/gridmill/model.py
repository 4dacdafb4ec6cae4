"""A model: its metadata, its stock tensors, and its weights put together from planes."""

import math
from collections.abc import Iterator
from functools import cached_property
from os import PathLike
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, ReaderTensor, dequantize

from . import reader, registry, transform
from .errors import FormatError
from .higgs import FIRST_NUMBER, Higgs
from .planes import CODES, SIGNS, TABLE, Layout, Planes
from .registry import Record


class StockTensor:
    """A tensor of one of ggml's types, as it lies in the file."""

    def __init__(self, tensor: ReaderTensor, where: str) -> None:
        self._tensor = tensor
        self._where = where
        self.name: str = tensor.name
        self.type: str = tensor.tensor_type.name
        # As numpy has it, the contiguous dimension last.
        self.shape: tuple[int, ...] = tuple(int(size) for size in reversed(tensor.shape))
        self.bytes: int = int(tensor.n_bytes)

    @property
    def bits_per_weight(self) -> float:
        """Bits of the file for each value."""
        return _bits(self.bytes, self.shape)

    def values(self) -> np.ndarray:
        """The values, float32 in the tensor's shape.

        Raises:
            FormatError: gguf has no decoder of the type.
        """
        try:
            # Overflows are what the format says.
            with np.errstate(all="ignore"):
                values = dequantize(self._tensor.data, self._tensor.tensor_type)
        except NotImplementedError as error:
            raise FormatError(self._where, "type", "one that gguf decodes", self.type) from error
        return values.astype(np.float32, copy=False).reshape(self.shape)

    def coded_values(self) -> np.ndarray:
        """The same as `values`: a stock type has no other basis."""
        return self.values()


class Weight:
    """A weight in one of our own types: what the registry says of it, and its planes."""

    def __init__(self, record: Record, planes: Planes) -> None:
        self.record = record
        # The bytes of the planes, by role.
        self.planes = planes
        self.name: str = record.name
        self.type: str = record.kind.name
        # `(rows, cols)`: outputs and inputs.
        self.shape: tuple[int, int] = (record.rows, record.cols)

    @property
    def bytes(self) -> int:
        """Bytes of the planes that no other weight may have."""
        layouts = self.record.layouts()
        own = (plane.size for role, plane in self.planes.items() if not layouts[role].is_shared)
        return sum(own)

    @property
    def bits_per_weight(self) -> float:
        """Bits of those planes for each value."""
        return _bits(self.bytes, self.shape)

    def coded_values(self) -> np.ndarray:
        """The values in the basis of the transform, `(rows, cols)` float32."""
        record = self.record
        return record.kind.decode(record.rows, record.cols, record.group, self.planes)

    def values(self) -> np.ndarray:
        """The values in the original basis, `(rows, cols)` float32."""
        if self.record.transform.is_none:
            return self.coded_values()
        signs = self.planes[SIGNS].view(np.int8)
        return transform.inverse(self.record.transform, signs, self.coded_values())


class Model:
    """A GGUF file, or all shards of a split one.

    Every plane of every weight is checked when the file is opened, and read when it is decoded.

    Raises:
        FormatError: the file breaks a rule of the pages.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        self.path = Path(path)
        self._readers = reader.open_shards(self.path)
        self._raw = self._raw_tensors()
        self._records = registry.read(self.metadata, str(self.path))
        weights = [self._weight(record) for record in self._records]
        planes = {name for record in self._records for name in record.plane_names.values()}
        # A weight stands where its codes do.
        places = {weight.record.plane_names[CODES]: weight for weight in weights}
        tensors: list[Weight | StockTensor] = []
        for name, raw in self._raw.items():
            if name in places:
                tensors.append(places[name])
            elif name not in planes:
                tensors.append(self._stock(raw))
        self._tensors = {tensor.name: tensor for tensor in tensors}

    def __iter__(self) -> Iterator[Weight | StockTensor]:
        """Logical tensors in the order of the file."""
        return iter(self._tensors.values())

    def __len__(self) -> int:
        return len(self._tensors)

    def __getitem__(self, name: str) -> Weight | StockTensor:
        return self._tensors[name]

    @cached_property
    def metadata(self) -> dict[str, object]:
        """The metadata of the first shard."""
        fields = self._readers[0].fields.items()
        # gguf lists the numbers of the header among the keys, under names of its own.
        return {key: item.contents() for key, item in fields if not key.startswith("GGUF.")}

    @property
    def shard_count(self) -> int:
        """Files of the model."""
        return len(self._readers)

    @property
    def file_bytes(self) -> int:
        """Bytes of all files."""
        return sum(len(shard.data) for shard in self._readers)

    @property
    def shared_planes(self) -> dict[str, int]:
        """Bytes of the planes that several weights may have, by name."""
        shared = {}
        for record in self._records:
            for role, layout in record.layouts().items():
                if layout.is_shared:
                    name = record.plane_names[role]
                    shared[name] = int(self._raw[name].n_bytes)
        return shared

    def _raw_tensors(self) -> dict[str, ReaderTensor]:
        """The tensors of all files as they are, planes one by one."""
        tensors: dict[str, ReaderTensor] = {}
        for shard in self._readers:
            for tensor in shard.tensors:
                if tensor.name in tensors:
                    place = str(shard.data.filename)
                    raise FormatError(place, f"tensor `{tensor.name}`", "one", "two")
                tensors[tensor.name] = tensor
        return tensors

    def _stock(self, raw: ReaderTensor) -> StockTensor:
        where = f"{self.path}: tensor `{raw.name}`"
        if raw.tensor_type >= FIRST_NUMBER:
            raise FormatError(where, f"record of type {raw.tensor_type.name}", "one", "none")
        return StockTensor(raw, where)

    def _weight(self, record: Record) -> Weight:
        where = f"{self.path}: tensor `{record.name}`"
        if record.name in self._raw:
            raise FormatError(where, "the weight", "as planes alone", "whole, too")
        planes = {}
        for role, layout in record.layouts().items():
            planes[role] = self._plane(record, role, layout, where)
        record.kind.check(planes, where)
        if SIGNS in planes:
            signs, high = planes[SIGNS].view(np.int8), record.transform.high
            wrong = signs[~np.isin(np.abs(signs), (1, 2) if high else (1,))]
            if wrong.size:
                raise FormatError(where, "sign", "1 or -1", wrong[0])
            loud = int((np.abs(signs) == 2).sum())
            if loud != high:
                raise FormatError(where, "loud inputs", high, loud)
        return Weight(record, planes)

    def _plane(self, record: Record, role: str, layout: Layout, where: str) -> np.ndarray:
        """The bytes of a plane, flat, once its type and shape are found right."""
        name = record.plane_names[role]
        what = f"plane `{name}`"
        expected = f"type {layout.type.name} and shape {list(layout.shape)}"
        raw = self._raw.get(name)
        if raw is None:
            raise FormatError(where, what, expected, "no such tensor")
        found = tuple(int(size) for size in raw.shape)
        if not (_fits(role, layout, raw.tensor_type, found) or _is_native(record, role, raw)):
            found_text = f"type {raw.tensor_type.name} and shape {list(found)}"
            raise FormatError(where, what, expected, found_text)
        return np.ascontiguousarray(raw.data).view(np.uint8).reshape(-1)


def _fits(
    role: str, layout: Layout, found_type: GGMLQuantizationType, found: tuple[int, ...]
) -> bool:
    """Whether a plane is declared as it must be; a table may have any shape of its size."""
    if found_type != layout.type:
        return False
    if role == TABLE:
        return math.prod(found) == math.prod(layout.shape)
    return _squeezed(found) == _squeezed(layout.shape)


def _is_native(record: Record, role: str, raw: ReaderTensor) -> bool:
    """Whether codes are declared with the number of their type."""
    if role != CODES or not isinstance(record.kind, Higgs):
        return False
    found = tuple(int(size) for size in raw.shape)
    shape = (record.cols, record.rows)
    return raw.tensor_type == record.kind.number and _squeezed(found) == _squeezed(shape)


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape without its outer dimensions of one; the contiguous dimension is the first."""
    while len(shape) > 1 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _bits(size: int, shape: tuple[int, ...]) -> float:
    count = math.prod(shape)
    return 8 * size / count if count else 0.0
