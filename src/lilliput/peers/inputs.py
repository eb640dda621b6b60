"""What engines are given: images, or sequences of token ids; in files, in batches, and in parts for those that pad."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.uint32]
Inputs = NDArray[np.uint8] | list[Ids]  # images [n, height, width, channels], or n sequences [T]

SUB_BATCH = 8  # sequences of a part between one alone and the whole batch


class Division(NamedTuple):
    """How a batch is run: parts of `size` examples, each whole, by `requests` that work at a time."""

    size: int
    requests: int = 1

    def __str__(self) -> str:
        return f"parts of {self.size}" + (f", {self.requests} requests" if self.requests > 1 else "")


@dataclass(frozen=True, eq=False)
class Part:
    """Examples of a batch that are run at once.

    rows: which of the batch they are. arrays: what a module takes: pixels float32 [n, channels, height, width]; or ids
    int64 [n, T], and with several sequences their mask, int64 [n, T]: 1 for tokens, 0 for padding.
    """

    rows: NDArray[np.intp]
    arrays: tuple[NDArray[np.float32] | NDArray[np.int64], ...]


def save(inputs: Inputs, stem: str) -> str:
    """Write `stem` with the suffix of its kind, and give that path."""
    if isinstance(inputs, np.ndarray):
        np.save(f"{stem}.npy", inputs)
        return f"{stem}.npy"
    lengths = np.array([len(ids) for ids in inputs], np.int64)
    np.savez(f"{stem}.npz", tokens=np.concatenate(inputs), lengths=lengths)
    return f"{stem}.npz"


def load(path: str) -> Inputs:
    """What `save` wrote."""
    if path.endswith(".npy"):
        images: NDArray[np.uint8] = np.load(path, mmap_mode="r")
        return images
    with np.load(path) as file:
        tokens: Ids = file["tokens"]
        return np.split(tokens, np.cumsum(file["lengths"])[:-1])


def batch_of(inputs: Inputs, start: int, size: int) -> Inputs:
    """A batch from example `start` on, from the beginning again after the last."""
    numbers = np.arange(start, start + size) % len(inputs)
    if isinstance(inputs, np.ndarray):
        return np.ascontiguousarray(inputs[numbers])
    return [inputs[number] for number in numbers.tolist()]


def divisions(inputs: Inputs, batch: int, threads: int) -> list[Division]:
    """The ways to run a batch that are worth trying.

    Images: all at once, or a part for each thread. Texts: each alone (nothing is padded), some of about the same
    length, or all; and parts one after another on all threads, or one on each thread.
    """
    whole = Division(batch)
    if isinstance(inputs, np.ndarray):
        return [whole] + ([Division(batch // threads, threads)] if threads > 1 and batch % threads == 0 else [])
    sizes = [size for size in (1, SUB_BATCH) if size < batch]
    return [Division(size, requests) for size in sizes for requests in sorted({1, threads})] + [whole]


def lengths_vary(inputs: Inputs, batch: int) -> bool:
    """Whether parts of one size have several shapes: those of a batch of texts."""
    return batch > 1 and not isinstance(inputs, np.ndarray)


def parts_of(batch: Inputs, size: int, masked: bool | None = None) -> list[Part]:
    """A batch in parts of `size`, the last one perhaps smaller; sequences are sorted by length, and padded with id 0.

    `masked`: whether sequences bring their mask. None: where a part holds several.
    """
    if isinstance(batch, np.ndarray):
        rows = np.arange(len(batch))
        return [Part(each, (as_pixels(batch[each]),)) for each in _split(rows, size)]
    lengths = np.array([len(ids) for ids in batch])
    order = np.argsort(lengths, kind="stable") if size < len(batch) else np.arange(len(batch))
    return [_padded(batch, rows, size > 1 if masked is None else masked) for rows in _split(order, size)]


def as_pixels(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """uint8 [n, height, width, channels] -> what a module takes: contiguous float32 [n, channels, height, width]."""
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2), np.float32)


def _split(rows: NDArray[np.intp], size: int) -> list[NDArray[np.intp]]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _padded(batch: list[Ids], rows: NDArray[np.intp], masked: bool) -> Part:
    sequences = [batch[row] for row in rows.tolist()]
    ids = np.zeros((len(rows), max(len(sequence) for sequence in sequences)), np.int64)
    mask = np.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = sequence
        mask[row, : len(sequence)] = 1
    return Part(rows, (ids, mask) if masked else (ids,))
