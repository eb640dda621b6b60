"""The C runtime (binding.cpp). Use `lilliput.open`; this is what it is made of."""

import mmap

import numpy as np
from numpy.typing import NDArray

ALIGNMENT: int

def isas() -> list[str]:
    """The instruction sets of this build that this processor has, the best one last."""

def peak_macs_per_second(isa: str) -> float:
    """Int8 multiply-adds a second that one core reaches with an instruction set, from registers. Takes 50 ms."""

class Threads:
    """Threads that share a run. One run at a time."""

    def __init__(self, num_threads: int) -> None: ...

class Model:
    """A verified file. It keeps the buffer that it was made from, exported and unchanged."""

    def __init__(self, file: bytes | bytearray | memoryview | mmap.mmap) -> None: ...
    def use_isa(self, name: str) -> None: ...
    def run(
        self,
        arena: NDArray[np.uint8],
        inputs: NDArray[np.uint8],
        outputs: NDArray[np.float32],
        threads: Threads | None = None,
    ) -> None: ...
    def profile(
        self,
        arena: NDArray[np.uint8],
        inputs: NDArray[np.uint8],
        outputs: NDArray[np.float32],
        times: NDArray[np.int64],
        threads: Threads | None = None,
    ) -> None: ...
    def run_sequences(
        self,
        arena: NDArray[np.uint8],
        tokens: NDArray[np.uint32],
        lengths: NDArray[np.uint32],
        counts: NDArray[np.uint32],
        outputs: NDArray[np.float32],
        threads: Threads | None = None,
    ) -> None: ...
    def profile_sequences(
        self,
        arena: NDArray[np.uint8],
        tokens: NDArray[np.uint32],
        lengths: NDArray[np.uint32],
        outputs: NDArray[np.float32],
        times: NDArray[np.int64],
        threads: Threads | None = None,
    ) -> None: ...
    def sequence_arena_bytes(self, num_tokens: int) -> int: ...
    @property
    def max_tokens(self) -> int: ...
    @property
    def num_token_ids(self) -> int: ...
    @property
    def vocabulary_tokens(self) -> int: ...
    @property
    def vocabulary_offset(self) -> int: ...
    @property
    def isa(self) -> str: ...
    @property
    def num_ops(self) -> int: ...
    @property
    def arena_bytes(self) -> int: ...
    @property
    def input_rows(self) -> int: ...
    @property
    def input_cols(self) -> int: ...
    @property
    def output_cols(self) -> int: ...
    @property
    def num_golden(self) -> int: ...
    @property
    def metadata(self) -> bytes: ...
    @property
    def golden_inputs(self) -> bytes: ...
    @property
    def golden_outputs(self) -> bytes: ...
