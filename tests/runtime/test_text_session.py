"""`TextSession`: what it takes, gives and refuses, and that no result depends on what runs beside it."""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.runtime.conftest import MAX_TOKENS, TEXTS, same

import lilliput
from lilliput import artifact
from lilliput.errors import InputError
from lilliput.program import mathfn, reference
from lilliput.program.program import Program
from lilliput.runtime import isas, texts
from lilliput.runtime.opening import open_text_model
from lilliput.runtime.texts import TextSession


def sequences(lengths: Sequence[int], num_ids: int = 14, seed: int = 0) -> list[NDArray[np.uint32]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, num_ids, length).astype(np.uint32) for length in lengths]


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
