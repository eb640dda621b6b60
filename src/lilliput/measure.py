"""Measuring an artifact: its accuracy through the runtime, and what it was measured with: machine and source tree."""

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
from lilliput.program.program import Program
from lilliput.runtime.images import ImageSession
from lilliput.runtime.session import differs

BATCH = 256  # examples between two reports of progress
TIE = 1e-6  # cosines closer than this are equal: float32 products of the same vectors may differ by as much


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


def evaluate(
    session: ImageSession,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Run every image through the artifact and compare with its label.

    `images` uint8 [n, height, width, channels]; `labels` integers [n], each in [0, classes). `progress(done, total)` is
    called after each batch.

    Raises:
        InputError: no examples, as many labels as images are missing, or a label that the artifact has no class for;
            images of another shape (from the session).
    """
    classes = len(session.labels)
    if len(images) == 0 or labels.shape != (len(images),):
        raise InputError(
            f"{len(images)} images and labels of shape {labels.shape}; give one label an image, at least one"
        )
    if labels.min() < 0 or labels.max() >= classes:
        raise InputError(f"labels run from {labels.min()} to {labels.max()}; the model knows 0 to {classes - 1}")
    logits = np.empty((len(images), classes), np.float32)
    for start in range(0, len(images), BATCH):
        batch = images[start : start + BATCH]
        logits[start : start + len(batch)] = session.run(batch)
        if progress is not None:
            progress(start + len(batch), len(images))
    predictions = logits.argmax(axis=1).astype(np.int64)
    confusion = np.zeros((classes, classes), np.int64)
    np.add.at(confusion, (labels, predictions), 1)
    return Evaluation(float((predictions == labels).mean()), len(images), confusion.tolist(), predictions, logits)


def verify(session: ImageSession, program: Program, images: NDArray[np.uint8], random_images: int = 1000) -> int:
    """Hold the runtime to the numpy reference, bit for bit, on `images` and on seeded random ones, extremes included.

    `program` is what `lilliput.artifact.read` gives for the session's file; images as in `evaluate`.

    Returns:
        The number of images that were compared.

    Raises:
        FailureError: an output differs in any bit; names the first image.
    """
    height, width, channels = session.image
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (random_images, height, width, channels), dtype=np.uint8)
    noise[1::4] = (noise[1::4] >= 128) * np.uint8(255)  # only the extremes, in every fourth one
    noise[2::4] //= 128  # almost nothing
    noise[:1], noise[1:2] = 0, 255
    everything = np.concatenate([images, noise])
    expected = reference.run(program, everything.reshape(len(everything), height * width, channels))
    different = np.flatnonzero(differs(session.run(everything), expected).any(axis=1))
    if len(different):
        raise FailureError(f"the runtime and the reference differ on {len(different)} images, first on {different[0]}")
    return len(everything)


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
