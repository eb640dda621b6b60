"""What is measured is counted right, in batches; runtime and reference are compared; the impossible is refused."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from lilliput import artifact, measure
from lilliput.errors import FailureError, InputError
from lilliput.program.formats import round_bf16
from lilliput.program.program import Program
from lilliput.runtime.images import ImageSession
from lilliput.runtime.opening import open_text_model
from lilliput.runtime.texts import TextSession


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
        ([0, 1], [0], "one label an example"),
        ([0, 1], [0, 3], "0 to 2"),
        ([0, 1], [-1, 0], "-1 to 0"),
    ],
)
def test_impossible_sets_are_refused(guesses: list[int], labels: list[int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        evaluate(Oracle(), guesses, labels)


def test_macro_f1_by_hand() -> None:
    # Classes by examples (guess, label): a: TP 1, FP 1, FN 0; b: TP 1, FP 1, FN 1; c: TP 1, FP 0, FN 1.
    found = evaluate(Oracle(), [0, 0, 1, 2, 1], [0, 1, 1, 2, 2]).macro_f1
    assert found == pytest.approx((2 / 3 + 1 / 2 + 2 / 3) / 3)
    # A class that nobody has and nobody is taken for does not count; one that somebody is taken for does.
    assert evaluate(Oracle(), [0, 1], [0, 1]).macro_f1 == 1.0
    assert evaluate(Oracle(), [0, 2], [0, 0]).macro_f1 == pytest.approx((2 / 3 + 0) / 2)


# --- runtime and reference -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def classifier(text_models: ModuleType) -> Program:
    program: Program = text_models.text_program("text-classification")
    return program


@pytest.fixture(scope="module")
def text_session(classifier: Program, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TextSession]:
    path = tmp_path_factory.mktemp("measure") / "classifier.lil"
    artifact.write(classifier, path)
    with open_text_model(path) as session:
        yield session


def shifted(program: Program, name: str, by: float) -> Program:
    """The program with other values in one tensor of bfloat16."""
    return replace(
        program,
        tensors=tuple(
            replace(tensor, values=round_bf16(tensor.values + np.float32(by))) if tensor.name == name else tensor
            for tensor in program.tensors
        ),
    )


def test_texts_are_evaluated_as_images_are(text_session: TextSession) -> None:
    sequences = text_session.tokenize(["a model", "the tiny text!", "small", "."])
    logits = text_session.run(sequences)
    labels = logits.argmax(axis=1).astype(np.int64)
    labels[1] = (labels[1] + 1) % 3
    found = measure.evaluate(text_session, sequences, labels)
    assert (found.accuracy, found.examples) == (3 / 4, 4)
    assert found.logits.tobytes() == logits.tobytes()


def test_random_sequences_have_every_extreme_length(classifier: Program) -> None:
    sequences = measure.random_sequences(classifier)
    lengths = [len(ids) for ids in sequences]
    assert {1, 2, 15, 16, 17, 23, 24} <= set(lengths) <= set(range(1, 25))
    every = np.concatenate(sequences)
    assert (every.min(), every.max()) == (0, 13)  # the ids that it knows
    assert all(any(len(ids) == 24 and set(ids) == {token} for ids in sequences) for token in (0, 13))
    again = measure.random_sequences(classifier)
    assert [ids.tolist() for ids in again] == [ids.tolist() for ids in sequences]
    one = measure.random_sequences(replace(classifier, max_tokens=1))
    assert {len(ids) for ids in one} == {1}


def test_the_runtime_is_compared_on_texts(text_session: TextSession, classifier: Program) -> None:
    sequences, seen = text_session.tokenize(["a model", "", "the tiny text!"]), list[tuple[int, int]]()
    total = 3 + len(measure.random_sequences(classifier))
    assert measure.verify(text_session, classifier, sequences, lambda *step: seen.append(step)) == total
    assert seen[-1] == (total, total)
    assert measure.verify(text_session, classifier, []) == total - 3
    other = shifted(classifier, "head.bias", 0.25)
    message = rf"differ on {total} of {total} examples, first on example 0 \(from 0\)$"
    with pytest.raises(FailureError, match=message):
        measure.verify(text_session, other, sequences)
    with pytest.raises(FailureError, match=r"first on random example 0 "):
        measure.verify(text_session, other, [])


def test_a_difference_in_one_position_is_found(text_session: TextSession, classifier: Program) -> None:
    """Only sequences as long as the model takes them see its last position."""
    (table,) = (tensor for tensor in classifier.tensors if tensor.name == "positions")
    values = table.values.copy()
    values[-1] = -values[-1]
    tensors = tuple(replace(tensor, values=values) if tensor is table else tensor for tensor in classifier.tensors)
    with pytest.raises(FailureError, match=r"differ on \d+ of \d+ examples, first on random example"):
        measure.verify(text_session, replace(classifier, tensors=tensors), text_session.tokenize(["a model"]))


def test_a_golden_example_that_is_not_the_files(classifier: Program, tmp_path: Path) -> None:
    artifact.write(replace(classifier, golden_outputs=classifier.golden_outputs + np.float32(1)), tmp_path / "m.lil")
    with (
        open_text_model(tmp_path / "m.lil") as session,
        pytest.raises(FailureError, match="golden example 0: output 0 is"),
    ):
        measure.verify(session, classifier, [])


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
