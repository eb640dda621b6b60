"""The pickles of CIFAR-10's python archive, read without running anything that they name.

A pickle is a program. The unpickler here resolves only the few names that arrays of bytes need, each to a function of
ours that builds such an array and nothing else; any other name is an error.
"""

import io
import pickle
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lilliput.data.dataset import Labels, Pixels
from lilliput.errors import DataError


def parse_batch_pickle(data: bytes, where: str) -> tuple[Pixels, Labels]:
    """A dictionary with `data` uint8 [n, 3072] and `labels`, a list of n integers; keys are text or bytes."""
    tree = _load(data, where)
    values, labels = tree.get("data"), tree.get("labels")
    if not isinstance(values, np.ndarray) or values.dtype != np.uint8:
        raise DataError(f"{where}: 'data' is no array of bytes; get the file again")
    if not isinstance(labels, list) or not all(type(label) is int and 0 <= label < 256 for label in labels):
        raise DataError(f"{where}: 'labels' is no list of small integers; get the file again")
    return values, np.array(labels, dtype=np.int64)


def parse_names_pickle(data: bytes, where: str) -> list[str]:
    """A dictionary with `label_names`, a list of text or bytes."""
    names = _load(data, where).get("label_names")
    if not isinstance(names, list) or not all(isinstance(name, str | bytes) for name in names):
        raise DataError(f"{where}: 'label_names' is no list of names; get the file again")
    return [_text(name) for name in names]


def _load(data: bytes, where: str) -> dict[str, Any]:
    try:
        # Python 2 wrote the official files: their strings arrive as bytes.
        tree = _ArrayUnpickler(io.BytesIO(data), encoding="bytes").load()
    except Exception as error:  # a damaged or hostile pickle can raise anything
        raise DataError(f"{where}: not a CIFAR-10 pickle ({error}); get the file again") from None
    if not isinstance(tree, dict):
        raise DataError(f"{where}: a pickle of {type(tree).__name__}, expected a dictionary")
    return {_text(key): value for key, value in tree.items() if isinstance(key, str | bytes)}


def _text(value: str | bytes) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED:
            return _ALLOWED[module, name]
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is not allowed")


def _dtype(code: str | bytes, *flags: Any) -> np.dtype[np.uint8]:
    if code not in ("u1", "|u1", b"u1", b"|u1"):
        raise pickle.UnpicklingError(f"an array of {code!r}, allowed: u1")
    return np.dtype(np.uint8)


def _reconstruct(kind: Any, shape: Any, code: Any) -> NDArray[np.uint8]:
    """The empty array that every pickled array starts as; its state (shape, type, bytes) follows in the pickle."""
    return np.empty(0, dtype=np.uint8)


def _from_buffer(buffer: bytes, dtype: Any, shape: tuple[int, ...], order: Any) -> NDArray[np.uint8]:
    """The short form of pickle protocol 5."""
    return np.frombuffer(buffer, dtype=np.uint8).reshape(shape, order="F" if order == "F" else "C")


def _encode(text: str, encoding: str) -> bytes:
    """How Python 3 writes bytes in pickle protocols up to 2."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes encoded as {encoding!r}, allowed: latin1")
    return text.encode("latin-1")


_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "dtype"): _dtype,
    ("numpy", "ndarray"): "ndarray",  # only ever an argument of _reconstruct, so text will do, and cannot be called
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy.core.numeric", "_frombuffer"): _from_buffer,
    ("numpy._core.numeric", "_frombuffer"): _from_buffer,
    ("_codecs", "encode"): _encode,
}
