#!/usr/bin/env python3
"""Tokens per second beside llama.cpp: both programs in turn, medians and their ratio.

usage: versus.py GRIDMILL LLAMA_BENCH THREADS ROUNDS PAIR...

A PAIR is NAME=OURS,THEIRS or NAME=OURS,THEIRS,FLAGS: two model files and flags of `gridmill bench`.
Prints a Markdown table; `benches/results/` keeps the ones that are quoted.
"""
import json
import statistics
import subprocess
import sys

PROMPT, GENERATE = 512, 128


def ours(program, model, threads, flags):
    command = [program, "bench", model, "-t", threads, "-p", str(PROMPT), "-n", str(GENERATE)]
    output = subprocess.run(command + ["-r", "1", "--json"] + flags, capture_output=True, check=True)
    figures = json.loads(output.stdout)
    return figures["prompt_tps"], figures["generate_tps"]


def theirs(program, model, threads):
    command = [program, "-m", model, "-t", threads, "-p", str(PROMPT), "-n", str(GENERATE)]
    output = subprocess.run(command + ["-r", "1", "-o", "json"], capture_output=True, check=True)
    figures = json.loads(output.stdout)
    prompt = next(row["avg_ts"] for row in figures if row["n_prompt"])
    generate = next(row["avg_ts"] for row in figures if row["n_gen"])
    return prompt, generate


def main():
    gridmill, llama_bench, threads, rounds, *pairs = sys.argv[1:]
    print("| pair | prompt 512 ours | theirs | ratio | generate 128 ours | theirs | ratio |")
    print("|---|---|---|---|---|---|---|")
    for pair in pairs:
        name, files = pair.split("=", 1)
        our_model, their_model, *flags = files.split(",")
        flags = flags[0].split() if flags else []
        rows = []
        for _ in range(int(rounds)):
            rows.append(
                ours(gridmill, our_model, threads, flags) + theirs(llama_bench, their_model, threads)
            )
        cells = [name]
        for i in (0, 1):
            our = statistics.median(row[i] for row in rows)
            their = statistics.median(row[i + 2] for row in rows)
            ratio = statistics.median(row[i] / row[i + 2] for row in rows)
            cells += [f"{our:.1f}", f"{their:.1f}", f"{ratio:.2f}"]
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
