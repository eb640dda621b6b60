"""A file that is mapped into memory and watched for changes, or unpacked into it."""

import builtins
import mmap
import os
import struct
import weakref
from typing import Self

from lilliput.artifact.packed import is_packed, unpack
from lilliput.errors import ArtifactError

FIRST_SECTION = 192  # docs/format.md: where sections begin at the earliest,
CONSTANTS_OFFSET = 128  # and where it says where the constants do
MAX_RECORD_BYTES = 65535 * (24 + 24 + 40) + 4096  # as many of each as a file may have


class MappedFile:
    """The whole of a file, privately mapped: `mapping`. Its pages are shared with other processes until written to.

    Args:
        name: of the file.

    Raises:
        ArtifactError: it is not there, not a file, empty, or cannot be read.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.mapping, descriptor = _map(name)
        self._watch(descriptor)
        self._stamp = _stamp(descriptor)

    def _watch(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._close = weakref.finalize(self, os.close, descriptor)

    def share(self) -> Self:
        """Another view of the same mapping, to be closed on its own.

        Raises:
            OSError: no more files can be opened.
        """
        other = object.__new__(type(self))
        other.name, other.mapping, other._stamp = self.name, self.mapping, self._stamp
        other._watch(os.dup(self._descriptor))
        return other

    def check(self) -> None:
        """Raise an ArtifactError if somebody has written to the file (not where another has taken its name)."""
        if _stamp(self._descriptor) != self._stamp:
            raise ArtifactError(f"{self.name}: changed on disk since it was opened; open it again")

    def keep(self, begin: int, end: int) -> None:
        """Make these bytes' pages ours alone, by writing to them what they hold."""
        for page in range(begin, min(end, len(self.mapping)), mmap.PAGESIZE):
            self.mapping[page] = self.mapping[page]
        if begin < end <= len(self.mapping):
            self.mapping[end - 1] = self.mapping[end - 1]

    def keep_records(self) -> None:
        """Whatever others do to the file, the program that is verified is the one that runs. (The weights' pages stay
        shared.)"""
        if len(self.mapping) >= FIRST_SECTION:
            (constants,) = struct.unpack_from("<Q", self.mapping, CONSTANTS_OFFSET)
            self.keep(0, min(constants, len(self.mapping), MAX_RECORD_BYTES))

    def close(self) -> None:
        """Let the descriptor go; the mapping goes with the last that holds on to it."""
        self._close()


class UnpackedFile(MappedFile):
    """The content of a packed file, in memory of its own at the beginning of a page: `mapping`. Nothing that is done to
    the file afterwards matters.

    Args:
        name: of the packed file.
        content: what it holds.
    """

    def __init__(self, name: str, content: bytes) -> None:
        self.name = name
        self.mapping = mmap.mmap(-1, len(content))
        self.mapping[:] = content

    def share(self) -> Self:
        return self

    def check(self) -> None:
        pass

    def keep(self, begin: int, end: int) -> None:
        pass

    def close(self) -> None:
        """Nothing to let go; the memory goes with the last that holds on to it."""


def load_file(name: str) -> MappedFile:
    """The `model.lil` of that name, mapped; or, where the file is a packed one, unpacked into memory.

    Raises:
        ArtifactError: it is not there, not a file, empty, cannot be read, or is packed and cannot be unpacked.
    """
    file = MappedFile(name)
    if not is_packed(file.mapping):
        return file
    try:
        content = unpack(file.mapping, name)
        file.check()
    finally:
        file.close()
    return UnpackedFile(name, content)


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
            return mapping, os.dup(file.fileno())
    except OSError as error:
        raise ArtifactError(f"{name}: cannot be read ({error.strerror}); give the path of a .lil file") from None
