"""Opens the files of a model with gguf's reader, and teaches it our type numbers."""

import math
from functools import cache
from pathlib import Path

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFEndian, GGUFReader, ReaderField

from . import higgs
from .errors import FormatError

_COUNT = "split.count"
_NUMBER = "split.no"


@cache
def register_types() -> None:
    """Lets gguf's reader open files with native types, for which the pages define numbers.

    It then lists such tensors under the names of their types; to decode them takes their norms
    and tables too, which `Model` puts together. Types of learned points have no numbers.
    """
    members = {}
    for kind in higgs.TYPES:
        member = int.__new__(GGMLQuantizationType, kind.number)
        member._name_, member._value_ = kind.name, kind.number
        members[kind.number] = member
        GGML_QUANT_SIZES[member] = (kind.block_len, kind.block_bytes)
    # The hook that Python's enumerations ask for values that they do not have.
    GGMLQuantizationType._missing_ = classmethod(lambda cls, value: members.get(value))


class CheckedReader(GGUFReader):
    """gguf's reader, which says what a truncated file lacks instead of failing to reshape it."""

    def _build_tensors(self, start_offs: int, fields: list[ReaderField]) -> None:
        for field in fields:
            self._check_tensor(start_offs, field)
        super()._build_tensors(start_offs, fields)

    def _check_tensor(self, data_start: int, field: ReaderField) -> None:
        """Checks type, shape and end of a tensor before anything reads it."""
        where = f"{self.data.filename}: tensor `{field.name}`"
        _, _, _, shape, number, offset = field.parts
        try:
            kind = GGMLQuantizationType(int(number[0]))
        except ValueError as error:
            raise FormatError(where, "type", "a known number", int(number[0])) from error
        block_len, block_bytes = GGML_QUANT_SIZES[kind]
        sizes = [int(size) for size in shape]
        if not sizes or sizes[0] % block_len:
            raise FormatError(where, "first dimension", f"a multiple of {block_len}", sizes)
        end = data_start + int(offset[0]) + math.prod(sizes) // block_len * block_bytes
        if end > len(self.data):
            raise FormatError(where, "end of the file", f"byte {end} or later", len(self.data))


def open_shards(path: Path) -> list[GGUFReader]:
    """The readers of all files of a model, whichever of its shards is named.

    Raises:
        FormatError: a file is no whole GGUF file, or a shard is missing.
    """
    named = _open(path)
    count = _integer(named, _COUNT)
    if count <= 1:
        return [named]
    suffix = f"-{_integer(named, _NUMBER) + 1:05}-of-{count:05}.gguf"
    if not path.name.endswith(suffix):
        raise FormatError(str(path), "name of a shard", f"an ending `{suffix}`", path.name)
    prefix = path.name.removesuffix(suffix)
    return [_open_shard(path, prefix, number, count) for number in range(count)]


def _open_shard(named: Path, prefix: str, number: int, count: int) -> GGUFReader:
    path = named.with_name(f"{prefix}-{number + 1:05}-of-{count:05}.gguf")
    if not path.exists():
        raise FormatError(str(named), "shard", path.name, "no such file")
    reader = _open(path)
    found = (_integer(reader, _NUMBER), _integer(reader, _COUNT))
    if found != (number, count):
        raise FormatError(str(path), f"`{_NUMBER}` and `{_COUNT}`", (number, count), found)
    return reader


def _open(path: Path) -> GGUFReader:
    register_types()
    try:
        reader = CheckedReader(path)
    except FormatError:
        raise
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        raise FormatError(str(path), "header", "that of a whole GGUF file", error) from error
    if reader.endianess != GGUFEndian.LITTLE:
        raise FormatError(str(path), "byte order", "little-endian", "big-endian")
    return reader


def _integer(reader: GGUFReader, key: str) -> int:
    """A number of the metadata, 0 if it is not there."""
    field = reader.get_field(key)
    value = 0 if field is None else field.contents()
    if not isinstance(value, int):
        raise FormatError(str(reader.data.filename), f"`{key}`", "an integer", repr(value))
    return value
