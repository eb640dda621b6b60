"""Accuracy and confusion are counted right, in batches, and what cannot be counted is refused."""

import json
import subprocess
import sys
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from lilliput import measure
from lilliput.errors import InputError
from lilliput.runtime.images import ImageSession


class Oracle:
    """Stands in for a session: the first pixel of an image says which class its logits favour."""

    labels = ("a", "b", "c")

    def __init__(self) -> None:
        self.batches: list[int] = []

    def run(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        self.batches.append(len(images))
        return np.eye(3, dtype=np.float32)[images[:, 0, 0, 0]]


def images_of(guesses: list[int]) -> NDArray[np.uint8]:
    return np.array(guesses, np.uint8).reshape(-1, 1, 1, 1)


def evaluate(oracle: Any, guesses: list[int], labels: list[int], **more: Any) -> measure.Evaluation:
    return measure.evaluate(cast(ImageSession, oracle), images_of(guesses), np.array(labels, np.int64), **more)


def test_counts() -> None:
    result = evaluate(Oracle(), [0, 0, 1, 2, 1], [0, 1, 1, 2, 2])
    assert result.accuracy == 3 / 5
    assert result.examples == 5
    assert result.confusion == [[1, 0, 0], [1, 1, 0], [0, 1, 1]]
    assert result.predictions.tolist() == [0, 0, 1, 2, 1]
    assert result.logits.tolist() == np.eye(3)[[0, 0, 1, 2, 1]].tolist()
    json.dumps(result.confusion)


def test_equal_logits_count_as_the_first_class() -> None:
    class Undecided(Oracle):
        def run(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
            return np.ones((len(images), 3), np.float32)

    assert evaluate(Undecided(), [0, 0], [0, 1]).predictions.tolist() == [0, 0]


def test_batches_cover_everything_and_report_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "BATCH", 2)
    oracle = Oracle()
    seen: list[tuple[int, int]] = []
    result = evaluate(oracle, [2, 1, 0, 1, 2], [2, 1, 0, 1, 2], progress=lambda done, total: seen.append((done, total)))
    assert result.accuracy == 1.0
    assert oracle.batches == [2, 2, 1]
    assert seen == [(2, 5), (4, 5), (5, 5)]


@pytest.mark.parametrize(
    ("guesses", "labels", "message"),
    [
        ([], [], "at least one"),
        ([0, 1], [0], "one label an image"),
        ([0, 1], [0, 3], "0 to 2"),
        ([0, 1], [-1, 0], "-1 to 0"),
    ],
)
def test_impossible_sets_are_refused(guesses: list[int], labels: list[int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        evaluate(Oracle(), guesses, labels)


def ranks_by_loops(queries: NDArray[np.float32], documents: NDArray[np.float32]) -> list[int]:
    """The rank of each right document, equal ones before it."""
    ranks = []
    for index, query in enumerate(queries.astype(np.float64)):
        cosines = [
            float(query @ document) / max(float(np.linalg.norm(query) * np.linalg.norm(document)), 1e-12)
            for document in documents.astype(np.float64)
        ]
        ranks.append(1 + sum(each >= cosines[index] - 1e-6 for at, each in enumerate(cosines) if at != index))
    return ranks


@pytest.mark.parametrize("count", [1, 7, 61])
def test_retrieval_is_what_loops_give(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(measure, "BATCH", 5)
    rng = np.random.default_rng(count)
    queries = rng.normal(size=(count, 6)).astype(np.float32)
    documents = (queries + 0.7 * rng.normal(size=(count, 6))).astype(np.float32) * np.float32(3)
    documents[count // 2 :: 7] = documents[0]  # ties
    ranks = np.array(ranks_by_loops(queries, documents))
    found = measure.retrieval(queries, documents)
    assert found.mrr == pytest.approx((1 / ranks).mean())
    assert found.recall_at_1 == (ranks == 1).mean()
    assert found.recall_at_10 == (ranks <= 10).mean()
    assert found.queries == count


def test_a_model_that_knows_one_vector_finds_nothing() -> None:
    same = np.full((40, 384), 0.3, np.float32)
    found = measure.retrieval(same, same)
    assert (found.mrr, found.recall_at_1, found.recall_at_10) == (1 / 40, 0.0, 0.0)


def test_perfect_retrieval() -> None:
    vectors = np.eye(12, dtype=np.float32)
    assert measure.retrieval(vectors, 2 * vectors) == measure.Retrieval(1.0, 1.0, 1.0, 12)


@pytest.mark.parametrize(
    ("queries", "documents", "text"),
    [
        (np.ones((2, 3)), np.ones((3, 3)), "queries have shape"),
        (np.ones(3), np.ones(3), "must be"),
        (np.ones((0, 3)), np.ones((0, 3)), "n >= 1"),
        (np.ones((2, 3)), np.array([[1, 1, 1], [1, np.nan, 1]]), "documents: vector 1 is not finite"),
    ],
)
def test_what_cannot_be_ranked(queries: NDArray[Any], documents: NDArray[Any], text: str) -> None:
    with pytest.raises(InputError, match=text):
        measure.retrieval(queries.astype(np.float32), documents.astype(np.float32))


def test_cosines_of_rows() -> None:
    first = np.array([[3, 0], [0, 2], [1, 1], [0, 0]], np.float32)
    second = np.array([[1, 0], [0, -1], [1, 0], [1, 0]], np.float32)
    np.testing.assert_allclose(measure.cosines(first, second), [1, -1, 0.5**0.5, 0], rtol=1e-6)


def test_machine_info_names_the_machine_and_never_imports_torch() -> None:
    code = (
        "import json, sys; from lilliput.measure import machine_info; info = machine_info();"
        "sys.modules['torch'] = type(sys)('torch'); sys.modules['torch'].__version__ = '9.8.7';"
        "print(json.dumps([info, machine_info(), [n for n in sys.modules if n.startswith('torch.')]]))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    without, with_torch, modules = json.loads(out)
    assert set(without) == {"cpu", "cores", "system", "python"}
    assert all(without.values())
    assert without["python"] == ".".join(map(str, sys.version_info[:3]))
    assert with_torch == without | {"torch": "9.8.7"}
    assert modules == []
