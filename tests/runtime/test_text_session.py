"""`TextSession`: what it takes, gives and refuses, and that no result depends on what runs beside it."""

import os
import re
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import lilliput
from lilliput import artifact
from lilliput.errors import ArtifactError, FailureError, InputError
from lilliput.program import mathfn, reference
from lilliput.program.program import Program, Vocabulary
from lilliput.runtime import isas, texts
from lilliput.runtime.opening import open_image_model, open_text_model
from lilliput.runtime.texts import TextSession

TEXTS = [
    "The small texts!",
    "",
    "a",
    "TINY\tmodels",
    "the the the the the the the the",
    "a tiny, tiny model .",
    "Ünknown",
]
MAX_TOKENS = 24


@pytest.fixture(scope="module")
def program(text_models: ModuleType) -> Program:
    built: Program = text_models.text_program()
    return built


@pytest.fixture(scope="module")
def path(program: Program, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "model.lil"
    artifact.write(program, path)
    return path


@pytest.fixture(scope="module")
def classifier(text_models: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "classes.lil"
    artifact.write(text_models.text_program("text-classification"), path)
    return path


def sequences(lengths: Sequence[int], num_ids: int = 14, seed: int = 0) -> list[NDArray[np.uint32]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, num_ids, length).astype(np.uint32) for length in lengths]


def same(first: NDArray[np.float32], second: NDArray[np.float32]) -> bool:
    return first.shape == second.shape and first.tobytes() == second.tobytes()


# --- what it gives ---------------------------------------------------------------------------------------------------


def test_what_a_session_says(path: Path, program: Program) -> None:
    with lilliput.open(path) as session:
        assert isinstance(session, TextSession)
        assert (session.max_tokens, session.num_outputs, session.labels) == (MAX_TOKENS, 36, ())
        assert session.file_bytes == path.stat().st_size
        assert dict(session.metadata) == dict(program.metadata)
        assert session.arena_bytes == session.sequence_arena_bytes(MAX_TOKENS) == 32 * program.arena_bytes
        assert session.sequence_arena_bytes(1) == session.sequence_arena_bytes(16) == 16 * program.arena_bytes
        assert session.verify_golden() == 2


def test_tokenize(path: Path) -> None:
    with open_text_model(path) as session:
        found = session.tokenize(TEXTS)
        assert all(ids.dtype == np.uint32 for ids in found)
        assert [ids.tolist() for ids in found] == [
            [2, 4, 6, 9, 10, 13, 3],
            [2, 3],
            [2, 5, 3],
            [2, 7, 8, 10, 3],
            [2, *[4] * 8, 3],
            [2, 5, 7, 1, 7, 8, 12, 3],
            [2, 1, 3],
        ]
        assert [ids.tolist() for ids in session.tokenize("a")] == [[2, 5, 3]]
        assert session.tokenize([]) == []
        (cut,) = session.tokenize("a " * 99 + "[SEP]")
        assert cut.tolist() == [2, *[5] * (MAX_TOKENS - 2), 3]


def test_run_equals_the_reference(path: Path, program: Program) -> None:
    batch = sequences([1, 2, 15, 16, 17, 24, 3, 8])
    wanted = reference.run(program, batch)
    with open_text_model(path) as session:
        assert same(session.run(batch), wanted)
        assert same(session.run(tuple(batch)), wanted)
        assert same(session.run([ids.tolist() for ids in batch]), wanted)
        one = session.run(batch[4])
        assert one.dtype == np.float32
        assert same(one, wanted[4])
        assert same(session.run(batch[4].tolist()), wanted[4])
        assert same(session.run(np.array([7, 8, 9], ">i8")), session.run([7, 8, 9]))
        assert same(session.run(np.arange(12)[::-2]), session.run([11, 9, 7, 5, 3, 1]))
        rows = np.arange(12, dtype=np.uint8).reshape(3, 4)
        assert same(session.run(rows), session.run(list(rows)))
        no_rows: tuple[Any, ...] = ([], (), np.empty((0, 3), np.int64))
        for none in no_rows:
            assert session.run(none).shape == (0, 36)


def test_embed(path: Path) -> None:
    with open_text_model(path) as session:
        vectors = session.embed(TEXTS)
        assert same(vectors, session.run(session.tokenize(TEXTS)))
        assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
        assert len(np.unique(vectors, axis=0)) == len(TEXTS)
        assert same(session.embed(TEXTS[0]), vectors[0])  # one text: one vector
        assert same(session.embed(text for text in TEXTS), vectors)
        assert same(session.embed(np.array(TEXTS)), vectors)
        assert session.embed([]).shape == (0, 36)
        assert same(session.embed(""), session.run([2, 3]))  # an empty text: its special tokens
        assert same(session.embed("a\0 t\0iny"), session.embed("a tiny"))  # BERT's tokenizer drops NUL
        assert same(session.embed("a " * 99), session.embed("a " * 22))  # cut


def test_predict(classifier: Path) -> None:
    with lilliput.open(classifier) as session:
        assert session.labels == ("bad", "[good]", "so-so")
        outputs = session.run([ids.tolist() for ids in open_text_model(classifier).tokenize(TEXTS)])
        labels, probabilities = session.predict(TEXTS)
        assert probabilities.dtype == np.float32
        assert same(probabilities, mathfn.softmax(outputs))
        assert labels.tolist() == outputs.argmax(1).tolist()
        labels, probabilities = session.predict(TEXTS[0])
        assert (labels.shape, probabilities.shape) == ((1,), (1, 3))
        labels, probabilities = session.predict([])
        assert (labels.shape, probabilities.shape) == ((0,), (0, 3))
        assert session.verify_golden() == 2


def test_profile(path: Path, program: Program) -> None:
    with open_text_model(path, num_threads=2) as session:
        times = session.profile([2, 4, 3], repeats=5)
        assert times.dtype == np.int64
        assert times.shape == (5, len(program.ops))
        assert (times.sum(axis=1) > 0).all()
        assert session.profile(list(range(14))).shape == (1, len(program.ops))
        for ids, repeats in (([], 1), ([[1, 2], [3, 4]], 1), ([1], 0), ("a", 1), ([10**6], 1)):
            with pytest.raises(InputError, match=r"^.*model\.lil: "):
                session.profile(ids, repeats)


def test_bytes_have_no_special_tokens(text_models: ModuleType, tmp_path: Path) -> None:
    """NUL is a token like others; a text without any is refused, and so is one that no UTF-8 has."""
    path = tmp_path / "bytes.lil"
    artifact.write(text_models.text_program(tokenizer=text_models.bytes_only(), golden=[]), path)
    with open_text_model(path) as session:
        assert [ids.tolist() for ids in session.tokenize(["AB", "\0", ""])] == [[65, 66], [0], []]
        assert not same(session.embed("A\0B"), session.embed("AB"))
        with pytest.raises(InputError, match=r"bytes\.lil: text 1: gives no token; the model takes 1 or more$"):
            session.embed(["a", "", ""])
        assert session.verify_golden() == 0


# --- no result depends on what runs beside it ------------------------------------------------------------------------


@pytest.mark.parametrize("isa", isas())
def test_batch_order_threads_and_isa_change_no_bit(path: Path, program: Program, isa: str) -> None:
    lengths = [1, 24, 2, 16, 17, 15, 5, 23, 24, 24, 1, 1, 9, 24, 3] * 4
    batch = sequences(lengths)
    wanted = reference.run(program, batch)
    for num_threads in (1, 2, 5):
        with open_text_model(path, isa=isa, num_threads=num_threads) as session:
            assert (session.isa, session.num_threads) == (isa, num_threads)
            assert same(session.run(batch), wanted)
            assert same(session.run(batch[::-1]), wanted[::-1])
            assert same(session.run(batch[:2]), wanted[:2])  # fewer texts than threads
            assert same(np.stack([session.run(ids) for ids in batch[:15]]), wanted[:15])
            assert session.verify_golden() == 2


@pytest.mark.parametrize("num_threads", [1, 3])
@pytest.mark.parametrize("pack_tokens", [1, 16, 24, 25, 47, 48, 49, 10**6])
def test_packs_of_any_size_change_no_bit(
    path: Path, program: Program, monkeypatch: pytest.MonkeyPatch, pack_tokens: int, num_threads: int
) -> None:
    """A pack that is filled to the last token, overfilled by one, and one longer than a pack."""
    monkeypatch.setattr(texts, "PACK_TOKENS", pack_tokens)
    monkeypatch.setattr(texts, "CHUNK", 2)
    batch = sequences([24, 24, 24, 1, 23, 24, 1, 1, 1, 22, 12, 12, 8, 16, 24, 2, 24], seed=1)
    with open_text_model(path, num_threads=num_threads) as session:
        assert same(session.run(batch), reference.run(program, batch))


@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_packs_are_of_about_one_size(path: Path, monkeypatch: pytest.MonkeyPatch, num_threads: int) -> None:
    monkeypatch.setattr(texts, "PACK_TOKENS", 100)
    rng = np.random.default_rng(3)
    with open_text_model(path, num_threads=num_threads) as session:
        for count in (1, 2, 5, 17, 60, 300):
            lengths = rng.integers(1, MAX_TOKENS + 1, count).astype(np.uint32)
            packs = session._packs(lengths, int(lengths.sum()))
            tokens = [int(part.sum()) for part in np.split(lengths, np.cumsum(packs)[:-1])]
            wanted = lengths.sum() / len(packs)
            assert packs.sum() == count
            assert all(abs(size - wanted) < MAX_TOKENS for size in tokens)
            assert len(packs) == 1 if lengths.sum() <= 100 else len(packs) % num_threads == 0
            assert wanted <= 100
        assert session._packs(np.array([99, 1], np.uint32), 100).tolist() == [2]  # one pack, whose ops threads share
        assert session._packs(np.empty(0, np.uint32), 0).tolist() == []
        long = session._packs(np.array([1000, 1, 1, 1000], np.uint32), 2002)  # each is more than a pack by itself
        assert long.tolist() == ([1, 1, 1, 1] if num_threads == 2 else [1, 2, 1])


def test_the_arena_grows_with_what_comes(path: Path) -> None:
    with open_text_model(path, num_threads=2) as session:
        sizes = [len(session._arena)]
        for length in (1, 16, 17, 3):
            session.run(np.zeros(length, np.uint32))
            sizes.append(len(session._arena))
        session.run([[1]] * 300)  # in two packs
        sizes.append(len(session._arena))
        each = [session.sequence_arena_bytes(count) for count in (1, 17, 150)]
        assert [session.pack_tokens(lengths) for lengths in ([17], [1] * 300, [24] * 20 + [1])] == [17, 150, 241]
    assert sizes == [0, 2 * each[0], 2 * each[0], 2 * each[1], 2 * each[1], 2 * each[2]]


def test_threads_share_a_session_or_have_their_own(path: Path) -> None:
    batch = sequences([3, 24, 7, 1, 16, 19, 2, 11] * 8, seed=2)
    with open_text_model(path, num_threads=2) as shared:
        wanted = shared.run(batch)
        vectors = shared.embed(TEXTS)
        ready = threading.Barrier(8)

        def work(number: int) -> bool:
            session = shared if number % 2 else shared.share(num_threads=1 + number % 3)
            ready.wait()
            good = same(session.embed(TEXTS), vectors)
            for start in range(number, len(batch), 8):
                good &= same(session.run(batch[start:]), wanted[start:])
            if session is not shared:
                session.close()
            return good

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(work, range(8)))
        assert same(shared.run(batch), wanted)


