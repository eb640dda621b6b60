"""What a `TextSession` refuses, and what it makes of a file that changes."""

import os
import re
import struct
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.runtime.conftest import TEXTS, same

import lilliput
from lilliput import artifact
from lilliput.errors import ArtifactError, FailureError, InputError
from lilliput.program.program import Program, Vocabulary
from lilliput.runtime import texts
from lilliput.runtime.opening import open_image_model, open_text_model
from lilliput.runtime.texts import TextSession

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
