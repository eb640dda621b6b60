"""`Session`: a `model.lil`, mapped and verified by the C runtime. What it runs on is in `images` and `texts`."""

import os
import threading
from collections.abc import Mapping
from types import MappingProxyType, TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from lilliput.errors import ArtifactError, FailureError, InputError
from lilliput.program.program import Buffer
from lilliput.program.validation import check_metadata, parse_metadata
from lilliput.runtime._lil import ALIGNMENT, Model, Threads
from lilliput.runtime.mapped import MappedFile

ISA_VARIABLE = "LILLIPUT_ISA"


class Session:
    """An opened model.

    Threads may share a session: calls take turns, because they share one arena. To run in parallel give each thread its
    own: `share` makes another on the same verified file. The weights are read where the file is mapped: one that is
    changed in place is noticed by its time and size, and refused (replacing it by renaming, which is how Lilliput
    writes files, is fine). Whoever truncates it in the very moment of a run stops the process.

    Attributes:
        file_bytes: size of the file.
        arena_bytes: work memory of one run, in bytes (of a text model: of the longest sequence). The session holds
            `num_threads` times that (of a text model: as much as its calls needed).
        num_threads: how many threads share a call of `run`.
        num_outputs: outputs of one example: classes, or the dimensions of a vector.
        isa: the instruction set whose kernels run, one of `lilliput.runtime.isas()`.

    `lilliput.open` makes one: an `ImageSession` or a `TextSession`, as the file says.
    """

    def __init__(self, file: MappedFile, model: Model, isa: str | None, num_threads: int) -> None:
        self._file, self._name = file, file.name
        self.file_bytes = len(file.mapping)
        try:
            self._metadata = _metadata(model)
        except ArtifactError as error:
            raise ArtifactError(f"{self._name}: {error}") from None
        _use_isa(model, isa)
        self.isa = model.isa
        self._prepare(model)
        self._serve(model, num_threads)

    def _prepare(self, model: Model) -> None:
        """What sessions that share a file share, besides the model."""

    def _serve(self, model: Model, num_threads: int) -> None:
        """Take what one run needs: the memory and the threads."""
        if type(num_threads) is not int or num_threads < 1:
            raise InputError(f"num_threads: {num_threads!r}; must be an integer of at least 1")
        self._lock = threading.Lock()
        self._model: Model | None = model
        self.num_threads = num_threads
        self.arena_bytes = model.arena_bytes
        self._arena = self._work_memory(num_threads * self._first_arena_bytes(model))
        self._threads = Threads(num_threads) if num_threads > 1 else None
        self.num_outputs = model.output_cols

    def _first_arena_bytes(self, model: Model) -> int:
        """Work memory of one thread to begin with."""
        return model.arena_bytes

    def share(self, num_threads: int | None = None) -> Self:
        """Another session on the same file, which is not verified again: for a thread that runs beside this one.

        It has its own work memory and threads (None: as many), and is closed on its own.

        Raises:
            FailureError: there is no memory for the arena, or no more threads can be started.
            InputError: this session is closed, or `num_threads` below 1.
        """
        with self._lock:
            model = self._opened()
            try:
                file = self._file.share()
            except OSError as error:
                raise FailureError(f"{self._name}: cannot be shared ({error.strerror})") from None
        other = object.__new__(type(self))
        vars(other).update({name: value for name, value in vars(self).items() if name not in _OWN})
        other._file = file
        other._serve(model, self.num_threads if num_threads is None else num_threads)
        return other

    @property
    def name(self) -> str:
        """The path that it was opened by."""
        return self._name

    @property
    def metadata(self) -> Mapping[str, Any]:
        """The file's metadata, as in docs/format.md, without the names of tensors and buffers (`artifact.read`)."""
        return MappingProxyType(self._metadata)

    @property
    def labels(self) -> tuple[str, ...]:
        """The name of each class, in the order of the outputs."""
        return tuple(self._metadata["labels"])

    def run(self, inputs: Any) -> NDArray[np.float32]:
        """The outputs of one example or a batch: see `ImageSession` and `TextSession`."""
        raise NotImplementedError

    def predict(self, inputs: Any) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
        """Classes and their probabilities: see `ImageSession` and `TextSession`."""
        raise NotImplementedError

    def embed(self, texts: Any) -> NDArray[np.float32]:
        """Vectors of texts, of a model that has such: see `TextSession`."""
        raise InputError(f"{self._name}: its task is {self._metadata['task']}; embed needs a model for text-embedding")

    def verify_golden(self) -> int:
        """Run the golden examples of the file and compare all bits; gives how many there are.

        Raises:
            FailureError: an output differs, so this build of the runtime or this machine is broken.
            InputError: the session is closed.
        """
        inputs, wanted = self._golden()
        outputs = self.run(inputs)
        wrong = np.argwhere(differs(outputs, wanted))
        if len(wrong):
            example, output = (int(index) for index in wrong[0])
            is_value, said = outputs[example, output], wanted[example, output]
            raise FailureError(
                f"{self._name}: golden example {example}: output {output} is {is_value}; the file says {said}: "
                "this build of the runtime or this machine computes wrongly"
            )
        return len(inputs)

    def _golden(self) -> tuple[Any, NDArray[np.float32]]:
        """The golden examples: inputs as `run` takes them, outputs [n, classes]."""
        raise NotImplementedError

    def _golden_outputs(self, model: Model) -> NDArray[np.float32]:
        outputs = np.frombuffer(model.golden_outputs, "<f4").reshape(model.num_golden, self.num_outputs)
        return outputs.astype(np.float32, copy=False)

    def close(self) -> None:
        """Let the file and the arena go, after a run in progress has ended. Closing again does nothing."""
        with self._lock:
            self._model = None  # the last one on the file lets its mapping go
            self._arena = np.empty(0, np.uint8)
            self._threads = None
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _work_memory(self, size: int) -> NDArray[np.uint8]:
        """`size` bytes at a multiple of ALIGNMENT."""
        try:
            memory = np.empty(size + ALIGNMENT, np.uint8)
        except (MemoryError, ValueError):  # numpy's word for more than can be addressed
            what = f"needs {size} bytes of work memory, which this machine does not have"
            raise FailureError(f"{self._name}: {what}") from None
        start = -memory.__array_interface__["data"][0] % ALIGNMENT
        return memory[start : start + size]

    def _opened(self) -> Model:
        """The model, if the file is still what was verified; the caller holds the lock."""
        if self._model is None:
            raise InputError(f"{self._name}: the session is closed; open the file again")
        self._file.check()
        return self._model


_OWN = ("_lock", "_model", "_arena", "_threads", "_file")  # what no two sessions share


def _use_isa(model: Model, isa: str | None) -> None:
    """Take the kernels of `isa`, or of the one that the environment names; else leave the best."""
    source = "isa"
    if isa is None:
        source, isa = ISA_VARIABLE, os.environ.get(ISA_VARIABLE) or None
    if isa is not None:
        try:
            model.use_isa(isa)
        except InputError as error:
            raise InputError(f"{source}: {error}") from None


def differs(first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Where two outputs have other bits; one NaN is as good as another (docs/format.md)."""
    same: NDArray[np.bool_] = first.view(np.uint32) == second.view(np.uint32)
    return ~(same | (np.isnan(first) & np.isnan(second)))


def _metadata(model: Model) -> dict[str, Any]:
    """The checked metadata of a model."""
    metadata = parse_metadata(model.metadata)
    for name in ("tensors", "buffers"):
        metadata.pop(name, None)
    dtype = "u32" if model.max_tokens else "u8"
    source = Buffer("input", dtype, model.input_rows, model.input_cols, offset=0)
    check_metadata(metadata, source, Buffer("output", "f32", 1, model.output_cols, offset=0))
    return metadata
