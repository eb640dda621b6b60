"""The C core of the tokenizers (binding.cpp). Use `lilliput.text.Tokenizer`; this is what it is made of."""

import mmap
from collections.abc import Iterable
from typing import Self

import numpy as np
from numpy.typing import NDArray

class Settings:
    """What a tokenizer is made of, but for vocabulary and merges."""

    prefix: list[int]
    suffix: list[int]

    @classmethod
    def wordpiece(
        cls,
        *,
        clean_text: bool,
        handle_chinese_chars: bool,
        strip_accents: bool,
        lowercase: bool,
        unk: int,
        max_input_chars_per_word: int,
    ) -> Self: ...
    @classmethod
    def byte_level_bpe(cls, *, add_prefix_space: bool, use_regex: bool) -> Self: ...
    def add(self, text: bytes, id: int, normalized: bool, lstrip: bool, rstrip: bool, single_word: bool) -> None: ...
    def normalize(self, text: bytes) -> bytes: ...

class Encoder:
    """An opened tokenizer. It keeps the buffers that it was made from, unchanged."""

    def __init__(
        self,
        settings: Settings,
        text: bytes | bytearray | memoryview | mmap.mmap | NDArray[np.uint8],
        ends: NDArray[np.uint32],
        model_tokens: int,
        merges: NDArray[np.uint32],
    ) -> None: ...
    def encode_batch(self, texts: Iterable[str], max_tokens: int) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]: ...