@pytest.mark.parametrize("method", ["run", "profile"])
def test_ids_are_the_sessions_own(path: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """The core checks them and reads them again, without the GIL: what another thread writes then must not be seen."""
    ids = np.array([2, 4, 3], np.uint32)
    with open_text_model(path) as session:
        wanted, grow = session.run(ids), session._grow

        def changing(*arguments: Any) -> None:
            ids[:] = 10**6
            grow(*arguments)

        monkeypatch.setattr(session, "_grow", changing)
        result = getattr(session, method)(ids)
        assert ids.tolist() == [10**6] * 3
        assert method == "profile" or same(result, wanted)


def test_closing(path: Path, tmp_path: Path) -> None:
    session = open_text_model(path)
    other = session.share()
    kept = session.embed("a model")
    session.close()
    session.close()
    calls = (
        lambda: session.run([1]),
        lambda: session.embed("a"),
        lambda: session.tokenize("a"),
        lambda: session.profile([1]),
        lambda: session.sequence_arena_bytes(1),
        session.verify_golden,
        session.share,
    )
    for call in calls:
        with pytest.raises(InputError, match="the session is closed"):
            call()
    assert same(other.embed("a model"), kept)  # one that shares its file goes on
    other.close()
    assert session.max_tokens == MAX_TOKENS


# --- what it refuses -------------------------------------------------------------------------------------------------

ALLOWED = r"must be 1 to 24 integers, token ids of the model$"
WRONG_SEQUENCES: dict[str, tuple[Any, str]] = {
    "no-token": (np.empty(0, np.int64), rf"the sequence is int64 with shape \(0,\); {ALLOWED}"),
    "no-token-in-a-list": ([[1], []], rf"sequence 1 is float64 with shape \(0,\); {ALLOWED}"),
    "too-long": ([1] * 25, rf"the sequence is int64 with shape \(25,\); {ALLOWED}"),
    "too-long-in-a-list": ([[1], [1] * 25], rf"sequence 1 is int64 with shape \(25,\); {ALLOWED}"),
    "negative": ([3, -1], rf"the sequence has token id -1; {ALLOWED}"),
    "above-u32": ([[3], [2**32]], rf"sequence 1 has token id 4294967296; {ALLOWED}"),
    "above-i64": ([2**64], rf"the sequence is object with shape \(1,\); {ALLOWED}"),
    "unknown": ([3, 14], r"a token id that the model does not know; the largest is 14$"),
    "unknown-largest": ([[3], [2**32 - 1]], r"a token id that the model does not know; the largest is 4294967295$"),
    "float": ([1.0, 2.0], rf"sequence 0 is float64 with shape \(\); {ALLOWED}"),
    "float-array": (np.ones(3, np.float32), rf"the sequence is float32 with shape \(3,\); {ALLOWED}"),
    "bool": ([True, False], rf"the sequence is bool with shape \(2,\); {ALLOWED}"),
    "nested": ([[[1, 2]]], rf"sequence 0 is int64 with shape \(1, 2\); {ALLOWED}"),
    "ragged": ([[[1], [2, 3]]], rf"sequence 0 is no array \(.*\); {ALLOWED}"),
    "mixed": ([1, [2, 3]], rf"the sequence is no array \(.*\); {ALLOWED}"),
    "three-axes": (np.ones((2, 2, 2), np.uint32), rf"the sequence is uint32 with shape \(2, 2, 2\); {ALLOWED}"),
    "number": (3, rf"the sequence is int64 with shape \(\); {ALLOWED}"),
    "text": ("a model", rf"the sequence is <U7 with shape \(\); {ALLOWED}"),
    "texts": (["a", "model"], rf"sequence 0 is <U1 with shape \(\); {ALLOWED}"),
    "nothing": (None, rf"the sequence is object with shape \(\); {ALLOWED}"),
    "dictionary": ({0: 1}, rf"the sequence is object with shape \(\); {ALLOWED}"),
}


@pytest.mark.parametrize("name", WRONG_SEQUENCES)
def test_wrong_sequences_are_refused(path: Path, name: str) -> None:
    given, message = WRONG_SEQUENCES[name]
    with open_text_model(path, num_threads=2) as session:
        with pytest.raises(InputError, match=message) as caught:
            session.run(given)
        assert str(caught.value).startswith(f"{path}: ")
        assert "\n" not in str(caught.value)
        assert session.verify_golden() == 2  # and the session goes on


WRONG_TEXTS: dict[str, tuple[Any, str]] = {
    "number": (3, "texts: of type int; must be a list of str"),
    "nothing": (None, "texts: of type NoneType; must be a list of str"),
    "bytes": (b"a", "texts: of type bytes; must be a list of str"),
    "ids": ([[2, 5, 3]], "text 0: is of type list; must be a str"),
    "list-of-bytes": (["a", b"b"], "text 1: is of type bytes; must be a str"),
    "not-a-number": (["a", "b", float("nan")], "text 2: is of type float; must be a str"),
    "high-half-of-a-pair": (
        ["a", "b \ud800"],
        "text 1: has half of a surrogate pair, which no UTF-8 has; must be text",
    ),
    "low-half-of-a-pair": ("\udfff", "text 0: has half of a surrogate pair, which no UTF-8 has; must be text"),
}


@pytest.mark.parametrize("name", WRONG_TEXTS)
def test_wrong_texts_are_refused(path: Path, classifier: Path, name: str) -> None:
    given, message = WRONG_TEXTS[name]
    for model, method in ((path, "tokenize"), (path, "embed"), (classifier, "predict")):
        with open_text_model(model) as session, pytest.raises(InputError) as caught:
            getattr(session, method)(given)
        assert str(caught.value) == f"{model}: {message}"


def test_the_other_task_is_refused(path: Path, classifier: Path) -> None:
    with lilliput.open(path) as session, pytest.raises(InputError) as caught:
        session.predict(["a"])
    assert str(caught.value) == (f"{path}: its task is text-embedding; predict needs a model for text-classification")
    with lilliput.open(classifier) as session, pytest.raises(InputError) as caught:
        session.embed(["a"])
    assert str(caught.value) == (
        f"{classifier}: its task is text-classification; embed needs a model for text-embedding"
    )
    with pytest.raises(InputError, match=r"it takes text \(its task is text-embedding\); this needs .* takes images$"):
        open_image_model(path)


@pytest.mark.parametrize("num_tokens", [0, -1, 2**24 + 1, 2**70, 1.5, "1", True, None])
def test_a_wrong_number_of_tokens(path: Path, num_tokens: Any) -> None:
    with open_text_model(path) as session, pytest.raises(InputError, match=re.escape(f"num_tokens: {num_tokens!r}; ")):
        session.sequence_arena_bytes(num_tokens)


def test_the_largest_number_of_tokens(path: Path, program: Program) -> None:
    with open_text_model(path) as session:
        assert session.sequence_arena_bytes(2**24) == 2**24 * program.arena_bytes


def test_a_file_without_a_tokenizer(text_models: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "ids.lil"
    artifact.write(text_models.text_program(tokenizer=(None, Vocabulary())), path)
    with open_text_model(path) as session:
        assert session.run([2, 5, 3]).shape == (36,)
        for call in (session.embed, session.tokenize):
            with pytest.raises(InputError, match=r"ids\.lil: it holds no tokenizer; give token ids to run"):
                call("a")


def broken(text_models: ModuleType, name: str) -> Program:
    settings, words = text_models.wordpiece(), [word.encode() for word in text_models.WORDS]
    max_tokens = 24
    if name == "no-settings":
        settings = None
    elif name == "no-vocabulary":
        words = []
    elif name == "no-room":
        max_tokens, settings["prefix"] = 2, [2, 2]
    elif name == "kind":
        settings["kind"] = "unigram"
    elif name == "id":
        settings["unk"] = 14
    elif name == "twice":
        words[7] = words[6]
    tokenizer = (settings, Vocabulary(tuple(words)))
    built: Program = text_models.text_program(max_tokens=max_tokens, tokenizer=tokenizer, golden=[])
    if name == "no-vectors":
        built = replace(built, vocabulary=Vocabulary((*built.vocabulary.tokens, b"more")))
    return built


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no-settings", "metadata: tokenizer is null; the vocabulary has 14 tokens"),
        ("no-vocabulary", "metadata: tokenizer is an object; the vocabulary has 0 tokens"),
        ("no-room", "tokenizer: 3 special tokens around each text; the model takes 2 in all"),
        ("kind", "tokenizer: settings: kind: 'unigram'; allowed: 'wordpiece', 'byte_level_bpe'"),
        ("id", "tokenizer: "),
        ("twice", "tokenizer: "),
        ("no-vectors", "tokenizer: has 15 tokens; the model has vectors for 14"),
    ],
)
def test_a_tokenizer_that_is_not_valid(text_models: ModuleType, tmp_path: Path, name: str, message: str) -> None:
    path = tmp_path / "broken.lil"
    artifact.write(broken(text_models, name), path)
    with pytest.raises(ArtifactError) as caught:
        lilliput.open(path)
    assert str(caught.value).startswith(f"{path}: {message}")
    assert "\n" not in str(caught.value)


