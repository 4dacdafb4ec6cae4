"""llama.cpp's library, called from Python, and its perplexity of a file.

    pip install xllamacpp numpy
    python3 benches/llama_cpp.py MODEL.gguf TEXT [WINDOWS] [--ctx N] [--kv TYPE] [--against BASE]

The package brings the whole of llama.cpp in one shared library, whose C functions are called here. A
window has 512 tokens, begins with begin-of-text where the model wants it, and its second half is scored:
llama.cpp's convention, and that of `gridmill perplexity`. The cache keeps plain floats unless `--kv` names
another type. BASE is what `gridmill perplexity --save-logits` wrote, in the same windows of the same text.
"""

import argparse
import ctypes
import json
import struct

import numpy
import xllamacpp.xllamacpp

WINDOW = 512
# Types of a cache, by their numbers in ggml.h.
CACHES = {"f32": 0, "f16": 1, "q4_0": 2, "q5_0": 6, "q8_0": 8}

library = ctypes.CDLL(xllamacpp.xllamacpp.__file__)


class ModelParams(ctypes.Structure):
    """As the library makes them; nothing is changed."""

    _fields_ = [("all", ctypes.c_uint8 * 512)]


class ContextParams(ctypes.Structure):
    """llama_context_params of llama.h up to the last field that is set here, and more."""

    _fields_ = [
        ("n_ctx", ctypes.c_uint32),
        ("n_batch", ctypes.c_uint32),
        ("n_ubatch", ctypes.c_uint32),
        ("between", ctypes.c_uint32 * 10),
        ("flash_attn_type", ctypes.c_int32),
        ("floats", ctypes.c_float * 8),
        ("callback", ctypes.c_void_p * 2),
        ("type_k", ctypes.c_int32),
        ("type_v", ctypes.c_int32),
        ("rest", ctypes.c_uint8 * 400),
    ]


class Batch(ctypes.Structure):
    """llama_batch of llama.h."""

    _fields_ = [
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embd", ctypes.c_void_p),
        ("pos", ctypes.POINTER(ctypes.c_int32)),
        ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    ]


def function(name, result, *arguments):
    found = getattr(library, name)
    found.restype, found.argtypes = result, arguments
    return found


pointer = ctypes.c_void_p
default_model = function("llama_model_default_params", ModelParams)
default_context = function("llama_context_default_params", ContextParams)
load = function("llama_model_load_from_file", pointer, ctypes.c_char_p, ModelParams)
init = function("llama_init_from_model", pointer, pointer, ContextParams)
get_vocab = function("llama_model_get_vocab", pointer, pointer)
vocab_len = function("llama_vocab_n_tokens", ctypes.c_int32, pointer)
adds_bos = function("llama_vocab_get_add_bos", ctypes.c_bool, pointer)
get_bos = function("llama_vocab_bos", ctypes.c_int32, pointer)
get_memory = function("llama_get_memory", pointer, pointer)
clear = function("llama_memory_clear", None, pointer, ctypes.c_bool)
make_batch = function("llama_batch_init", Batch, ctypes.c_int32, ctypes.c_int32, ctypes.c_int32)
decode = function("llama_decode", ctypes.c_int32, pointer, Batch)
get_logits = function("llama_get_logits", ctypes.POINTER(ctypes.c_float), pointer)
cut = function(
    "llama_tokenize", ctypes.c_int32, pointer, ctypes.c_char_p, ctypes.c_int32,
    ctypes.POINTER(ctypes.c_int32), ctypes.c_int32, ctypes.c_bool, ctypes.c_bool,
)
SILENT = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, pointer)(lambda *_: None)
function("llama_log_set", None, pointer, pointer)(ctypes.cast(SILENT, pointer), None)
function("llama_backend_init", None)()


