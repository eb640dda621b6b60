"""Count the lines of a text file that Lilliput's tokenizer and Hugging Face's `tokenizers` make different ids of.

    python tests/text/compare_on_lines.py FOLDER FILE [--max-tokens 128]

FOLDER is a Hugging Face folder with a tokenizer.json. Real lines, of a Debian machine (`apt-get update` first; where
these files end in .lz4, unpack them with lz4):

    cat /var/lib/apt/lists/*Translation-en | grep '^ ' > lines.txt

Prints the number of different lines of all, and the first of them. Ends with 1 if there are any.
"""

import argparse
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from tokenizers import Tokenizer as Reference

from lilliput.text import Tokenizer
from lilliput.text.huggingface import read_tokenizer

CHUNK = 10_000


def different(folder: Path, lines: list[str], max_tokens: int) -> Iterator[tuple[str, list[int], list[int]]]:
    """The lines that differ, with our ids and theirs."""
    ours = Tokenizer(*read_tokenizer(folder))
    theirs = Reference.from_file(str(folder / "tokenizer.json"))
    theirs.no_padding()
    theirs.enable_truncation(max_tokens)
    for start in range(0, len(lines), CHUNK):
        chunk = lines[start : start + CHUNK]
        ids, lengths = ours.encode_batch(chunk, max_tokens)
        mine = iter(ids.tolist())
        for line, length, encoding in zip(chunk, lengths.tolist(), theirs.encode_batch_fast(chunk), strict=True):
            found = list(islice(mine, length))
            if found != encoding.ids:
                yield line, found, encoding.ids


def main() -> int:
    parser = argparse.ArgumentParser(description="Count the lines that are tokenized differently.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("file", type=Path)
    parser.add_argument("--max-tokens", type=int, default=128)
    arguments = parser.parse_args()
    lines = arguments.file.read_text(encoding="utf-8").split("\n")
    wrong = list(different(arguments.folder, lines, arguments.max_tokens))
    sys.stdout.write(f"{len(wrong)} of {len(lines)} lines differ\n")
    for line, mine, other in wrong[:5]:
        sys.stdout.write(f"{line!r}\n  lilliput   {mine}\n  tokenizers {other}\n")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
