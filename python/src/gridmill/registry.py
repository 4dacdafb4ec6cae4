"""The registry of weights in a file's metadata. Page: `formats/planes.md`."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from gguf import GGMLQuantizationType

from . import kinds, resq, transform
from .errors import FormatError
from .kinds import Kind
from .planes import GROUP_STEP, SIGNS, Layout
from .resq import Resq
from .transform import Transform

FORMAT_VERSION = 1
NAME_BYTES_MAX = 63

_VERSION = "gridmill.format_version"


@dataclass(frozen=True)
class Record:
    """One weight of the registry."""

    name: str
    kind: Kind
    rows: int
    cols: int
    transform: Transform
    # Values per norm, 0 without norms.
    group: int
    sign_seed: int
    # The tensor that carries each plane, by role.
    plane_names: dict[str, str] = field(default_factory=dict)

    def layouts(self) -> dict[str, Layout]:
        """The planes that the weight must have, no more and no fewer."""
        layouts = self.kind.layouts(self.rows, self.cols, self.group)
        if not self.transform.is_none:
            layouts[SIGNS] = Layout(GGMLQuantizationType.I8, (self.cols,), is_shared=True)
        return layouts


def read(metadata: Mapping[str, object], where: str) -> list[Record]:
    """The weights of a file; none if it has no registry.

    Raises:
        FormatError: the registry has another version, or contradicts itself.
    """
    version = metadata.get(_VERSION)
    if version is None:
        return []
    if version != FORMAT_VERSION:
        raise FormatError(where, f"`{_VERSION}`", FORMAT_VERSION, version)
    records = _read_records(metadata, where)
    _read_planes(metadata, records, where)
    return records


def _read_records(metadata: Mapping[str, object], where: str) -> list[Record]:
    """The records, without the names of their planes."""
    names = _column(metadata, "gridmill.tensor.name", str, None, where)
    columns = [
        _column(metadata, f"gridmill.tensor.{key}", kind, len(names), where)
        for key, kind in [
            ("type", str), ("rows", int), ("cols", int), ("transform", str), ("group", int),
            ("sign_seed", int),
        ]
    ]
    records: dict[str, Record] = {}
    for name, *values in zip(names, *columns):
        place = f"{where}: registry: tensor `{name}`"
        if name in records:
            raise FormatError(place, "records", "one", "two")
        records[name] = _record(name, *values, where=place)
    return list(records.values())


def _record(
    name: str,
    type_name: str,
    rows: int,
    cols: int,
    text: str,
    group: int,
    seed: int,
    where: str,
) -> Record:
    """One record, checked by itself."""
    if not 1 <= len(name.encode()) <= NAME_BYTES_MAX:
        raise FormatError(where, "bytes of the name", "1 to 63", len(name.encode()))
    kind = kinds.by_name(type_name)
    if kind is None:
        raise FormatError(where, "type", "one of the pages", f"`{type_name}`")
    if rows < 1 or cols < 1:
        raise FormatError(where, "rows and columns", "at least one", f"{rows} and {cols}")
    if cols % kind.block_len:
        raise FormatError(where, "columns", f"a multiple of {kind.block_len}", cols)
    if kind.has_norms and (group < 1 or group % GROUP_STEP or cols % group):
        raise FormatError(
            where, "group", f"a multiple of {GROUP_STEP} that divides {cols} columns", group
        )
    if not kind.has_norms and group:
        raise FormatError(where, f"group of {kind.name}, which has no norms", 0, group)
    basis = transform.by_text(text)
    if basis is None or not basis.fits(cols):
        raise FormatError(where, "transform", f"one that fits {cols} columns", f"`{text}`")
    if not (kind.has_transform or basis.is_none):
        raise FormatError(where, f"transform of {kind.name}", "`none`", f"`{text}`")
    if isinstance(kind, Resq) and not kind.fits(cols, text, group):
        expected = f"`parted:{resq.high(cols)}` and {cols // 2} of at least {2 * resq.UNIT} columns"
        raise FormatError(where, "transform and group", expected, f"`{text}` and {group}")
    return Record(name, kind, rows, cols, basis, group, seed)


def _read_planes(metadata: Mapping[str, object], records: list[Record], where: str) -> None:
    """Puts the names of their planes into the records; every one has exactly its roles."""
    names = _column(metadata, "gridmill.plane.name", str, None, where)
    roles = _column(metadata, "gridmill.plane.role", str, len(names), where)
    tensors = _column(metadata, "gridmill.plane.tensor", int, len(names), where)
    layouts = [record.layouts() for record in records]
    uses: dict[str, tuple[str, int]] = {}
    for name, role, index in zip(names, roles, tensors):
        if not 0 <= index < len(records):
            what = f"registry: tensor of plane `{name}`"
            raise FormatError(where, what, f"less than {len(records)}", index)
        record = records[index]
        place = f"{where}: registry: tensor `{record.name}`"
        layout = layouts[index].get(role)
        if layout is None:
            expected = ", ".join(layouts[index])
            raise FormatError(place, f"role of plane `{name}`", expected, f"`{role}`")
        if role in record.plane_names:
            raise FormatError(place, f"planes in the role `{role}`", "one", "two")
        record.plane_names[role] = name
        first = uses.setdefault(name, (role, index))
        if first[0] != role or not (layout.is_shared or first[1] == index):
            raise FormatError(place, f"plane `{name}`", "one use", "another use")
    for record, roles_needed in zip(records, layouts):
        for role in roles_needed:
            if role not in record.plane_names:
                place = f"{where}: registry: tensor `{record.name}`"
                raise FormatError(place, f"plane in the role `{role}`", "one", "none")


def _column(
    metadata: Mapping[str, object], key: str, kind: type, count: int | None, where: str
) -> list:
    """One of the parallel arrays, of strings or of integers of any width."""
    values = metadata.get(key)
    expected = f"an array of {'strings' if kind is str else 'integers'}"
    if not isinstance(values, list):
        raise FormatError(where, f"`{key}`", expected, "nothing" if values is None else "a value")
    for value in values:
        # A bool is an int to Python, but not to the page.
        if not isinstance(value, kind) or isinstance(value, bool):
            raise FormatError(where, f"`{key}`", expected, f"an element {value!r}")
    if count is not None and len(values) != count:
        raise FormatError(where, f"elements of `{key}`", count, len(values))
    return values
