"""Texts without labels: read from a file, split with a seed, tokenized, and put into batches with little padding."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lilliput.compress_config import TextDataSettings
from lilliput.data.text_files import is_table, read_columns, read_utf8
from lilliput.errors import DataError

Indices = NDArray[np.int64]
CHUNK_BATCHES = 32  # batches whose texts are drawn together and then sorted by length


@dataclass(frozen=True)
class Sequences:
    """Token ids of many texts, one behind the other, and how many each has (at least 1)."""

    ids: NDArray[np.uint32]
    lengths: Indices

    def __len__(self) -> int:
        return len(self.lengths)

    def select(self, indices: Indices) -> list[NDArray[np.uint32]]:
        """The sequences with these numbers, in this order."""
        ends = np.cumsum(self.lengths)
        return [self.ids[ends[index] - self.lengths[index] : ends[index]] for index in indices]

    def padded(self, indices: Indices) -> tuple[Tensor, Tensor]:
        """Ids, int64 [B, T], and mask, bool [B, T], False for padding, which stands at the end of a row."""
        lengths = self.lengths[indices]
        ids = torch.zeros(len(indices), int(lengths.max()), dtype=torch.int64)
        for row, sequence in zip(ids, self.select(indices), strict=True):
            row[: len(sequence)] = torch.from_numpy(sequence.astype(np.int64))
        return ids, torch.arange(ids.shape[1]) < torch.from_numpy(lengths)[:, None]


def read_texts(path: Path, column: str | None = None) -> list[str]:
    """Texts of a file, each once: one a line, or the `column` (None: 'text') of a `.csv` or `.jsonl`. Empty ones are
    left out.

    Raises:
        DataError: there is no such file, it is not UTF-8 or not text, its name is that of a table we do not read, a
            line of it is not what its name says, it has no such column, or no text.
    """
    if is_table(path):
        found = read_columns(path, [column or "text"])[0]
    elif column is not None:
        raise DataError(f"data {path}: plain text has no column '{column}'; give a .csv or .jsonl, or no data.column")
    else:
        found = read_utf8(path).split("\n")
    texts = list(dict.fromkeys(stripped for one in found if (stripped := one.strip())))
    if not texts:
        raise DataError(f"data {path}: has no text; write one text a line")
    return texts


def random_order(count: int, seed: int) -> Indices:
    """0 to count - 1 in an order that numpy gives on every machine and in every version (unlike `permutation`)."""
    return np.argsort(np.random.PCG64(seed).random_raw(count), kind="stable").astype(np.int64)


@dataclass(frozen=True)
class TextParts:
    """Texts to learn from, to watch (`validation`), and to measure on (`test`); no text is in two parts."""

    train: list[str]
    validation: list[str]
    test: list[str]


def split_texts(texts: list[str], settings: TextDataSettings) -> TextParts:
    """Draw the held-out parts, each of at most a quarter of all texts; all parts come in a random order.

    Raises:
        DataError: there are fewer than four texts, so a part would be empty.
    """
    if len(texts) < 4:
        raise DataError(f"data: {len(texts)} different texts; at least 4 are needed, and some hundreds to be of use")
    shuffled = [texts[index] for index in random_order(len(texts), settings.split_seed)]
    tests, watched = (min(count, len(texts) // 4) for count in (settings.test, settings.validation))
    return TextParts(shuffled[tests + watched :], shuffled[tests : tests + watched], shuffled[:tests])


def sorted_batches(lengths: Indices, max_tokens: int) -> list[Indices]:
    """Numbers of all sequences in batches of about one length, each of at most `max_tokens` tokens with its padding (or
    of one sequence)."""
    batches: list[Indices] = []
    batch: list[int] = []
    for index in np.argsort(lengths, kind="stable").tolist():
        if batch and (len(batch) + 1) * lengths[index] > max_tokens:
            batches.append(np.array(batch, np.int64))
            batch = []
        batch.append(index)
    return [*batches, np.array(batch, np.int64)] if batch else batches


def shuffled_batches(lengths: Indices, batch_size: int, seed: int) -> list[Indices]:
    """Numbers of the sequences in `len(lengths) // batch_size` batches (or one, if they are fewer), in a random order,
    each of about one length: a chunk of many batches is drawn, sorted by length and cut."""
    order = random_order(len(lengths), seed)
    order = order[: max(len(order) // batch_size, 1) * batch_size]
    batches: list[Indices] = []
    for start in range(0, len(order), CHUNK_BATCHES * batch_size):
        chunk = order[start : start + CHUNK_BATCHES * batch_size]
        chunk = chunk[np.argsort(lengths[chunk], kind="stable")]
        cut = [chunk[at : at + batch_size] for at in range(0, len(chunk), batch_size)]
        batches += [cut[index] for index in random_order(len(cut), seed + 1 + start)]
    return batches
