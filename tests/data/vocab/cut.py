"""Cuts llama.cpp's vocabularies down to what some of their test texts need.

    python cut.py FOLDER_WITH_GGML_VOCAB_FILES

Needs the package `gguf`. For each name below it reads ggml-vocab-NAME.gguf with its .inp (texts)
and .out (token ids, from llama.cpp), keeps all single-byte and special tokens, the tokens of the
texts and every token that a merge can make inside of them, renumbers them in their old order, and
writes NAME.json: `vocab` (the fields of `Vocab`), `texts` and `ids`. A merge is kept if its
result is kept; so merging inside these texts goes as with the whole vocabulary.
"""

import json
import pathlib
import sys

import gguf

NAMES = [
    "gpt-2", "llama-bpe", "qwen2", "qwen35", "llama-spm", "phi-3", "falcon", "command-r",
    "starcoder", "deepseek-llm", "deepseek-coder", "gemma-4",
]
SEPARATOR = "\n__ggml_vocab_test__\n"
TEXTS = 46
KEYS = {
    "model": "model", "pre": "pre", "bos_token_id": "bos", "eos_token_id": "eos",
    "unknown_token_id": "unk", "add_bos_token": "add_bos", "add_space_prefix": "add_space_prefix",
}


def byte_alphabet():
    stays = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = [b for b in range(256) if b not in stays]
    return {b: chr(b if b in stays else 0x100 + moved.index(b)) for b in range(256)}


def value(reader, key):
    field = reader.fields.get(key)
    return None if field is None else field.contents()


def cut(folder, name):
    reader = gguf.GGUFReader(folder / f"ggml-vocab-{name}.gguf")
    get = lambda key: value(reader, "tokenizer.ggml." + key)
    tokens, types = get("tokens"), get("token_type")
    scores, merges = get("scores"), get("merges")
    path = folder / f"ggml-vocab-{name}.gguf"
    texts = pathlib.Path(f"{path}.inp").read_bytes().decode().split(SEPARATOR)
    lines = pathlib.Path(f"{path}.out").read_text().splitlines()
    texts, lines = texts[:TEXTS], lines[:TEXTS]
    ids = [[int(word) for word in line.split()] for line in lines]
    is_spm, is_raw = get("model") == "llama", get("model") == "gemma4"
    alphabet = byte_alphabet()
    keep = {i for line in ids for i in line}
    keep |= {get(key) for key in KEYS if key.endswith("token_id") and get(key) is not None}
    encoded = []
    for text in texts:
        if is_spm or is_raw:
            encoded.append("\u2581" * is_spm + text.replace(" ", "\u2581"))
        else:
            encoded.append("".join(alphabet[b] for b in text.encode()))
    inside = "\0".join(encoded)
    for i, token in enumerate(tokens):
        is_byte = len(token) == 1 and token in inside or types[i] == 6
        # A token made on the way, or one that a text could be cut at.
        if is_byte or types[i] in (1, 4) and token in inside:
            keep.add(i)
    order = sorted(keep)
    new = {old: i for i, old in enumerate(order)}
    kept = {tokens[i] for i in order}
    vocab = {field: get(key) for key, field in KEYS.items() if get(key) is not None}
    vocab |= {field: new[get(key)] for key, field in KEYS.items()
              if key.endswith("token_id") and get(key) is not None}
    vocab["tokens"] = [tokens[i] for i in order]
    vocab["types"] = [types[i] for i in order]
    if is_spm:
        vocab["scores"] = [round(float(scores[i]), 6) for i in order]
    if merges:
        at = lambda merge: merge.index(" ", 1)
        vocab["merges"] = [m for m in merges if m[:at(m)] in kept and m[at(m) + 1:] in kept
                           and m[:at(m)] + m[at(m) + 1:] in kept]
    ids = [[new[i] for i in line] for line in ids]
    out = pathlib.Path(__file__).parent / f"{name}.json"
    data = {"vocab": vocab, "texts": texts, "ids": ids}
    out.write_text(json.dumps(data, ensure_ascii=False, separators=(",", ":")) + "\n")


for name in NAMES:
    cut(pathlib.Path(sys.argv[1]), name)
