"""Measuring an artifact: its accuracy through the runtime, its bits against the reference, and what it was measured
with: machine and source tree."""

import os
import platform
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lilliput.errors import FailureError, InputError
from lilliput.program import reference
from lilliput.program.program import Examples, Program
from lilliput.program.validation import num_token_ids
from lilliput.runtime.images import ImageSession
from lilliput.runtime.session import Session, differs

BATCH = 256  # examples between two reports of progress
REFERENCE_BATCH = 32  # the same where the reference runs them
RANDOM_IMAGES, RANDOM_LENGTHS = 1000, 4  # that runtime and reference are compared on; lengths beside the extreme ones
TIE = 1e-6  # cosines closer than this are equal: float32 products of the same vectors may differ by as much

Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What the artifact made of a labelled set.

    accuracy: share of examples whose largest logit is the label's (the first one where several are equal).
    confusion: `confusion[label][prediction]` counts examples.
    predictions: int64 [n]. logits: float32 [n, classes].
    """

    accuracy: float
    examples: int
    confusion: list[list[int]]
    predictions: NDArray[np.int64]
    logits: NDArray[np.float32]

    @property
    def macro_f1(self) -> float:
        """The mean of the classes' F1 = 2 TP / (2 TP + FP + FN), over the classes that some example has or was taken
        for."""
        counts = np.array(self.confusion)
        total = counts.sum(axis=0) + counts.sum(axis=1)
        there = total > 0
        return float((2 * counts.diagonal()[there] / total[there]).mean())


def evaluate(
    session: Session, inputs: Examples, labels: NDArray[np.int64], progress: Progress | None = None
) -> Evaluation:
    """Run every example through the artifact and compare with its label.

    `inputs`: images, uint8 [n, height, width, channels], or n sequences of token ids; `labels` integers [n], each in
    [0, classes). `progress(done, total)` is called after each batch.

    Raises:
        InputError: no examples, not one label for each, or a label that the artifact has no class for; examples that it
            does not take (from the session).
    """
    classes = len(session.labels)
    if len(inputs) == 0 or labels.shape != (len(inputs),):
        raise InputError(
            f"{len(inputs)} examples and labels of shape {labels.shape}; give one label an example, at least one"
        )
    if labels.min() < 0 or labels.max() >= classes:
        raise InputError(f"labels run from {labels.min()} to {labels.max()}; the model knows 0 to {classes - 1}")
    logits = np.empty((len(inputs), classes), np.float32)
    for start in range(0, len(inputs), BATCH):
        batch = inputs[start : start + BATCH]
        logits[start : start + len(batch)] = session.run(batch)
        if progress is not None:
            progress(start + len(batch), len(inputs))
    predictions = logits.argmax(axis=1).astype(np.int64)
    confusion = np.zeros((classes, classes), np.int64)
    np.add.at(confusion, (labels, predictions), 1)
    return Evaluation(float((predictions == labels).mean()), len(inputs), confusion.tolist(), predictions, logits)


def verify(session: Session, program: Program, inputs: Examples, progress: Progress | None = None) -> int:
    """Hold the runtime to the numpy reference, bit for bit, on `inputs` and on seeded random ones, extremes included;
    and to the golden examples of the file.

    `program` is what `lilliput.artifact.read` gives for the session's file; `inputs`, which may be none, as in
    `evaluate`. `progress(done, total)` is called after each batch of the reference.

    Returns:
        The number of examples, given and random, that were compared.

    Raises:
        FailureError: an output differs in any bit; names the first example.
    """
    session.verify_golden()
    everything: Examples
    if isinstance(session, ImageSession):
        everything = np.concatenate([np.reshape(inputs, (-1, *session.image)), _random_images(session)])
        rows: Examples = everything.reshape(len(everything), -1, session.image.channels)
    else:
        everything = rows = [*inputs, *random_sequences(program)]
    found = session.run(everything)
    expected = np.empty_like(found)
    for start in range(0, len(rows), REFERENCE_BATCH):
        expected[start : start + REFERENCE_BATCH] = reference.run(program, rows[start : start + REFERENCE_BATCH])
        if progress is not None:
            progress(min(start + REFERENCE_BATCH, len(rows)), len(rows))
    different = np.flatnonzero(differs(found, expected).any(axis=1))
    if len(different):
        first = int(different[0])
        which = f"example {first}" if first < len(inputs) else f"random example {first - len(inputs)}"
        raise FailureError(
            f"{session.name}: the runtime and the reference differ on {len(different)} of {len(found)} examples, first "
            f"on {which} (from 0)"
        )
    return len(everything)


def _random_images(session: ImageSession) -> NDArray[np.uint8]:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (RANDOM_IMAGES, *session.image), dtype=np.uint8)
    noise[1::4] = (noise[1::4] >= 128) * np.uint8(255)  # only the extremes, in every fourth one
    noise[2::4] //= 128  # almost nothing
    noise[:1], noise[1:2] = 0, 255
    return noise


def random_sequences(program: Program) -> list[NDArray[np.uint32]]:
    """Seeded token ids: sequences of the least and the greatest lengths, of those around the kernels' 16 lanes, and of
    some between, of any ids; and the shortest and the longest of nothing but the first id or the last."""
    rng = np.random.default_rng(0)
    known, longest = num_token_ids(program), program.max_tokens
    extremes = sorted(length for length in {1, 2, 15, 16, 17, longest - 1, longest} if 1 <= length <= longest)
    lengths = [*extremes, *rng.integers(1, longest + 1, RANDOM_LENGTHS).tolist()]
    random = [rng.integers(0, known, length).astype(np.uint32) for length in lengths]
    uniform = [np.full(length, token, np.uint32) for length in (1, longest) for token in (0, known - 1)]
    return [*random, *uniform]


@dataclass(frozen=True)
class Retrieval:
    """How well queries find their documents among all of them.

    mrr: mean of 1 / rank of the right document (mean reciprocal rank). recall_at_1, recall_at_10: share of queries
    whose document is among the first so many. queries: how many there were.
    """

    mrr: float
    recall_at_1: float
    recall_at_10: float
    queries: int


def retrieval(queries: NDArray[np.float32], documents: NDArray[np.float32]) -> Retrieval:
    """Rank all documents for each query by the cosine of their vectors.

    Args:
        queries: float32 [n, D], of any lengths; documents: float32 [n, D]. Query i looks for document i.

    Ties count against the query: every other document that is as near as the right one (within `TIE`) stands before
    it, so a model that gives the same vector to all texts gets rank n, not 1.

    Raises:
        InputError: not two matrices of one shape, with at least one row; or a vector that is not finite.
    """
    for name, vectors in (("queries", queries), ("documents", documents)):
        if vectors.ndim != 2 or vectors.shape != documents.shape or len(vectors) == 0:
            raise InputError(f"{name} have shape {vectors.shape}, documents {documents.shape}; must be [n, D], n >= 1")
        if not np.isfinite(vectors).all():
            raise InputError(f"{name}: vector {int(np.argwhere(~np.isfinite(vectors))[0, 0])} is not finite")
    queries, documents = _unit(queries), _unit(documents)
    ranks = np.empty(len(queries), np.int64)
    for start in range(0, len(queries), BATCH):
        products = queries[start : start + BATCH] @ documents.T
        right = products[np.arange(len(products)), np.arange(start, start + len(products))]
        ranks[start : start + BATCH] = (products >= right[:, None] - TIE).sum(axis=1)  # itself and those before it
    return Retrieval(
        mrr=float((1.0 / ranks).mean()),
        recall_at_1=float((ranks <= 1).mean()),
        recall_at_10=float((ranks <= 10).mean()),
        queries=len(queries),
    )


def cosines(vectors: NDArray[np.float32], reference: NDArray[np.float32]) -> NDArray[np.float32]:
    """The cosine of each vector with that of the reference in its row: [n, D] and [n, D] -> float32 [n]."""
    products: NDArray[np.float32] = (_unit(vectors) * _unit(reference)).sum(axis=1)
    return products


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Each row with length 1; rows of zeros stay."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    rows: NDArray[np.float32] = vectors / np.maximum(lengths, np.float32(1e-12))
    return rows


def machine_info() -> dict[str, Any]:
    """What a measurement depends on: cpu, cores (that this process may use), system, python; torch if it is loaded."""
    info: dict[str, Any] = {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
    }
    torch = sys.modules.get("torch")
    if torch is not None:
        info["torch"] = str(torch.__version__)
    return info


def _cpu_model() -> str:
    """The processor's name as Linux gives it; elsewhere, and where Linux gives none, the architecture's."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("model name", "Model", "Hardware") and value.strip():
                return value.strip()
    return platform.processor() or platform.machine()


def commit() -> str | None:
    """The commit of the source tree, with `-dirty` where the package was changed since; None where it is not one."""
    package = Path(__file__).parent
    root = package.parent.parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        # Installed into somebody else's repository the answer would be that one's.
        if not (Path(git("rev-parse", "--show-toplevel")).samefile(root) and git("ls-files", str(package))):
            return None
        changed = git("status", "--porcelain", "--untracked-files=no", str(package))
        return git("rev-parse", "--short", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None
