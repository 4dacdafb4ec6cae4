#!/usr/bin/env python3
"""What loud parts cost and save: weights, activations and the cache in fewer bits, together.

    benches/resq.py GRIDMILL SOURCE.gguf CALIBRATION.txt TEXT --chunks N --keep FOLDER [--ctx N]
                    [--kinds NAME+...] [--only quality,caches,answers,speed] [--stock FILE]

`quality` compares each kind of weights (one is all 4 bits wide, in groups so small that it has the bytes of
resq4, one has HIGGS types chosen for these bytes) with each cache, `caches` the unquantised weights with every
cache, `answers` what is said to ten prompts, `speed` the two kinds of weights and a stock file. Prints
tables in Markdown, a row as soon as it is measured. CALIBRATION must not be the text that is scored. The
folder keeps the models, the bases and the unquantised model's distributions.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

CACHES = ["f16", "q8", "q4", "resq4"]
KINDS = {
    "higgs4": ["--to", "higgs4"],
    "resq4": ["--to", "resq4"],
    "HIGGS_P1_N16, groups of 32": ["--to", "HIGGS_P1_N16", "--group", "32"],
    "chosen": ["--size"],
}
PROMPTS = [
    "The capital of France is",
    "Water freezes at a temperature of",
    "The largest planet of the solar system is",
    "The author of Romeo and Juliet is",
    "A triangle has three sides and a square has",
    "2 + 2 =",
    "Question: What is 7 times 8? Answer:",
    "Question: What is 15 minus 6? Answer:",
    "If I have 3 apples and buy 4 more, I have",
    "1, 2, 4, 8, 16,",
]


def run(*command):
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stderr}")
    return done.stdout


class Bench:
    def __init__(self, args):
        self.args, self.folder = args, args.keep
        self.folder.mkdir(exist_ok=True)
        self.source = self.folder / "source.gguf"
        if not self.source.exists():
            shutil.copy(args.source, self.source)
        self.bases = self.folder / "source.kv-basis.gguf"
        if not self.bases.exists():
            run(args.gridmill, "kv-basis", self.source, self.bases, "--calibrate", args.calibration)

    def weights(self, kind):
        """The model with weights of a kind; the source's own where that is `source`."""
        if kind == "source":
            return self.source
        path = self.folder / f"{kind.replace(', ', '-').replace(' ', '-')}.gguf"
        if not path.exists():
            wish = KINDS[kind]
            if wish == ["--size"]:
                wish = ["--size", self.weights("resq4").stat().st_size]
            run(self.args.gridmill, "convert", self.source, path, *wish, "--calibrate",
                self.args.calibration)
        return path

    def score(self, kind, cache, *flags):
        """Perplexity and divergence from the source with a cache of floats."""
        command = [self.args.gridmill, "perplexity", "MODEL", self.args.text, "--device", "cpu",
                   "--chunks", self.args.chunks, "--ctx", self.args.ctx, "--json"]
        base = self.folder / f"base-{self.args.ctx}-{self.args.chunks}.logits"
        if not base.exists():
            command[2] = self.source
            run(*command, "--kv-type", "f32", "--save-logits", base)
        command[2] = self.weights(kind)
        return json.loads(run(*command, "--kv-type", cache, "--kv-basis", self.bases, "--against",
                              base, *flags))

    def token_bytes(self, cache):
        """Bytes of cache per token, by the table of formats/kv.md."""
        metadata = json.loads(run(self.args.gridmill, "inspect", self.source, "--json"))["metadata"]
        prefix = metadata["general.architecture"]
        number = lambda key, other=None: metadata.get(f"{prefix}.{key}", other)
        heads = number("attention.head_count")
        length = number("attention.key_length", number("embedding_length") // heads)
        page = (Path(__file__).parent.parent / "formats" / "kv.md").read_text().splitlines()
        cells = lambda line: [cell.strip() for cell in line.strip("|").split("|")]
        lengths = next(cells(line) for line in page if line.startswith("| type |"))
        row = next(cells(line) for line in page if line.startswith(f"| `{cache}` |"))
        per_head = int(row[lengths.index(str(length))])
        return 2 * number("block_count") * number("attention.head_count_kv", heads) * per_head


def row(*cells):
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def quality(bench):
    row("weights", "file bytes", "activations", "cache", "bytes per token", "perplexity", "mean KL",
        "same top-1 %")
    row(*["---"] * 8)
    for kind in bench.args.kinds.split("+"):
        settings = [(cache, "int8") for cache in CACHES]
        if kind == "resq4":
            settings.append(("resq4", "paper"))
        for cache, activations in settings:
            score = bench.score(kind, cache, "--activations", activations)
            row(kind, f"{bench.weights(kind).stat().st_size:,}", activations, cache,
                f"{bench.token_bytes(cache):,}", *figures(score))


def caches(bench):
    row("cache", "bytes per token", "perplexity", "mean KL", "same top-1 %")
    row(*["---"] * 5)
    for cache in CACHES:
        row(cache, f"{bench.token_bytes(cache):,}", *figures(bench.score("source", cache)))


def figures(score):
    return (f"{score['perplexity']:.3f}", f"{score['kl_mean']:.5f} ± {score['kl_mean_se']:.5f}",
            f"{100 * score['same_top1']:.1f}")


def answers(bench):
    row("prompt", "unquantised", "resq4 weights and cache", "the same, activations of the paper")
    row(*["---"] * 4)
    for prompt in PROMPTS:
        say = lambda kind, *flags: run(
            bench.args.gridmill, "run", bench.weights(kind), "-p", prompt, "-n", 16, "--temp", 0,
            "--ctx", 64, "--device", "cpu", *flags).strip().replace("\n", " ⏎ ").replace("|", "\\|")
        few = ["--kv-type", "resq4", "--kv-basis", bench.bases]
        row(prompt, say("source"), say("resq4", *few), say("resq4", *few, "--activations", "paper"))


def speed(bench):
    files = {kind: bench.weights(kind) for kind in ["higgs4", "resq4"]}
    if bench.args.stock:
        files["stock"] = bench.args.stock
    found = {name: [] for name in files}
    for _ in range(3):
        for name, path in files.items():
            done = json.loads(run(bench.args.gridmill, "bench", path, "-p", 512, "-n", 128, "-r", 1,
                                  "--threads", 2, "--device", "cpu", "--json"))
            found[name].append((done["prompt_tps"], done["generate_tps"]))
    row("weights", "prompt of 512, tokens/s", "decode of 128, tokens/s")
    row(*["---"] * 3)
    for name, rounds in found.items():
        row(name, *(f"{statistics.median(each):.1f}" for each in zip(*rounds)))


def main():
    flags = argparse.ArgumentParser()
    flags.add_argument("gridmill")
    flags.add_argument("source", type=Path)
    flags.add_argument("calibration")
    flags.add_argument("text")
    flags.add_argument("--chunks", type=int, required=True)
    flags.add_argument("--ctx", type=int, default=512)
    flags.add_argument("--keep", type=Path, required=True)
    flags.add_argument("--kinds", default="+".join(KINDS))
    flags.add_argument("--only", default="quality,caches,answers,speed")
    flags.add_argument("--stock", type=Path)
    bench = Bench(flags.parse_args())
    tables = {"quality": quality, "caches": caches, "answers": answers, "speed": speed}
    for word in bench.args.only.split(","):
        tables[word](bench)
        print(flush=True)


main()
