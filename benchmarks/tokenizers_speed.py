"""Texts a second of Lilliput's tokenizer and of Hugging Face's `tokenizers`, one thread each, in turns.

    python benchmarks/tokenizers_speed.py FOLDER FILE [--batch 1000] [--rounds 7] [--max-tokens 128] [--out speed.json]

FOLDER is a Hugging Face folder with a tokenizer.json; each line of FILE is a text. Both must make the same ids, so the
lines are compared first. Theirs is asked by `encode_batch_fast`, which leaves out what ours does not give either: where
each token was in the text.
"""

import os

# Before the package is imported: it starts a thread for each core otherwise.
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["RAYON_NUM_THREADS"] = "1"

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Reference
from tokenizers import __version__

from lilliput.files import write_atomic
from lilliput.measure import commit, machine_info
from lilliput.text import Tokenizer
from lilliput.text.huggingface import read_tokenizer

Encode = Callable[[list[str]], Any]


def seconds(encode: Encode, batches: list[list[str]]) -> float:
    start = time.perf_counter()
    for batch in batches:
        encode(batch)
    return time.perf_counter() - start


def opening_ms(folder: Path, rounds: int) -> float:
    """Median milliseconds from a vocabulary in memory to a tokenizer that can be used."""
    settings, vocabulary, merges = read_tokenizer(folder)
    packed = Tokenizer(settings, vocabulary, merges).packed
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        Tokenizer(settings, packed, merges)
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def measure(folder: Path, lines: list[str], batch: int, rounds: int, max_tokens: int) -> dict[str, Any]:
    ours = Tokenizer(*read_tokenizer(folder))
    theirs = Reference.from_file(str(folder / "tokenizer.json"))
    theirs.no_padding()
    theirs.enable_truncation(max_tokens)
    batches = [lines[start : start + batch] for start in range(0, len(lines), batch)]
    different = 0
    for part in batches:
        ids, lengths = ours.encode_batch(part, max_tokens)
        expected = [encoding.ids for encoding in theirs.encode_batch_fast(part)]
        same = ids.tolist() == [number for row in expected for number in row]
        different += not same or lengths.tolist() != [len(row) for row in expected]
    times: dict[str, list[float]] = {"lilliput": [], "tokenizers": []}
    for _ in range(rounds):
        times["lilliput"].append(seconds(lambda part: ours.encode_batch(part, max_tokens), batches))
        times["tokenizers"].append(seconds(theirs.encode_batch_fast, batches))
    rates = {name: len(lines) / statistics.median(values) for name, values in times.items()}
    ratios = [theirs / ours for ours, theirs in zip(times["lilliput"], times["tokenizers"], strict=True)]
    return {
        "machine": machine_info(),
        "commit": commit(),
        "tokenizers": __version__,
        "folder": folder.name,
        "texts": len(lines),
        "characters": sum(map(len, lines)),
        "batch": batch,
        "different_batches": different,
        "texts_per_second": {name: round(rate) for name, rate in rates.items()},
        "ratio": round(statistics.median(ratios), 1),
        "opening_ms": round(opening_ms(folder, rounds), 2),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure tokenizers on the lines of a file.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("file", type=Path)
    parser.add_argument("--batch", type=int, default=1000)
    parser.add_argument("--lines", type=int, default=50_000, help="at most as many of the file's lines")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    lines = arguments.file.read_text(encoding="utf-8").split("\n")[: arguments.lines]
    result = measure(arguments.folder, lines, arguments.batch, arguments.rounds, arguments.max_tokens)
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.out is not None:
        write_atomic(arguments.out, f"{text}\n".encode())
    return int(result["different_batches"] > 0)


if __name__ == "__main__":
    sys.exit(main())
