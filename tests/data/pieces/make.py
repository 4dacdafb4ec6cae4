"""Makes two small SentencePiece models, the same as `tokenizer.json`, and what both cut texts into.

    python make.py          needs sentencepiece, protobuf, tokenizers, transformers

`prefix` is like the tokenizers of Llama 2 and Phi-3: a space is put in front of a text. `plain` is
like Gemma's: nothing is put in front, and some texts are tokens of their own. Each is written as
`NAME.model` by SentencePiece, trained on the licence of this repository, and as `NAME.json`, with
the merges that `transformers` derives from the scores. `golden.json` has, for every file, texts and
the ids that the library of the file gives. Some texts are chosen for what a vocabulary of English
cannot spell but in bytes.

The committed files were made with sentencepiece 0.2.3, tokenizers 0.23.3, transformers 5.23.0.
"""

import io
import json
from pathlib import Path

import sentencepiece
import tokenizers
from sentencepiece import sentencepiece_model_pb2
from tokenizers import decoders, models, normalizers, pre_tokenizers
from transformers.convert_slow_tokenizer import generate_merges

FOLDER = Path(__file__).parent
CORPUS = FOLDER.parents[2] / "LICENSE-APACHE"
SPACE = "\u2581"
TEXTS = [
    "Hello world, it's 12 o'clock and I'LL pay 1234567 for    four  spaces",
    "a\n\n  b\n \n\n\n c\t\td   ",
    "Licensed under the Apache License, Version 2.0 (the \"License\")",
    " leading and trailing ",
    "   ",
    "x",
    "\u00e9l\u00e8ve \u00c4RGER \u65e5\u672c\u8a9e \U0001f600\u20ac5",
    "unless required by applicable law or agreed to in writing, software is distributed",
    "redistribution; copyright\u2581owner",
    "<turn>user\nhello<end>\n",
]
SPECIALS = ["<turn>", "<end>"]


def train(name):
    is_plain = name == "plain"
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS.read_text().splitlines()), model_writer=model,
        model_type="bpe", vocab_size=420, byte_fallback=True, split_digits=True,
        allow_whitespace_only_pieces=True, normalization_rule_name="identity",
        remove_extra_whitespaces=False, add_dummy_prefix=not is_plain, character_coverage=1.0,
        num_threads=1, minloglevel=2,
        user_defined_symbols=["\n\n", SPACE * 2, *SPECIALS] if is_plain else [],
    )
    (FOLDER / f"{name}.model").write_bytes(model.getvalue())
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue()), model.getvalue()


def library(name, proto):
    """The tokenizer of the `tokenizers` library, as `transformers` converts such models."""
    pieces = sentencepiece_model_pb2.ModelProto.FromString(proto).pieces
    vocab = {piece.piece: i for i, piece in enumerate(pieces)}
    scores = {piece.piece: piece.score for piece in pieces if piece.type in (1, 4)}
    merges = generate_merges(vocab, scores, [p.piece for p in pieces if p.type in (2, 3)])
    made = tokenizers.Tokenizer(models.BPE(
        vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    replace = normalizers.Replace(" ", SPACE)
    ends = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if name == "prefix":
        made.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), replace])
        ends.append(decoders.Strip(" ", 1, 0))
    else:
        made.normalizer = replace
        made.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    made.decoder = decoders.Sequence(ends)
    for piece in pieces:
        if piece.type in (2, 3, 4):
            made.add_tokens([tokenizers.AddedToken(
                piece.piece, normalized=False, special=piece.type != 4)])
    (FOLDER / f"{name}.json").write_text(made.to_str())
    return made


def main():
    golden = {}
    for name in ("prefix", "plain"):
        pieces, proto = train(name)
        made = library(name, proto)
        golden[f"{name}.model"] = [[text, pieces.encode(text)] for text in TEXTS]
        golden[f"{name}.json"] = [
            [text, made.encode(text, add_special_tokens=False).ids] for text in TEXTS]
        same = [a == b for a, b in zip(golden[f"{name}.model"], golden[f"{name}.json"])]
        print(name, len(pieces), "tokens; the libraries agree on", same)
    (FOLDER / "golden.json").write_text(json.dumps(golden, indent=0) + "\n")


if __name__ == "__main__":
    main()
