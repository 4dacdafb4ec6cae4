#!/usr/bin/env python3
"""Tokens per second on a GPU beside llama.cpp's Vulkan backend: both programs in turn, medians.

usage: gpu_versus.py --gridmill GRIDMILL --server LLAMA_SERVER [options] PAIR...

A PAIR is NAME=OURS,THEIRS or NAME=OURS,THEIRS,FLAGS. OURS is a model file, or SHAPE:TYPE for
random weights (`gridmill bench --shape SHAPE --to TYPE`); THEIRS is a model file for llama-server;
FLAGS are more flags of `gridmill bench`. Only models of one shape make a fair pair.

Each round asks the server for a prompt and an answer, then runs `gridmill bench` for the same: a
prompt into an empty cache, then tokens that each follow from the one before, at the prompt's depth.
The first round is not measured. Bytes per token are those of the matrices that every token reads:
all weights but the embedding, unless the embedding is the head too. A share of the bandwidth is
bytes per token times tokens per second, over `--bandwidth`; caches and activations are left out.

Prints a Markdown table; `benches/results/` keeps the ones that are quoted.
"""
import argparse
import json
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

HEAD = (
    "| pair | prompt {prompt} ours | theirs | ratio | generate {generate} ours | theirs | ratio "
    "| model bytes ours | theirs | bytes per token ours | theirs |{share} load ours |"
)
SHARE = " share of bandwidth ours | theirs |"

# Seconds for a server to read its model, and for one answer.
START_MAX, ANSWER_MAX = 300, 600


class Server:
    """A llama-server with one model, as long as it is needed."""

    def __init__(self, args, model):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.log = tempfile.TemporaryFile("w+")
        context = args.prompt + args.generate + 64
        command = [args.server, "-m", model, "--host", "127.0.0.1", "--port", str(port)]
        command += ["-c", str(context), "-np", "1"] + args.server_flags.split()
        self.process = subprocess.Popen(command, stdout=self.log, stderr=subprocess.STDOUT)

    def __enter__(self):
        for _ in range(2 * START_MAX):
            if self.process.poll() is not None:
                break
            try:
                urllib.request.urlopen(f"{self.url}/health", timeout=2).read()
                return self
            except (urllib.error.URLError, OSError):
                time.sleep(0.5)
        self.__exit__()
        self.log.seek(0)
        sys.exit(f"the server did not start:\n{self.log.read()[-3000:]}")

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()

    def measure(self, args, seed):
        """Prompt and generation, tokens per second; ids below 1000 may be special."""
        ids = random.Random(seed)
        body = {
            "prompt": [ids.randint(1000, 20000) for _ in range(args.prompt)],
            "n_predict": args.generate,
            "ignore_eos": True,
            "temperature": 0,
            "cache_prompt": False,
        }
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(
            f"{self.url}/completion", json.dumps(body).encode(), headers
        )
        with urllib.request.urlopen(request, timeout=ANSWER_MAX) as answer:
            timings = json.load(answer)["timings"]
        if (timings["prompt_n"], timings["predicted_n"]) != (args.prompt, args.generate):
            sys.exit(f"the server did something else: {timings}")
        return timings["prompt_per_second"], timings["predicted_per_second"]


def gridmill(args, *rest):
    """What a command of ours prints as JSON."""
    command = [args.gridmill, *rest, "--json"]
    output = subprocess.run(command, capture_output=True, text=True)
    if output.returncode != 0:
        sys.exit(f"{' '.join(command)}: {output.stderr}")
    return json.loads(output.stdout)


def ours(args, model, flags):
    shape, _, kind = model.partition(":")
    which = ["--shape", shape, "--to", kind] if kind else [model]
    sizes = ["-p", str(args.prompt), "-n", str(args.generate), "-d", str(args.prompt), "-r", "1"]
    return gridmill(args, "bench", *which, *sizes, "--device", args.device, *flags)


def token_bytes(args, model):
    """Model bytes, and bytes that each token reads, of a file."""
    description = gridmill(args, "inspect", model)
    tensors = {tensor["name"]: tensor["bytes"] for tensor in description["tensors"]}
    has_head = "output.weight" in tensors
    unread = tensors["token_embd.weight"] if has_head else 0
    return description["bytes"], sum(tensors.values()) - unread


def compare(args, our_model, their_model, flags):
    """Cells of one row, the pair's name left out."""
    rows = []
    with Server(args, their_model) as server:
        for number in range(args.rounds + 1):
            their_prompt, their_generate = server.measure(args, number)
            figures = ours(args, our_model, flags)
            row = {
                "prompt": (figures["prompt_tps"], their_prompt),
                "generate": (figures["generate_tps"], their_generate),
                "load": figures["load_seconds"],
            }
            print(f"round {number}: {row}", file=sys.stderr, flush=True)
            rows.append(row)
    rows = rows[1:]
    cells, medians = [], {}
    for what in ("prompt", "generate"):
        medians[what] = [statistics.median(row[what][side] for row in rows) for side in (0, 1)]
        ratio = statistics.median(row[what][0] / row[what][1] for row in rows)
        cells += [f"{median:.1f}" for median in medians[what]] + [f"{ratio:.2f}"]
    their_bytes, their_token_bytes = token_bytes(args, their_model)
    cells += [f"{bytes:,}" for bytes in (figures["model_bytes"], their_bytes)]
    per_token = figures["token_bytes"], their_token_bytes
    cells += [f"{bytes:,}" for bytes in per_token]
    if args.bandwidth:
        shares = [
            bytes * rate / (args.bandwidth * 1e9)
            for bytes, rate in zip(per_token, medians["generate"])
        ]
        cells += [f"{100 * share:.0f}%" for share in shares]
    load = statistics.median(row["load"] for row in rows)
    return cells + [f"{load:.2f} s"]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gridmill", required=True)
    parser.add_argument("--server", required=True)
    parser.add_argument("--server-flags", default="-ngl 99 -fa on", help="of llama-server")
    parser.add_argument("--device", default="gpu", help="of gridmill bench")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--generate", type=int, default=128)
    parser.add_argument("--bandwidth", type=float, help="of the card's memory, GB/s")
    parser.add_argument("pairs", nargs="+", metavar="PAIR")
    args = parser.parse_args()
    share = SHARE if args.bandwidth else ""
    head = HEAD.format(prompt=args.prompt, generate=args.generate, share=share)
    print(head)
    print("|" + "---|" * (head.count("|") - 1), flush=True)
    for pair in args.pairs:
        name, files = pair.split("=", 1)
        our_model, their_model, *flags = files.split(",")
        flags = flags[0].split() if flags else []
        cells = compare(args, our_model, their_model, flags)
        print("| " + " | ".join([name] + cells) + " |", flush=True)


if __name__ == "__main__":
    main()
