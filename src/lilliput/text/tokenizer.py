"""`Tokenizer`: texts into token ids."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lilliput.errors import ArtifactError, FailureError, InputError
from lilliput.text import _text
from lilliput.text.settings import MAX_ID, check_settings, core_settings

PackedVocabulary = tuple[NDArray[np.uint32], bytes | memoryview | NDArray[np.uint8]]


class Tokenizer:
    """WordPiece as BERT has it (Devlin et al., 2019), or byte-level BPE as GPT-2 has it (Radford et al., 2019).

    The ids are those of Hugging Face's `tokenizers` (0.23.3, whose tables of Unicode these are), for every text. A
    tokenizer is never changed once it is made: threads may share it.

    Args:
        settings: see `lilliput.text.settings`.
        vocabulary: the tokens in the order of their ids, each as UTF-8; those of a byte-level tokenizer in GPT-2's
            printable alphabet, as in its file. Or packed, to be used where it is: `(ends, text)`, the tokens one after
            another, and where each ends, uint32 [n].
        merges: pairs of ids, the earliest to be merged first, uint32 [n, 2]; [0, 2] for WordPiece.

    Raises:
        ArtifactError: settings, vocabulary or merges are not valid: a field is missing or of another type, an id out of
            range, a token empty or there twice, a byte without a token, a merge that gives no token.
        FailureError: there is no memory for the tables.
    """

    def __init__(
        self, settings: Mapping[str, Any], vocabulary: Sequence[bytes] | PackedVocabulary, merges: NDArray[np.uint32]
    ) -> None:
        check_settings(settings)
        self._ends, self._text = _packed(vocabulary)
        self._least = max(1, len(settings["prefix"]) + len(settings["suffix"]))
        core = core_settings(settings)
        self._add(core, settings["added"])
        if merges.ndim != 2 or merges.shape[1] != 2 or merges.dtype != np.uint32:
            raise ArtifactError(f"merges: are {merges.dtype} {merges.shape}; must be uint32 [n, 2]")
        try:
            self._encoder = _text.Encoder(
                core, self._text, self._ends, settings["model_tokens"], np.require(merges, requirements=["C", "A"])
            )
        except MemoryError:
            raise FailureError("there is no memory for the tables of a tokenizer") from None

    @property
    def packed(self) -> PackedVocabulary:
        """The vocabulary as `(ends, text)`."""
        return self._ends, self._text

    @property
    def tokens(self) -> tuple[str, ...]:
        """All tokens in the order of their ids, for people to read."""
        starts = np.concatenate(([0], self._ends[:-1]))
        pairs = zip(starts.tolist(), self._ends.tolist(), strict=True)
        return tuple(bytes(self._text[start:end]).decode(errors="replace") for start, end in pairs)

    def encode(self, text: str, max_tokens: int) -> NDArray[np.uint32]:
        """The ids of one text, uint32 [tokens]; otherwise as `encode_batch`."""
        return self.encode_batch([text], max_tokens)[0]

    def encode_batch(self, texts: Iterable[str], max_tokens: int) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
        """The ids of many texts, without padding. Other threads may run meanwhile.

        Args:
            texts: each of at most 64 MiB of UTF-8.
            max_tokens: the longest result, prefix and suffix included; what is beyond is cut from the end of the text.

        Returns:
            The ids of all texts one after another, uint32, and how many each text has, uint32 [texts].

        Raises:
            InputError: a text is no str, too long, or has half of a surrogate pair; `max_tokens` is no integer or less
                than prefix and suffix need.
            FailureError: there is no memory for the ids.
        """
        if type(max_tokens) is not int or max_tokens < self._least:
            raise InputError(f"max_tokens: {max_tokens!r}; must be an integer of at least {self._least}")
        if isinstance(texts, str | bytes) or not isinstance(texts, Iterable):
            raise InputError(f"texts: of type {type(texts).__name__}; must be a list of str")
        try:
            return self._encoder.encode_batch(texts, min(max_tokens, MAX_ID))
        except MemoryError:
            raise FailureError("there is no memory for the ids of so many or so long texts") from None

    def _add(self, core: _text.Settings, added: Sequence[Mapping[str, Any]]) -> None:
        """Hand the added tokens to the core: where two look for the same text, the first only."""
        seen: set[tuple[bool, bytes]] = set()
        for index, token in enumerate(added):
            if token["id"] >= len(self._ends):
                raise ArtifactError(
                    f"settings: added[{index}]: id: {token['id']}; the vocabulary has {len(self._ends)} tokens"
                )
            start = int(self._ends[token["id"] - 1]) if token["id"] > 0 else 0
            text = bytes(self._text[start : int(self._ends[token["id"]])])
            if token["normalized"]:
                text = core.normalize(text)
            if not text:
                raise ArtifactError(
                    f"settings: added[{index}]: id {token['id']}: its text is empty; nothing can be found"
                )
            if (token["normalized"], text) not in seen:
                seen.add((token["normalized"], text))
                flags = {name: token[name] for name in ("id", "normalized", "lstrip", "rstrip", "single_word")}
                core.add(text, **flags)


def _packed(vocabulary: Sequence[bytes] | PackedVocabulary) -> PackedVocabulary:
    """Ends and text; a packed vocabulary is checked for its form and left where it is."""
    if isinstance(vocabulary, tuple) and len(vocabulary) == 2 and isinstance(vocabulary[0], np.ndarray):
        ends, text = vocabulary[0], vocabulary[1]
        if ends.ndim != 1 or ends.dtype != np.uint32 or not len(ends):
            raise ArtifactError(f"vocabulary: ends are {ends.dtype} {ends.shape}; must be uint32 [n]")
        return np.require(ends, requirements=["C", "A"]), text
    tokens: list[bytes] = [bytes(token) for token in vocabulary]
    lengths = np.fromiter(map(len, tokens), np.uint64, len(tokens))
    text = b"".join(tokens)
    if not 0 < len(text) <= MAX_ID:
        raise ArtifactError(f"vocabulary: {len(text)} bytes of tokens; must be 1 to {MAX_ID}")
    return np.cumsum(lengths, dtype=np.uint64).astype(np.uint32), text