def test_a_wrong_golden_output_is_found(program: Program, tmp_path: Path) -> None:
    outputs = program.golden_outputs.copy()
    outputs.view(np.uint32)[1, 0, 2] ^= 1
    path = tmp_path / "model.lil"
    artifact.write(replace(program, golden_outputs=outputs), path)
    with (
        lilliput.open(path) as session,
        pytest.raises(FailureError, match=r"golden example 1: output 2 is .*; the file"),
    ):
        session.verify_golden()


def test_no_memory_for_the_arena(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_text_model(path) as session:
        wanted = session.run([1, 2])
        with monkeypatch.context() as patched:
            patched.setattr(texts.TextSession, "_work_memory", _no_memory)
            with pytest.raises(FailureError, match="needs 7 bytes"):
                session.run([1] * 17)
        assert same(session.run([1, 2]), wanted)


def _no_memory(session: TextSession, size: int) -> NDArray[np.uint8]:
    raise FailureError("needs 7 bytes of work memory, which this machine does not have")


def test_an_interrupt_between_two_calls_into_c(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is heard, and the session goes on."""
    monkeypatch.setattr(texts, "PACK_TOKENS", 24)
    monkeypatch.setattr(texts, "CHUNK", 1)
    with open_text_model(path) as session:
        wanted = session.embed(TEXTS)
        grow, calls = session._grow, []

        def interrupted(*arguments: Any) -> None:
            calls.append(arguments)
            if len(calls) == 2:
                raise KeyboardInterrupt
            grow(*arguments)

        with monkeypatch.context() as patched:
            patched.setattr(session, "_grow", interrupted)
            with pytest.raises(KeyboardInterrupt):
                session.embed(TEXTS)
        assert same(session.embed(TEXTS), wanted)


# --- a file that changes ---------------------------------------------------------------------------------------------


def test_a_file_that_changes_in_place(program: Program, tmp_path: Path) -> None:
    path = tmp_path / "model.lil"
    artifact.write(program, path)
    with open_text_model(path) as session:
        session.embed("a")
        time.sleep(0.05)  # a file system's clock may tick every 10 ms
        with path.open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            file.write(b"x")
        for call in (session.embed, session.tokenize):
            with pytest.raises(ArtifactError, match=r"model\.lil: changed on disk since it was opened; open it again"):
                call("a")


def test_the_vocabulary_stays_what_was_verified(program: Program, tmp_path: Path) -> None:
    """Even where the file's time does not tell: its pages are the session's own."""
    path = tmp_path / "model.lil"
    artifact.write(program, path)
    with open_text_model(path) as session:
        ids = session.tokenize(TEXTS)
        stamp = path.stat()
        data = bytearray(path.read_bytes())
        (offset,) = struct.unpack_from("<Q", data, 48 + 6 * 24 + 8)
        data[offset:] = b"\xff" * (len(data) - offset)
        with path.open("r+b") as file:
            file.write(data)
        os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
        assert [found.tolist() for found in session.tokenize(TEXTS)] == [known.tolist() for known in ids]


def test_a_replaced_file_does_not_matter(program: Program, classifier: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.lil"
    artifact.write(program, path)
    with open_text_model(path) as session:
        wanted = session.embed(TEXTS)
        os.replace(_copy(classifier, tmp_path / "other.lil"), path)
        assert same(session.embed(TEXTS), wanted)
        assert same(session.share().embed(TEXTS), wanted)


def _copy(source: Path, target: Path) -> Path:
    target.write_bytes(source.read_bytes())
    return target


def test_opening_and_embedding_bring_numpy_only(path: Path) -> None:
    code = (
        "import sys, lilliput; lilliput.open(sys.argv[1]).embed('a model'); "
        "print(' '.join(sorted({name.partition('.')[0] for name in sys.modules} - set(sys.stdlib_module_names))))"
    )
    result = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert {name for name in result.stdout.split() if not name.startswith("_")} <= {"lilliput", "numpy"}