class Model:
    """A file in llama.cpp, on the CPU."""

    def __init__(self, path, context=WINDOW, cache="f32"):
        self.model = load(str(path).encode(), default_model())
        if not self.model:
            raise SystemExit(f"llama.cpp does not load {path}")
        params = default_context()
        params.n_ctx = params.n_batch = params.n_ubatch = context
        params.type_k = params.type_v = CACHES[cache]
        # It rounds values to half precision, and values of a few bits want it.
        params.flash_attn_type = 0 if cache == "f32" else 1
        self.context = init(self.model, params)
        if not self.context:
            raise SystemExit(f"llama.cpp has no cache of {cache} for {path}")
        self.vocab = get_vocab(self.model)
        self.vocab_len = vocab_len(self.vocab)
        self.batch = make_batch(context, 0, 1)

    def tokens(self, text):
        """The ids of a text, without a begin-of-text of its own."""
        text = text.encode()
        ids = (ctypes.c_int32 * (len(text) + 8))()
        count = cut(self.vocab, text, len(text), ids, len(ids), False, False)
        return list(ids[:count])

    def logits(self, ids):
        """The logits after every token of a sequence, `(tokens, vocabulary)`."""
        clear(get_memory(self.context), True)
        batch = self.batch
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, i, 1
            batch.seq_id[i][0], batch.logits[i] = 0, 1
        if decode(self.context, batch) != 0:
            raise SystemExit("llama_decode failed")
        return numpy.ctypeslib.as_array(get_logits(self.context), (len(ids), self.vocab_len)).copy()

    def scores(self, text, windows, length=WINDOW, base=None):
        """Of the second halves of so many windows: the loss of each token, and its divergence."""
        ids = self.tokens(text)
        losses, divergences = [], []
        for start in range(0, min(windows * length, len(ids) - length + 1), length):
            window = ids[start:start + length]
            given = list(window)
            if adds_bos(self.vocab):
                given[0] = get_bos(self.vocab)
            logits = self.logits(given)
            for i in range(length // 2, length - 1):
                logs = logits[i].astype(numpy.float64)
                logs -= logs.max()
                logs -= numpy.log(numpy.exp(logs).sum())
                losses.append(-logs[window[i + 1]])
                if base:
                    true = base.next(window)
                    divergences.append(numpy.sum(numpy.exp(true) * (true - logs)))
        return losses, divergences

    def perplexity(self, text, windows):
        """Of the second halves of so many windows, and the tokens that were scored."""
        losses, _ = self.scores(text, windows)
        return float(numpy.exp(numpy.mean(losses))), len(losses)


class Base:
    """Logarithms of distributions, in the layout of llama.cpp's perplexity tool."""

    def __init__(self, path, length):
        self.file = open(path, "rb")
        magic, found, self.vocabulary, windows = struct.unpack("<8s3i", self.file.read(20))
        if magic != b"_logits_" or found != length:
            raise SystemExit(f"{path}: expected distributions of windows of {length}")
        self.tokens = numpy.fromfile(self.file, "<i4", windows * length).reshape(windows, length)
        self.read = 0

    def next(self, window):
        """Of the next token that is scored, in this window."""
        length = len(window)
        at = self.read // (length - 1 - length // 2)
        if list(self.tokens[at][1:]) != window[1:]:
            raise SystemExit(f"window {at} of the distributions has another text")
        self.read += 1
        scale, least = struct.unpack("<2f", self.file.read(8))
        steps = numpy.fromfile(self.file, "<u2", self.vocabulary + self.vocabulary % 2)
        return least + scale * steps[:self.vocabulary].astype(numpy.float64)


def main():
    flags = argparse.ArgumentParser()
    flags.add_argument("model")
    flags.add_argument("text")
    flags.add_argument("windows", type=int, nargs="?", default=1 << 30)
    flags.add_argument("--ctx", type=int, default=WINDOW)
    flags.add_argument("--kv", choices=CACHES, default="f32")
    flags.add_argument("--against")
    args = flags.parse_args()
    base = Base(args.against, args.ctx) if args.against else None
    model = Model(args.model, args.ctx, args.kv)
    losses, divergences = model.scores(open(args.text).read(), args.windows, args.ctx, base)
    found = {"perplexity": float(numpy.exp(numpy.mean(losses))), "tokens": len(losses)}
    if base:
        found["kl_mean"] = float(numpy.mean(divergences))
        found["kl_mean_se"] = float(numpy.std(divergences) / len(divergences) ** 0.5)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
