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
