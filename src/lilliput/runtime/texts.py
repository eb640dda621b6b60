"""`TextSession`: a model of texts, with its tokenizer, from strings or token ids."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lilliput.errors import ArtifactError, InputError
from lilliput.program.mathfn import softmax
from lilliput.runtime._lil import Model
from lilliput.runtime.session import Session

if TYPE_CHECKING:
    from lilliput.text import Tokenizer

PACK_TOKENS = 256  # that short texts are run together up to, about: activations stay in the second-level cache
MAX_RUN_TOKENS = 2**24  # that can be run together (lil.h)
CHUNK = 8  # packs a thread and call into C, so that Ctrl-C is heard soon

Ids = NDArray[np.uint32]
MAX_ID = 2**32 - 1


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
        if (settings is None) != (count == 0):
            said = "null" if settings is None else "an object"
            raise ArtifactError(f"{self._name}: metadata: tokenizer is {said}; the vocabulary has {count} tokens")
        if settings is None:
            return None
        if count > model.num_token_ids:
            what = f"has {count} tokens; the model has vectors for {model.num_token_ids}"
            raise ArtifactError(f"{self._name}: tokenizer: {what}")
        from lilliput.text import Tokenizer  # image models do without

        begin = model.vocabulary_offset
        self._file.keep(begin, self.file_bytes)  # what is verified stays what it was
        words = np.frombuffer(self._file.mapping, np.uint8, self.file_bytes - begin, begin)
        num_merges = int(words[:4].view("<u4")[0])
        merges_end = 4 + 8 * num_merges
        merges = words[4:merges_end].view("<u4").reshape(-1, 2)
        ends = words[merges_end : merges_end + 4 * count].view("<u4")
        try:
            tokenizer = Tokenizer(settings, (ends, words[merges_end + 4 * count :]), merges)
        except ArtifactError as error:
            raise ArtifactError(f"{self._name}: tokenizer: {error}") from None
        special = len(settings["prefix"]) + len(settings["suffix"])
        if special > self._max_tokens:
            what = f"{special} special tokens around each text; the model takes {self._max_tokens} in all"
            raise ArtifactError(f"{self._name}: tokenizer: {what}")
        return tokenizer

    def close(self) -> None:
        super().close()
        self._tokenizer = None  # it holds on to the mapping

    def _first_arena_bytes(self, model: Model) -> int:
        return 0

    @property
    def max_tokens(self) -> int:
        """The longest sequence that the model takes, special tokens included."""
        return self._max_tokens

    def sequence_arena_bytes(self, num_tokens: int) -> int:
        """Work memory of one thread, in bytes, for so many tokens that are run together.

        Raises:
            InputError: no integer of 1 to 2^24, or the session is closed.
        """
        if type(num_tokens) is not int or not 1 <= num_tokens <= MAX_RUN_TOKENS:
            raise InputError(f"num_tokens: {num_tokens!r}; must be an integer of 1 to {MAX_RUN_TOKENS}")
        with self._lock:
            return self._opened().sequence_arena_bytes(num_tokens)

    def pack_tokens(self, lengths: Sequence[int]) -> int:
        """How many tokens `run` has together at most when it is given sequences of these lengths, one or more: the
        work memory that it takes for each thread is that for so many."""
        array = np.array(lengths, np.uint32)
        return _most_tokens(array, self._packs(array, int(array.sum())))

    def tokenize(self, texts: str | Iterable[str]) -> list[Ids]:
        """The token ids of each text, uint32 [tokens], special tokens included, cut to `max_tokens`. One text is a list
        of one here.

        Raises:
            InputError: no strings, one with half of a surrogate pair, the file holds no tokenizer, or the session is
                closed.
        """
        ids, lengths = self._tokenize(texts)
        return np.split(ids, np.cumsum(lengths)[:-1]) if len(lengths) else []

    def run(self, sequences: Any) -> NDArray[np.float32]:
        """Run one sequence of token ids, or several.

        Args:
            sequences: 1 to `max_tokens` token ids, integers; or a list of such, or the rows of an array. No result
                depends on the others.

        Returns:
            The outputs: float32 [outputs] for one sequence; [n, outputs] for a list or rows, and n may be 0.

        Raises:
            InputError: no integers, an unknown id, a length that is not allowed, or the session is closed.
        """
        if not _is_batch(sequences):
            one = self._sequence("the sequence", sequences)
            outputs: NDArray[np.float32] = self._run(one, np.array([len(one)], np.uint32))[0]
            return outputs
        arrays = [self._sequence(f"sequence {number}", one) for number, one in enumerate(sequences)]
        ids = np.concatenate(arrays) if arrays else np.empty(0, np.uint32)
        return self._run(ids, np.array([len(one) for one in arrays], np.uint32))

    def embed(self, texts: str | Iterable[str]) -> NDArray[np.float32]:
        """The vector of one text, float32 [dim], or of several, [n, dim].

        A text is what its tokenizer makes of it: one longer than `max_tokens` is cut, an empty one is its special
        tokens, and NUL is a character like others (WordPiece drops it, where it is set to clean texts).

        Raises:
            InputError: as `tokenize`; its task is another; or a text of no tokens (an empty one, without special ones).
        """
        if self._metadata["task"] != "text-embedding":
            return super().embed(texts)
        vectors = self._run(*self._tokenize_all(texts))
        return vectors[0] if isinstance(texts, str) else vectors

    def predict(self, texts: str | Iterable[str]) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
        """Classify one text or several; one is a list of one here.

        Returns:
            The likeliest class (its name: `labels`), int [n], and the probabilities, float32 [n, classes].

        Raises:
            InputError: as `embed`.
        """
        if self._metadata["task"] != "text-classification":
            task = self._metadata["task"]
            raise InputError(f"{self._name}: its task is {task}; predict needs a model for text-classification")
        outputs = self._run(*self._tokenize_all(texts))
        return outputs.argmax(axis=1), softmax(outputs)

    def profile(self, sequence: ArrayLike, repeats: int = 1) -> NDArray[np.int64]:
        """Time each op of the program on one sequence, `repeats` times: nanoseconds, int64 [repeats, ops].

        Raises:
            InputError: as `run`, or no repeats.
        """
        tokens = self._sequence("the sequence", sequence)
        if repeats < 1:
            raise InputError(f"{self._name}: a profile has at least 1 repeat, not {repeats}")
        lengths, outputs = np.array([len(tokens)], np.uint32), np.empty((1, self.num_outputs), np.float32)
        with self._lock:
            model = self._opened()
            self._grow(model, len(tokens))
            times = np.empty((repeats, model.num_ops), np.int64)
            with self._naming(tokens):
                model.profile_sequences(self._arena, tokens, lengths, outputs, times, self._threads)
            self._opened()
        return times

    def _run(self, tokens: Ids, lengths: Ids) -> NDArray[np.float32]:
        outputs = np.empty((len(lengths), self.num_outputs), np.float32)
        with self._lock:
            model = self._opened()
            first = at = 0
            packs = self._packs(lengths, len(tokens))
            if len(packs) == 1:  # often one short text, where each step here would count
                self._grow(model, len(tokens))
                with self._naming(tokens):
                    model.run_sequences(self._arena, tokens, lengths, packs, outputs, self._threads)
                packs = packs[1:]
            for start in range(0, len(packs), CHUNK * self.num_threads):
                counts = packs[start : start + CHUNK * self.num_threads]
                last = first + int(counts.sum())
                part = lengths[first:last]
                ids = tokens[at : at + int(part.sum())]
                self._grow(model, _most_tokens(part, counts))
                with self._naming(ids):
                    model.run_sequences(self._arena, ids, part, counts, outputs[first:last], self._threads)
                first, at = last, at + len(ids)
            self._opened()  # nobody has changed the weights meanwhile
            del model  # close() must find no one else holding on to the file
        return outputs

    @contextmanager
    def _naming(self, ids: Ids) -> Iterator[None]:
        """Of ids the core refuses only those that the model does not know; all else is checked before."""
        try:
            yield
        except InputError as error:
            raise InputError(f"{self._name}: {error}; the largest is {ids.max()}") from None

    def _packs(self, lengths: Ids, total: int) -> Ids:
        """How many sequences are run together each time, of `total` tokens: about as many tokens in each pack, so that
        threads which share the packs end together."""
        if total <= PACK_TOKENS:
            return np.array([len(lengths)] if total else [], np.uint32)
        packs = self.num_threads * -(-total // (PACK_TOKENS * self.num_threads))
        middles = 2 * np.cumsum(lengths, dtype=np.int64) - lengths  # each sequence goes where its middle is
        counts = np.bincount(middles * packs // (2 * total))
        return counts[counts > 0].astype(np.uint32)

    def _grow(self, model: Model, num_tokens: int) -> None:
        """Have work memory for so many tokens on each thread."""
        size = self.num_threads * model.sequence_arena_bytes(num_tokens)
        if len(self._arena) < size:
            self._arena = self._work_memory(size)

    def _sequence(self, what: str, ids: Any) -> Ids:
        """One sequence, checked; whether the model knows its ids is the core's to say."""
        allowed = f"must be 1 to {self._max_tokens} integers, token ids of the model"
        try:
            array = np.asarray(ids)
        except ValueError as error:
            raise InputError(f"{self._name}: {what} is no array ({error}); {allowed}") from None
        if array.ndim != 1 or array.dtype.kind not in "iu" or not 1 <= len(array) <= self._max_tokens:
            raise InputError(f"{self._name}: {what} is {array.dtype} with shape {array.shape}; {allowed}")
        if array.dtype != np.uint32 and ((low := int(array.min())) < 0 or (high := int(array.max())) > MAX_ID):
            raise InputError(f"{self._name}: {what} has token id {low if low < 0 else high}; {allowed}")
        return np.array(array, np.uint32, order="C")  # a copy: the core reads it after checking it, without the GIL

    def _tokenize(self, texts: str | Iterable[str]) -> tuple[Ids, Ids]:
        """The ids of all texts, one behind the other, and how many each has."""
        with self._lock:
            self._opened()
            tokenizer = self._tokenizer
        if tokenizer is None:
            raise InputError(f"{self._name}: it holds no tokenizer; give token ids to run")
        try:
            return tokenizer.encode_batch([texts] if isinstance(texts, str) else texts, self._max_tokens)
        except InputError as error:
            raise InputError(f"{self._name}: {error}") from None

    def _tokenize_all(self, texts: str | Iterable[str]) -> tuple[Ids, Ids]:
        """The same, for the model: each text has tokens."""
        ids, lengths = self._tokenize(texts)
        if len(lengths) and not lengths.all():
            first = int(lengths.argmin())
            raise InputError(f"{self._name}: text {first}: gives no token; the model takes 1 or more")
        return ids, lengths

    def _golden(self) -> tuple[list[Ids], NDArray[np.float32]]:
        with self._lock:
            model = self._opened()
            words = np.frombuffer(model.golden_inputs, "<u4").astype(np.uint32, copy=False)
            count = model.num_golden
            ends = np.cumsum(words[:count].astype(np.int64))
            return np.split(words[count:], ends[:-1]) if count else [], self._golden_outputs(model)


def _most_tokens(lengths: Ids, counts: Ids) -> int:
    """The tokens of the largest pack, of packs of `counts` sequences."""
    return int(np.add.reduceat(lengths, np.cumsum(counts, dtype=np.intp) - counts).max())


def _is_batch(sequences: Any) -> bool:
    """Whether these are several sequences (or none), not one."""
    if isinstance(sequences, (list, tuple)):
        return not sequences or not isinstance(sequences[0], (int, np.integer))
    return isinstance(sequences, np.ndarray) and sequences.ndim == 2
