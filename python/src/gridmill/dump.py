"""`gridmill-dump`: what is in a file."""

import argparse
import json
import math
import sys

import numpy as np

from .errors import FormatError
from .model import Model, StockTensor, Weight

# Elements of a metadata array, and characters of a text, that are shown.
ELEMENTS_SHOWN = 4
TEXT_SHOWN = 72
# First values of a tensor that are shown.
VALUES_SHOWN = 8
# Longer arrays of metadata are given by their length in JSON.
ARRAY_MAX = 64


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="gridmill-dump", description="Show what is in a file")
    parser.add_argument("file", help="a GGUF file, or a shard of one")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--tensor", metavar="NAME", help="decode one tensor, and show its planes")
    options = parser.parse_args()
    try:
        model = Model(options.file)
        data = model_data(model) if options.tensor is None else one_data(model, options.tensor)
    except (FormatError, OSError) as error:
        sys.exit(f"error: {error}")
    if options.json:
        print(json.dumps(data, indent=2))
    else:
        print(model_text(data) if options.tensor is None else one_text(data))


def model_data(model: Model) -> dict:
    """Metadata and logical tensors, as JSON has them."""
    return {
        "file": str(model.path),
        "bytes": model.file_bytes,
        "shards": model.shard_count,
        "metadata": {key: _short(value) for key, value in model.metadata.items()},
        "tensors": [tensor_data(tensor) for tensor in model],
        "shared_planes": model.shared_planes,
    }


def tensor_data(tensor: Weight | StockTensor) -> dict:
    """One logical tensor; its shape has the contiguous dimension first, as GGUF writes it."""
    data = {
        "name": tensor.name,
        "type": tensor.type,
        "shape": list(reversed(tensor.shape)),
        "bytes": tensor.bytes,
        "bits_per_weight": tensor.bits_per_weight,
    }
    if isinstance(tensor, Weight):
        data["transform"] = tensor.record.transform.text
        data["group"] = tensor.record.group
    return data


def one_data(model: Model, name: str) -> dict:
    """One logical tensor with its planes and a summary of its values."""
    try:
        tensor = model[name]
    except KeyError:
        raise FormatError(str(model.path), f"tensor `{name}`", "one", "none") from None
    data = tensor_data(tensor)
    if isinstance(tensor, Weight):
        data["sign_seed"] = tensor.record.sign_seed
        data["planes"] = {
            role: {"name": tensor.record.plane_names[role], "bytes": plane.size}
            for role, plane in tensor.planes.items()
        }
    data["values"] = _summary(tensor.values())
    return data


def model_text(data: dict) -> str:
    """`model_data` for people."""
    files = "1 file" if data["shards"] == 1 else f"{data['shards']} files"
    metadata = [[key, _text(value)] for key, value in data["metadata"].items()]
    rows = [["tensor", "type", "shape", "bits", "bytes", ""]]
    rows += [_row(tensor) for tensor in data["tensors"]]
    own = sum(tensor["bytes"] for tensor in data["tensors"])
    shared = data["shared_planes"]
    lines = [data["file"], f"{data['bytes']} bytes, {files}", ""]
    lines += [*_table(metadata), "", *_table(rows)]
    lines.append(f"{len(data['tensors'])} tensors, {own} bytes")
    if shared:
        lines.append(f"{len(shared)} planes that weights share, {sum(shared.values())} bytes")
    return "\n".join(lines)


def one_text(data: dict) -> str:
    """`one_data` for people."""
    rows = [[key, _text(value)] for key, value in data.items() if not isinstance(value, dict)]
    for role, plane in data.get("planes", {}).items():
        rows.append([f"plane {role}", f"{plane['name']}, {plane['bytes']} bytes"])
    rows += [[key, _text(value, VALUES_SHOWN)] for key, value in data["values"].items()]
    return "\n".join(_table(rows))


def _summary(values: np.ndarray) -> dict:
    """What a look at a tensor shows; nothing where it has no values."""
    if not values.size:
        return {}
    square = np.square(values, dtype=np.float64)
    return {
        "least": float(values.min()),
        "greatest": float(values.max()),
        "root_mean_square": math.sqrt(square.mean()),
        "first": [float(value) for value in values.reshape(-1)[:VALUES_SHOWN]],
    }


def _row(tensor: dict) -> list[str]:
    """The cells of one tensor in the table."""
    note = ""
    if tensor.get("group"):
        note = f"{tensor['transform']}, group {tensor['group']}"
    shape = " x ".join(str(size) for size in tensor["shape"])
    bits = f"{tensor['bits_per_weight']:.4f}".rstrip("0").rstrip(".")
    return [tensor["name"], tensor["type"], shape, bits, str(tensor["bytes"]), note]


def _table(rows: list[list[str]]) -> list[str]:
    """Cells under each other."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ("  ".join(map(str.ljust, row, widths)) for row in rows)
    return [line.rstrip() for line in lines]


def _short(value: object) -> object:
    """A vocabulary is not something to read."""
    if isinstance(value, list) and len(value) > ARRAY_MAX:
        return {"array_len": len(value), "first": value[:ELEMENTS_SHOWN]}
    return value


def _text(value: object, shown: int = ELEMENTS_SHOWN) -> str:
    """A value on one line."""
    if isinstance(value, dict):
        return _array(value["first"], value["array_len"])
    if isinstance(value, list):
        return _array(value[:shown], len(value))
    if isinstance(value, str):
        return value if len(value) <= TEXT_SHOWN else f"{value[:TEXT_SHOWN]}..."
    return str(value)


def _array(first: list, count: int) -> str:
    more = f", ... {count} in all" if count > len(first) else ""
    return f"[{', '.join(map(_text, first))}{more}]"
