"""`TextSession`: a model of texts, with its tokenizer, from strings or token ids."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lilliput.errors import ArtifactError, InputError
from lilliput.program.mathfn import softmax
from lilliput.runtime._lil import Model
from lilliput.runtime.session import Session

if TYPE_CHECKING:
    from lilliput.text import Tokenizer

PACK_TOKENS = 256  # that short texts are run together up to: their activations stay in the second-level cache
CHUNK = 8  # packs a thread and call into C, so that Ctrl-C is heard soon

Ids = NDArray[np.uint32]


class TextSession(Session):
    """An opened text model.

    Texts of any length up to `max_tokens` are run without padding, several short ones together; longer ones are cut.
    Work memory grows with the longest that comes. Threads of a call share the texts, or the work of each where there
    are few.
    """

    def _prepare(self, model: Model) -> None:
        self._max_tokens = model.max_tokens
        self._tokenizer = self._read_tokenizer(model)

    def _read_tokenizer(self, model: Model) -> "Tokenizer | None":
        settings, count = self._metadata["tokenizer"], model.vocabulary_tokens
        if settings is None or count == 0:
            return None
        from lilliput.text import Tokenizer  # image models do without

        begin = model.vocabulary_offset
        self._file.keep(begin, self.file_bytes)  # what is verified stays what it was
        words = np.frombuffer(self._file.mapping, np.uint8, self.file_bytes - begin, begin)
        num_merges = int(words[:4].view("<u4")[0])
        merges_end = 4 + 8 * num_merges
        merges = words[4:merges_end].view("<u4").reshape(-1, 2)
        ends = words[merges_end : merges_end + 4 * count].view("<u4")
        try:
            return Tokenizer(settings, (ends, words[merges_end + 4 * count :]), merges)
        except (InputError, ArtifactError) as error:
            raise ArtifactError(f"{self._name}: tokenizer: {error}") from None

    def _first_arena_bytes(self, model: Model) -> int:
        return 0

    @property
    def max_tokens(self) -> int:
        """The longest sequence that the model takes, special tokens included."""
        return self._max_tokens

    def sequence_arena_bytes(self, num_tokens: int) -> int:
        """Work memory of one thread, in bytes, for so many tokens that are run together.

        Raises:
            InputError: the session is closed.
        """
        with self._lock:
            return self._opened().sequence_arena_bytes(num_tokens)

    def tokenize(self, texts: str | Sequence[str]) -> list[Ids]:
        """The token ids of each text, special tokens included, cut to `max_tokens`.

        Raises:
            InputError: no strings, or the file holds no tokenizer.
        """
        ids, lengths = self._tokenize(texts)
        return np.split(ids, np.cumsum(lengths)[:-1]) if len(lengths) else []

    def run(self, sequences: Any) -> NDArray[np.float32]:
        """Run one sequence of token ids, or several.

        Args:
            sequences: 1 to `max_tokens` integers, or a list of such.

        Returns:
            The outputs: float32 [outputs] for one sequence, [n, outputs] for a list, which may be empty.

        Raises:
            InputError: no integers, an unknown id, a length that is not allowed, or the session is closed.
        """
        if isinstance(sequences, (list, tuple)) and (len(sequences) == 0 or np.ndim(sequences[0]) == 1):
            arrays = [self._sequence(f"sequence {number}", one) for number, one in enumerate(sequences)]
            return self._run(_concatenate(arrays), np.array([len(one) for one in arrays], np.uint32))
        one = self._sequence("the sequence", sequences)
        return self._run(one, np.array([len(one)], np.uint32))[0]

    def embed(self, texts: str | Sequence[str]) -> NDArray[np.float32]:
        """The vector of one text, float32 [dim], or of several, [n, dim].

        Raises:
            InputError: no strings, the file holds no tokenizer, its task is another, or the session is closed.
        """
        if self._metadata["task"] != "text-embedding":
            return super().embed(texts)
        vectors = self._run(*self._tokenize(texts))
        return vectors[0] if isinstance(texts, str) else vectors

    def predict(self, texts: str | Sequence[str]) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
        """Classify one text or several; one is a list of one here.

        Returns:
            The likeliest class (its name: `labels`), int [n], and the probabilities, float32 [n, classes].

        Raises:
            InputError: as `embed`.
        """
        if self._metadata["task"] != "text-classification":
            task = self._metadata["task"]
            raise InputError(f"{self._name}: its task is {task}; predict needs a model for text-classification")
        outputs = self._run(*self._tokenize(texts))
        return outputs.argmax(axis=1), softmax(outputs)

    def profile(self, sequence: ArrayLike, repeats: int = 1) -> NDArray[np.int64]:
        """Time each op of the program on one sequence, `repeats` times: nanoseconds, int64 [repeats, ops].

        Raises:
            InputError: as `run`, or no repeats.
        """
        tokens = self._sequence("the sequence", sequence)
        if repeats < 1:
            raise InputError(f"{self._name}: a profile has at least 1 repeat, not {repeats}")
        lengths, outputs = np.array([len(tokens)], np.uint32), np.empty((1, self._num_outputs), np.float32)
        with self._lock:
            model = self._opened()
            self._grow(model, len(tokens))
            times = np.empty((repeats, model.num_ops), np.int64)
            model.profile_sequences(self._arena, tokens, lengths, outputs, times, self._threads)
            self._opened()
        return times

    def _run(self, tokens: Ids, lengths: Ids) -> NDArray[np.float32]:
        outputs = np.empty((len(lengths), self._num_outputs), np.float32)
        with self._lock:
            model = self._opened()
            first = at = 0
            for counts in self._packs(lengths):
                last = first + int(counts.sum())
                part = lengths[first:last]
                size = int(part.sum())
                self._grow(model, int(np.add.reduceat(part, np.cumsum(counts, dtype=np.intp) - counts).max()))
                model.run_sequences(
                    self._arena, tokens[at : at + size], part, counts, outputs[first:last], self._threads
                )
                first, at = last, at + size
            self._opened()  # nobody has changed the weights meanwhile
            del model  # close() must find no one else holding on to the file
        return outputs

    def _packs(self, lengths: Ids) -> Iterator[Ids]:
        """How many sequences are run together each time, some packs a call."""
        counts: list[int] = []
        tokens = PACK_TOKENS
        for length in lengths.tolist():
            if tokens + length > PACK_TOKENS:
                if len(counts) == CHUNK * self.num_threads:
                    yield np.array(counts, np.uint32)
                    counts = []
                counts.append(0)
                tokens = 0
            counts[-1] += 1
            tokens += length
        if counts:
            yield np.array(counts, np.uint32)

    def _grow(self, model: Model, num_tokens: int) -> None:
        """Have work memory for so many tokens on each thread."""
        size = self.num_threads * model.sequence_arena_bytes(num_tokens)
        if len(self._arena) < size:
            self._arena = self._work_memory(size)

    def _sequence(self, what: str, ids: Any) -> Ids:
        try:
            array = np.asarray(ids)
        except ValueError as error:
            raise InputError(f"{self._name}: {what} is no array ({error}); {self._allowed()}") from None
        if array.ndim != 1 or array.dtype.kind not in "iu" or not 1 <= len(array) <= self._max_tokens:
            raise InputError(f"{self._name}: {what} is {array.dtype} with shape {array.shape}; {self._allowed()}")
        if array.min() < 0 or array.max() >= 2**32:
            raise InputError(f"{self._name}: {what} has token id {min(array.min(), array.max())}; {self._allowed()}")
        return np.ascontiguousarray(array, np.uint32)

    def _allowed(self) -> str:
        return f"must be 1 to {self._max_tokens} integers, token ids of the model"

    def _tokenize(self, texts: str | Sequence[str]) -> tuple[Ids, Ids]:
        """The ids of all texts, one behind the other, and how many each has."""
        if self._tokenizer is None:
            raise InputError(f"{self._name}: it holds no tokenizer; give token ids to run")
        batch = [texts] if isinstance(texts, str) else list(texts)
        for number, text in enumerate(batch):
            if not isinstance(text, str):
                raise InputError(f"{self._name}: text {number} is {type(text).__name__}; must be a str")
        return self._tokenizer.encode_batch(batch, self._max_tokens)

    def _golden(self) -> tuple[list[Ids], NDArray[np.float32]]:
        with self._lock:
            model = self._opened()
            words = np.frombuffer(model.golden_inputs, "<u4").astype(np.uint32, copy=False)
            count = model.num_golden
            ends = np.cumsum(words[:count].astype(np.int64))
            return np.split(words[count:], ends[:-1]) if count else [], self._golden_outputs(model)


def _concatenate(arrays: list[Ids]) -> Ids:
    return np.concatenate(arrays) if arrays else np.empty(0, np.uint32)
