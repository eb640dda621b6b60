import subprocess
import sys

import numpy as np
import pytest

from lilliput.config import DataSettings
from lilliput.data import load
from lilliput.errors import DataError


def test_digits_are_the_real_ones() -> None:
    from sklearn.datasets import load_digits

    dataset = load(DataSettings())
    assert dataset.name == "digits"
    assert dataset.classes == tuple("0123456789")
    assert dataset.image_shape == (8, 8, 1)
    assert [len(part) for part in (dataset.train, dataset.validation, dataset.test)] == [1293, 144, 360]
    images = np.concatenate([dataset.train.images, dataset.validation.images, dataset.test.images])
    labels = np.concatenate([dataset.train.labels, dataset.validation.labels, dataset.test.labels])
    bunch = load_digits()
    assert set(np.unique(images).tolist()) == {round(level * 255 / 16) for level in range(17)}

    def rows(pixels: np.ndarray, targets: np.ndarray) -> list[tuple[int, ...]]:
        return sorted(tuple(row) for row in np.column_stack([pixels.reshape(len(pixels), -1), targets]).tolist())

    assert rows(np.round(images / 255 * 16).astype(int), labels) == rows(bunch.images.astype(int), bunch.target)


def test_every_class_is_in_every_part_of_digits() -> None:
    dataset = load(DataSettings(split_seed=5))
    for part in (dataset.train, dataset.validation, dataset.test):
        assert set(part.labels.tolist()) == set(range(10))


def test_digits_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(DataError, match=r"pip install 'lilliput\[train\]'"):
        load(DataSettings())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (DataSettings(path="/somewhere"), "drop data.path"),
        (DataSettings(image_size=(4, 4)), "data.image_size is only for 'folder'"),
        (DataSettings(name="fashion-mnist", mode="RGB"), "data.mode is only for 'folder'"),
        (DataSettings(name="folder"), "needs data.path"),
    ],
)
def test_a_setting_that_does_not_apply_is_refused(settings: DataSettings, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(settings)


def test_importing_the_package_needs_numpy_alone() -> None:
    heavy = ["torch", "sklearn", "PIL", "pydantic", "rich"]
    script = f"import sys, lilliput.data; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
