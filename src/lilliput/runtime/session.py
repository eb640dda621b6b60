"""`Session`: a `model.lil`, mapped, verified by the C runtime, and run from numpy arrays."""

import builtins
import mmap
import os
import struct
import threading
import weakref
from collections.abc import Mapping
from types import MappingProxyType, TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lilliput.errors import ArtifactError, FailureError, InputError
from lilliput.program.mathfn import softmax
from lilliput.program.program import Buffer
from lilliput.program.validation import check_metadata, parse_metadata
from lilliput.runtime._lil import ALIGNMENT, Model, Threads

CHUNK = 16  # images a thread and call into C, so that Ctrl-C is heard soon
FIRST_SECTION = 192  # docs/format.md: where sections begin,
CONSTANTS_OFFSET = 128  # and where it says where that one does
MAX_RECORD_BYTES = 65535 * (24 + 24 + 40) + 4096  # as many of each as a file may have
ISA_VARIABLE = "LILLIPUT_ISA"


class ImageShape(NamedTuple):
    """What one image is: pixels, rows and columns of them, and 1 (grey) or 3 (colour) channels, for instance."""

    height: int
    width: int
    channels: int


class Session:
    """An opened model.

    Threads may share a session: calls take turns, because they share one arena. To run in parallel give each thread its
    own: `share` makes another on the same verified file. The weights are read where the file is mapped: one that is
    changed in place is noticed by its time and size, and refused (replacing it by renaming, which is how Lilliput
    writes files, is fine). Whoever truncates it in the very moment of a run stops the process.

    Attributes:
        file_bytes: size of the file.
        arena_bytes: work memory of one run, in bytes; the session holds `num_threads` times that.
        num_threads: how many threads share a call of `run`.
        isa: the instruction set whose kernels run, one of `lilliput.runtime.isas()`.

    Args:
        path: of a `model.lil`. All of it is verified.
        isa: take the kernels of this instruction set. None: of the one that the environment variable LILLIPUT_ISA
            names, or of the best that this machine has. The outputs are the same bits with each.
        num_threads: threads for a call of `run`. They share the images of a batch, or the work of each image where
            there are fewer images than threads. The outputs do not depend on it.

    Raises:
        ArtifactError: the file cannot be read, or is truncated, altered, foreign, of another version or invalid.
        FailureError: there is no memory for the arena, or no more threads can be started.
        InputError: an instruction set that is not there, or `num_threads` below 1.
    """

    def __init__(self, path: str | os.PathLike[str], *, isa: str | None = None, num_threads: int = 1) -> None:
        self._name = os.fspath(path)
        mapping, descriptor = _map(self._name)
        self._watch(descriptor)
        self.file_bytes = len(mapping)
        try:
            model = Model(mapping)  # holds on to the mapping
            self._metadata = _metadata(model)
        except ArtifactError as error:
            raise ArtifactError(f"{self._name}: {error}") from None
        _use_isa(model, isa)
        self.isa = model.isa
        self._serve(model, num_threads)

    def _watch(self, descriptor: int) -> None:
        """Take over the descriptor of the mapped file, to see whether somebody changes it."""
        self._descriptor = descriptor
        self._close_file = weakref.finalize(self, os.close, descriptor)
        self._stamp = _stamp(descriptor)

    def _serve(self, model: Model, num_threads: int) -> None:
        """Take what one run needs: the memory and the threads."""
        if type(num_threads) is not int or num_threads < 1:
            raise InputError(f"num_threads: {num_threads!r}; must be an integer of at least 1")
        self._lock = threading.Lock()
        self._model: Model | None = model
        self.num_threads = num_threads
        self.arena_bytes = model.arena_bytes
        self._arena = _aligned(self._name, num_threads * self.arena_bytes)
        self._threads = Threads(num_threads) if num_threads > 1 else None
        self._num_outputs = model.output_cols
        self._image = ImageShape(**{side: self._metadata["image"][side] for side in ImageShape._fields})

    def share(self, num_threads: int | None = None) -> Self:
        """Another session on the same file, which is not verified again: for a thread that runs beside this one.

        It has its own work memory and threads (None: as many), and is closed on its own.

        Raises:
            FailureError: there is no memory for the arena, or no more threads can be started.
            InputError: this session is closed, or `num_threads` below 1.
        """
        other = object.__new__(type(self))
        with self._lock:
            model = self._opened()
            try:
                other._watch(os.dup(self._descriptor))
            except OSError as error:
                raise FailureError(f"{self._name}: cannot be shared ({error.strerror})") from None
            other._stamp = self._stamp
        other._name, other._metadata = self._name, self._metadata
        other.file_bytes, other.isa = self.file_bytes, self.isa
        other._serve(model, self.num_threads if num_threads is None else num_threads)
        return other

    @property
    def metadata(self) -> Mapping[str, Any]:
        """The file's metadata, as in docs/format.md, without the names of tensors and buffers (`artifact.read`)."""
        return MappingProxyType(self._metadata)

    @property
    def labels(self) -> tuple[str, ...]:
        """The name of each class, in the order of the outputs."""
        return tuple(self._metadata["labels"])

    @property
    def image(self) -> ImageShape:
        """The shape of an image that the model takes."""
        return self._image

    def run(self, images: ArrayLike) -> NDArray[np.float32]:
        """Run one image or a batch.

        Args:
            images: uint8 pixels 0..255, [height, width, channels] or [n, height, width, channels]; of a model with one
                channel also [height, width] or [n, height, width]. Not contiguous ones are copied.

        Returns:
            The outputs (logits): float32 [classes] for one image, [n, classes] for a batch, which may be empty.

        Raises:
            InputError: another dtype or shape, or the session is closed.
        """
        batch, is_batch = self._batch(images)
        outputs = np.empty((len(batch), self._num_outputs), np.float32)
        with self._lock:
            model = self._opened()
            chunk = CHUNK * self.num_threads
            for start in range(0, len(batch), chunk):
                rows = slice(start, start + chunk)
                model.run(self._arena, batch[rows], outputs[rows], self._threads)
            self._opened()  # nobody has changed the weights meanwhile
            del model  # close() must find no one else holding on to the file
        return outputs if is_batch else outputs[0]

    def profile(self, image: ArrayLike, repeats: int = 1) -> NDArray[np.int64]:
        """Time each op of the program, `repeats` times: nanoseconds, int64 [repeats, ops].

        Args:
            image: one image, as `run` takes it.
            repeats: how many runs, at least 1.

        Raises:
            InputError: another dtype or shape, more than one image, no repeats, or the session is closed.
        """
        batch, _ = self._batch(image)
        if len(batch) != 1 or repeats < 1:
            raise InputError(
                f"{self._name}: a profile is of 1 image and at least 1 repeat, not {len(batch)}, {repeats}"
            )
        images = np.repeat(batch, repeats, axis=0)
        outputs = np.empty((repeats, self._num_outputs), np.float32)
        with self._lock:
            model = self._opened()
            times = np.empty((repeats, model.num_ops), np.int64)
            model.profile(self._arena, images, outputs, times, self._threads)
            self._opened()
        return times

    def predict(self, images: ArrayLike) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
        """Classify one image or a batch, as `run` takes it; one image is a batch of one here.

        Returns:
            The likeliest class (its name: `labels`), int [n], and the probabilities, float32 [n, classes].
        """
        outputs = np.atleast_2d(self.run(images))
        return outputs.argmax(axis=1), softmax(outputs)

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

    def close(self) -> None:
        """Let the file and the arena go, after a run in progress has ended. Closing again does nothing."""
        with self._lock:
            self._model = None  # the last one on the file lets its mapping go
            self._arena = np.empty(0, np.uint8)
            self._threads = None
            self._close_file()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _opened(self) -> Model:
        """The model, if the file is still what was verified; the caller holds the lock."""
        if self._model is None:
            raise InputError(f"{self._name}: the session is closed; open the file again")
        if _stamp(self._descriptor) != self._stamp:
            raise ArtifactError(f"{self._name}: changed on disk since it was opened; open it again")
        return self._model

    def _golden(self) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Inputs [n, height, width, channels] and outputs [n, classes] of the golden examples."""
        with self._lock:
            model = self._opened()
            inputs = np.frombuffer(model.golden_inputs, np.uint8).reshape(model.num_golden, *self.image)
            outputs = np.frombuffer(model.golden_outputs, "<f4").reshape(model.num_golden, self._num_outputs)
            return inputs, outputs.astype(np.float32, copy=False)

    def _batch(self, images: ArrayLike) -> tuple[NDArray[np.uint8], bool]:
        """The images as contiguous rows [n, pixels], and whether they were a batch."""
        height, width, channels = self.image
        try:
            array = np.asarray(images)
        except ValueError as error:
            raise InputError(f"{self._name}: the images are no array ({error}); {self._allowed()}") from None
        if array.dtype != np.uint8:
            raise InputError(f"{self._name}: the images are {array.dtype}; {self._allowed()}")
        shape = array.shape
        if channels == 1 and shape[-2:] == (height, width) and array.ndim in (2, 3):
            shape = (*shape, 1)
        if shape[-3:] != (height, width, channels) or len(shape) not in (3, 4):
            raise InputError(f"{self._name}: the images have shape {array.shape}; {self._allowed()}")
        count = shape[0] if len(shape) == 4 else 1
        return np.ascontiguousarray(array).reshape(count, height * width * channels), len(shape) == 4

    def _allowed(self) -> str:
        height, width, channels = self.image
        return f"must be uint8 pixels 0..255, {height} x {width} x {channels} or a batch of these"


def open(path: str | os.PathLike[str], *, isa: str | None = None, num_threads: int = 1) -> Session:
    """Open a `model.lil`. See `Session`."""
    return Session(path, isa=isa, num_threads=num_threads)


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


def _keep_records(mapping: mmap.mmap) -> None:
    """Make the pages before the weights ours alone, by writing to them what they hold: whatever others do to the file,
    the program that is verified is the one that runs. (The weights' pages stay shared with other processes.)"""
    if len(mapping) >= FIRST_SECTION:
        (constants,) = struct.unpack_from("<Q", mapping, CONSTANTS_OFFSET)
        for page in range(0, min(constants, len(mapping), MAX_RECORD_BYTES), mmap.PAGESIZE):
            mapping[page] = mapping[page]


def differs(first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Where two outputs have other bits; one NaN is as good as another (docs/format.md)."""
    same: NDArray[np.bool_] = first.view(np.uint32) == second.view(np.uint32)
    return ~(same | (np.isnan(first) & np.isnan(second)))


def _stamp(descriptor: int) -> tuple[int, int]:
    """What changes when somebody writes to a file (and not when another takes its name)."""
    status = os.fstat(descriptor)
    return status.st_size, status.st_mtime_ns


def _map(name: str) -> tuple[mmap.mmap, int]:
    """The file's mapping and a descriptor of it, which is the caller's to close."""
    if not os.path.isfile(name):  # before opening: a pipe would make us wait
        what = "not a file" if os.path.exists(name) else "there is no such file"
        raise ArtifactError(f"{name}: {what}; give the path of a .lil file")
    try:
        with builtins.open(name, "rb", buffering=0) as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise ArtifactError(f"{name}: truncated: the file is empty")
            mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            _keep_records(mapping)
            return mapping, os.dup(file.fileno())
    except OSError as error:
        raise ArtifactError(f"{name}: cannot be read ({error.strerror}); give the path of a .lil file") from None


def _metadata(model: Model) -> dict[str, Any]:
    """The checked metadata of a model."""
    metadata = parse_metadata(model.metadata)
    for name in ("tensors", "buffers"):
        metadata.pop(name, None)
    source = Buffer("input", "u8", model.input_rows, model.input_cols, offset=0)
    check_metadata(metadata, source, Buffer("output", "f32", 1, model.output_cols, offset=0))
    return metadata


def _aligned(name: str, size: int) -> NDArray[np.uint8]:
    """`size` bytes of work memory at a multiple of ALIGNMENT."""
    try:
        memory = np.empty(size + ALIGNMENT, np.uint8)
    except (MemoryError, ValueError):  # numpy's word for more than can be addressed
        raise FailureError(f"{name}: needs {size} bytes of work memory, which this machine does not have") from None
    start = -memory.__array_interface__["data"][0] % ALIGNMENT
    return memory[start : start + size]
