"""Packs known codes with FLUTE's own functions: `flute/utils.py` and `flute/packbits_utils.py`.

    python make.py FOLDER > packed.tsv        needs numpy, and the package `flute-kernel` unpacked

FOLDER holds `flute/`. The two files are run as they are, on a small stand-in for `torch` made of
numpy, because the package itself does not load without a GPU.

A line is the bits of a code, the outputs of a tile, the inputs, the outputs, and the packed words
as little-endian hexadecimal. The codes, input after input, are bits 16 and up of a linear
congruential generator: `state = (1103515245 * state + 12345) mod 2^31`, which starts at 1.

The committed file was made with flute-kernel 0.4.2 and numpy 2.4.6.
"""

import sys
import types
from pathlib import Path

import numpy as np

INPUTS = 6
CASES = [(4, 32, 256), (4, 64, 256), (2, 32, 256), (2, 64, 512), (3, 32, 1024)]


class Tensor:
    def __init__(self, values):
        self.values = np.asarray(values)

    shape = property(lambda self: self.values.shape)
    ndim = property(lambda self: self.values.ndim)
    dtype = property(lambda self: self.values.dtype)
    T = property(lambda self: Tensor(self.values.T))
    device = None

    def wrap(name):
        return lambda self, *args: Tensor(getattr(self.values, name)(*map(raw, args)))

    reshape, all, max = wrap("reshape"), wrap("all"), wrap("max")
    __getitem__, __and__ = wrap("__getitem__"), wrap("__and__")
    __eq__, __gt__, __lshift__ = wrap("__eq__"), wrap("__gt__"), wrap("__lshift__")
    bitwise_and = __and__

    def __setitem__(self, key, value):
        self.values[key] = raw(value)

    def __ior__(self, other):
        self.values |= raw(other)
        return self

    def __bool__(self):
        return bool(self.values)

    def view(self, *shape):
        # torch's view never copies; a copy would give the same values.
        return Tensor(np.ascontiguousarray(self.values).reshape(*shape))

    def to(self, dtype=None, device=None):
        return Tensor(self.values if dtype is None else self.values.astype(dtype))

    def transpose(self, a, b):
        return Tensor(self.values.swapaxes(a, b))

    def unsqueeze(self, dim):
        return Tensor(np.expand_dims(self.values, dim))

    def ne(self, other):
        return Tensor(self.values != other)

    def bool(self):
        return Tensor(self.values.astype(np.bool_))

    def numel(self):
        return self.values.size

    def contiguous(self):
        return Tensor(np.ascontiguousarray(self.values))


def raw(value):
    return value.values if isinstance(value, Tensor) else value


def stand_in():
    torch = types.ModuleType("torch")
    torch.Tensor = Tensor
    torch.bool, torch.uint8, torch.int16, torch.int32 = map(
        np.dtype, (np.bool_, np.uint8, np.int16, np.int32))
    torch.dtype, torch.device = np.dtype, object
    torch.float16, torch.float32, torch.bfloat16 = np.dtype(np.float16), np.dtype(np.float32), None
    torch.iinfo = lambda dtype: types.SimpleNamespace(bits=8 * dtype.itemsize)
    torch.tensor = lambda values, dtype=None, device=None: Tensor(np.array(values, dtype))
    torch.zeros = lambda shape, dtype=None, device=None: Tensor(np.zeros(shape, dtype))
    torch.zeros_like = lambda tensor: Tensor(np.zeros_like(tensor.values))
    torch.cat = lambda tensors, dim: Tensor(np.concatenate([raw(t) for t in tensors], axis=dim))
    torch.arange = lambda *args, dtype=None, device=None: Tensor(np.arange(*args, dtype=dtype))
    # `2 ** arange(...)`
    Tensor.__rpow__ = lambda self, base: Tensor(np.power(np.array(base, self.dtype), self.values))
    return torch


def load(folder):
    sys.modules["torch"] = stand_in()
    annotations = types.ModuleType("jaxtyping")
    for name in ("Float", "UInt8", "Int16", "Int32", "Bool"):
        setattr(annotations, name, {(Tensor, "..."): object})
    sys.modules["jaxtyping"] = annotations
    package = types.ModuleType("flute")
    package.__path__ = [str(Path(folder) / "flute")]
    package.qgemm, package.TEMPLATE_CONFIGS = None, {}
    sys.modules["flute"] = package
    import flute.utils
    return flute.utils


def codes(count, bits):
    state = 1
    for _ in range(count):
        state = (1103515245 * state + 12345) % 2**31
        yield state >> 16 & (1 << bits) - 1


def main():
    utils = load(sys.argv[1])
    for bits, tile, outputs in CASES:
        values = np.fromiter(codes(INPUTS * outputs, bits), np.int64).reshape(INPUTS, outputs)
        packed = getattr(utils, f"_pack_{bits}bit")(Tensor(values), tile_P=tile).values
        assert packed.shape == (outputs * bits // 16, INPUTS) and packed.dtype == np.int16
        words = packed.astype("<i2").tobytes().hex()
        print(bits, tile, INPUTS, outputs, words, sep="\t")


if __name__ == "__main__":
    main()
