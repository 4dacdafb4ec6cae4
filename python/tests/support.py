"""What several tests need: the repository's pages and data, and small files with planes."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter

from gridmill import kinds, planes, register_types
from gridmill.kinds import Kind
from gridmill.planes import Planes

ROOT = Path(__file__).resolve().parents[2]
PAGES = ROOT / "formats"
DATA = ROOT / "tests" / "data"

ARCHITECTURE = "general.architecture"


def pages() -> list[tuple[str, str]]:
    """Name and text of every page."""
    return [(path.name, path.read_text("utf-8")) for path in sorted(PAGES.glob("*.md"))]


def vectors(text: str) -> Iterator[dict[str, str]]:
    """The `vector` blocks of a page: keys and values as `formats/README.md` says."""
    for block in text.split("```vector\n")[1:]:
        fields: dict[str, str] = {}
        key = ""
        for line in block.split("```")[0].splitlines():
            if line.startswith(" "):
                fields[key] += f" {line.strip()}"
            else:
                key, value = line.split(":", 1)
                fields[key] = value.strip()
        yield fields


def table_rows(text: str, heading: tuple[str, ...]) -> list[list[str]]:
    """The rows of a page's tables whose heading begins with these cells."""
    rows: list[list[str]] = []
    inside = False
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if "|" in line else []
        if not cells:
            inside = False
        elif tuple(cells[: len(heading)]) == heading:
            inside = True
        elif inside and set(line) - set("|- "):
            rows.append(cells)
    return rows


def from_hex(text: str) -> np.ndarray:
    """Bytes in hexadecimal, with white space anywhere."""
    return np.frombuffer(bytes.fromhex(text), np.uint8)


def grid(kind: Kind) -> np.ndarray:
    """The grid of a type as the bytes of a `table` plane; no page has its numbers."""
    name = kind.name.removeprefix("HIGGS_").removeprefix("RESQ_").lower()
    return np.fromfile(ROOT / "src" / "types" / "grids" / f"{name}.i8", np.uint8)


def bits(values: np.ndarray) -> np.ndarray:
    """Float32 as their bits, to be compared as they are."""
    return np.ascontiguousarray(values, np.float32).view(np.uint32)


def safetensors(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Type, shape and bytes of every tensor of a safetensors file, by name."""
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    tensors = {}
    for name, entry in header.items():
        if name != "__metadata__":
            start, end = (8 + size + offset for offset in entry["data_offsets"])
            tensors[name] = (entry["dtype"], tuple(entry["shape"]), data[start:end])
    return tensors


def random_planes(kind: Kind, rows: int, cols: int, group: int) -> Planes:
    """Planes of a weight with any codes."""
    random = np.random.default_rng(1)
    made = {}
    for role, layout in kind.layouts(rows, cols, group).items():
        size = int(np.prod(layout.shape))
        if layout.type == GGMLQuantizationType.I8:
            made[role] = random.integers(0, 256, size, np.uint8)
        else:
            made[role] = random.normal(size=size).astype("<f2").view(np.uint8)
    return made


def copy_all(reader: GGUFReader, writer: GGUFWriter, but: tuple[str, ...]) -> None:
    """Copies metadata and tensors, but for tensors of these names."""
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key != ARCHITECTURE:
            sub_type = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(key, field.contents(), field.types[0], sub_type)
    for tensor in reader.tensors:
        if tensor.name not in but:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)


class Sketch:
    """A file with one weight, to be changed before it is written."""

    def __init__(self, type_name: str = "HIGGS_P2_N16", rows: int = 6, cols: int = 64) -> None:
        register_types()
        self.kind = kinds.by_name(type_name)
        self.rows, self.cols = rows, cols
        self.group = 32 if self.kind.has_norms else 0
        self.planes = random_planes(self.kind, rows, cols, self.group)
        self.layouts = self.kind.layouts(rows, cols, self.group)
        transform = "hadamard:16" if self.kind.has_transform else "none"
        if self.kind.has_transform:
            self.planes[planes.SIGNS] = np.resize(np.array([1, 255], np.uint8), cols)
            self.layouts[planes.SIGNS] = planes.Layout(GGMLQuantizationType.I8, (cols,), True)
        self.registry: dict[str, list] = {
            "gridmill.tensor.name": ["blk.0.ffn_up.weight"],
            "gridmill.tensor.type": [type_name.lower()],
            "gridmill.tensor.rows": [rows],
            "gridmill.tensor.cols": [cols],
            "gridmill.tensor.transform": [transform],
            "gridmill.tensor.group": [self.group],
            "gridmill.tensor.sign_seed": [7],
            "gridmill.plane.tensor": [0] * len(self.planes),
            "gridmill.plane.role": list(self.planes),
            "gridmill.plane.name": [f"blk.0.ffn_up.{role}" for role in self.planes],
        }
        self.version = 1
        self.is_native = False
        # A model whose `blk.0.ffn_up.weight` the weight takes the place of.
        self.host: Path | None = None

    def write(self, path: Path) -> Path:
        """Writes the file as it stands."""
        reader = GGUFReader(self.host) if self.host else None
        architecture = reader.get_field(ARCHITECTURE).contents() if reader else "test"
        writer = GGUFWriter(path, architecture)
        writer.add_uint32("gridmill.format_version", self.version)
        for key, values in self.registry.items():
            writer.add_array(key, values)
        for role, plane in self.planes.items():
            kind, shape, _ = self.layouts[role]
            name = f"blk.0.ffn_up.{role}"
            if self.is_native and role == planes.CODES:
                kind = GGMLQuantizationType(self.kind.number)
                data = plane.reshape(self.rows, -1)
            else:
                dtype = {"I8": np.int8, "F16": np.float16, "BF16": np.uint8}[kind.name]
                data = plane.view(dtype).reshape(*reversed(shape[1:]), -1)
            raw = kind if data.dtype == np.uint8 else None
            writer.add_tensor(name, data, raw_dtype=raw)
        if reader:
            copy_all(reader, writer, but=("blk.0.ffn_up.weight",))
        else:
            writer.add_tensor("output_norm.weight", np.arange(4, dtype=np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path
