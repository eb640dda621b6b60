"""`Tokenizer` itself: its forms of vocabulary, its refusals, large texts, threads, what it imports."""

import copy
import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lilliput.errors import ArtifactError, InputError
from lilliput.text import Tokenizer
from lilliput.text.huggingface import read_tokenizer

Spec = dict[str, Any]
Parts = tuple[dict[str, Any], list[bytes], NDArray[np.uint32]]
NO_LIMIT = 10**7


@pytest.fixture(scope="module")
def parts(specs: dict[str, Spec], folder_of: Callable[[Spec], Path]) -> Callable[[str], Parts]:
    """Settings, vocabulary and merges of a kind; the caller's to change."""
    read = {kind: read_tokenizer(folder_of(spec)) for kind, spec in specs.items()}
    return lambda kind: copy.deepcopy(read[kind])


def packed(vocabulary: list[bytes]) -> tuple[NDArray[np.uint32], bytes]:
    return np.cumsum([len(token) for token in vocabulary]).astype(np.uint32), b"".join(vocabulary)


@pytest.mark.parametrize("kind", ["wordpiece", "byte_level_bpe"])
def test_a_packed_vocabulary_is_used_in_place(kind: str, parts: Callable[[str], Parts], lines: list[str]) -> None:
    settings, vocabulary, merges = parts(kind)
    ends, text = packed(vocabulary)
    expected = Tokenizer(settings, vocabulary, merges).encode_batch(lines, 64)
    for form in (text, memoryview(text), np.frombuffer(text, np.uint8)):
        tokenizer = Tokenizer(settings, (ends, form), merges)
        assert tokenizer.packed[0] is ends
        assert tokenizer.packed[1] is form
        for mine, other in zip(tokenizer.encode_batch(lines, 64), expected, strict=True):
            np.testing.assert_array_equal(mine, other)


def test_memory_that_the_core_cannot_use_is_copied(parts: Callable[[str], Parts]) -> None:
    """Ends and merges at odd addresses, and not contiguous."""
    settings, vocabulary, merges = parts("byte_level_bpe")
    ends, text = packed(vocabulary)
    expected = Tokenizer(settings, vocabulary, merges).encode("some packages", 64)
    odd_ends = np.frombuffer(b"\0" + ends.tobytes(), np.uint32, offset=1)
    odd_merges = np.frombuffer(b"\0" + merges.tobytes(), np.uint32, offset=1).reshape(-1, 2)
    strided = np.repeat(merges, 2, axis=0)[::2]
    for case in ((odd_ends, odd_merges), (ends, strided)):
        np.testing.assert_array_equal(
            Tokenizer(settings, (case[0], text), case[1]).encode("some packages", 64), expected
        )


def test_tokens(parts: Callable[[str], Parts]) -> None:
    settings, vocabulary, merges = parts("wordpiece")
    tokens = Tokenizer(settings, packed(vocabulary), merges).tokens
    assert tokens == tuple(token.decode() for token in vocabulary)
    assert tokens[:5] == ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def test_one_text_and_none(parts: Callable[[str], Parts]) -> None:
    tokenizer = Tokenizer(*parts("wordpiece"))
    ids, lengths = tokenizer.encode_batch([], 8)
    assert (ids.shape, lengths.shape) == ((0,), (0,))
    ids, lengths = tokenizer.encode_batch(("the", "", "the package"), 8)
    assert lengths[1] == 2
    assert ids[: lengths[0]].tolist() == tokenizer.encode("the", 8).tolist()
    assert ids[lengths[0] : lengths[0] + 2].tolist() == [2, 3]
    assert ids.flags.writeable


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("a text", "texts: of type str; must be a list of str"),
        (b"a text", "texts: of type bytes; must be a list of str"),
        (7, "texts: of type int; must be a list of str"),
        (["a", None], "text 1: is of type NoneType; must be a str"),
        ([b"a"], "text 0: is of type bytes; must be a str"),
        (["a", "b", "\ud800"], "text 2: has half of a surrogate pair, which no UTF-8 has; must be text"),
    ],
)
def test_refused_texts(texts: Any, message: str, parts: Callable[[str], Parts]) -> None:
    with pytest.raises(InputError) as caught:
        Tokenizer(*parts("wordpiece")).encode_batch(texts, 8)
    assert str(caught.value) == message


@pytest.mark.parametrize("max_tokens", [-1, 0, 1, True, 2.0, None])
def test_refused_max_tokens(max_tokens: Any, parts: Callable[[str], Parts]) -> None:
    with pytest.raises(InputError, match=rf"max_tokens: {max_tokens}; must be an integer of at least 2"):
        Tokenizer(*parts("wordpiece")).encode("a", max_tokens)


def test_max_tokens_has_no_upper_limit(parts: Callable[[str], Parts]) -> None:
    assert Tokenizer(*parts("wordpiece")).encode("", 2**70).tolist() == [2, 3]


def test_a_text_of_more_than_64_mebibytes(parts: Callable[[str], Parts]) -> None:
    with pytest.raises(InputError, match="text 0: has 67108865 bytes; at most 67108864 are allowed"):
        Tokenizer(*parts("wordpiece")).encode("a" * (2**26 + 1), 8)


@pytest.mark.parametrize("kind", ["wordpiece", "byte_level_bpe"])
def test_large_texts(kind: str, parts: Callable[[str], Parts]) -> None:
    """A megabyte of one word, of white space, of NUL, of marks, of added tokens."""
    tokenizer = Tokenizer(*parts(kind))
    for piece in ("e", "the", " ", "\0", "\u0301\u302e\u1b44", "[CLS]", "<mask> ", "[", "é", "\u4e00"):
        ids = tokenizer.encode(piece * (10**6 // len(piece)), NO_LIMIT)
        assert len(ids) <= 10**6 * len(piece.encode()) + 2
        assert ids.max() < len(tokenizer.tokens)
        np.testing.assert_array_equal(tokenizer.encode(piece * (10**6 // len(piece)), 9)[:-1], ids[:8][: len(ids) - 1])


def test_merging_a_long_word_takes_no_other_way(parts: Callable[[str], Parts]) -> None:
    """Without the split into words, a text is one word: the same as merging by the definition."""
    settings, vocabulary, merges = parts("byte_level_bpe")
    settings["use_regex"] = False
    text = "the package contains the themes of the thesis" * 20
    symbols = [vocabulary.index(b"\xc4\xa0" if char == " " else char.encode()) for char in text]
    for left, right in merges.tolist():
        merged = vocabulary.index(vocabulary[left] + vocabulary[right])
        position = 0
        while position + 1 < len(symbols):
            if symbols[position : position + 2] == [left, right]:
                symbols[position : position + 2] = [merged]
            position += 1
    assert Tokenizer(settings, vocabulary, merges).encode(text, NO_LIMIT).tolist() == [0, *symbols, 2]


def test_threads_share_a_tokenizer(parts: Callable[[str], Parts], lines: list[str]) -> None:
    tokenizer = Tokenizer(*parts("byte_level_bpe"))
    expected = tokenizer.encode_batch(lines, 64)
    results: list[Any] = []

    def work() -> None:
        results.append([tokenizer.encode_batch(lines, 64) for _ in range(5)])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    for ids, lengths in (pair for result in results for pair in result):
        np.testing.assert_array_equal(ids, expected[0])
        np.testing.assert_array_equal(lengths, expected[1])


CORE_REFUSALS = [
    (
        "vocabulary",
        lambda v: v.__setitem__(9, b""),
        "a token is empty or reaches beyond the vocabulary's text (token 9)",
    ),
    ("vocabulary", lambda v: v.__setitem__(9, v[7]), "a token is there twice (token 9)"),
    ("settings", lambda s: s.update(unk=2000), "an id that no token has (id 2000)"),
    ("settings", lambda s: s.update(prefix=[2, 7777]), "an id that no token has (id 7777)"),
    (
        "settings",
        lambda s: s.update(model_tokens=2001),
        "no tokens, too many tokens or merges, or a model of more tokens",
    ),
    ("settings", lambda s: s.update(model_tokens=0), "no tokens, too many tokens or merges, or a model of more tokens"),
    (
        "settings",
        lambda s: s["added"][0].update(id=2000),
        "settings: added[0]: id: 2000; the vocabulary has 2000 tokens",
    ),
    ("settings", lambda s: s.pop("unk"), "settings: 'unk' is missing or unknown; the fields are kind, model_tokens,"),
    (
        "settings",
        lambda s: s.update(more=1),
        "settings: 'more' is missing or unknown; the fields are kind, model_tokens,",
    ),
    (
        "settings",
        lambda s: s.update(kind="unigram"),
        "settings: kind: 'unigram'; allowed: 'wordpiece', 'byte_level_bpe'",
    ),
    ("settings", lambda s: s.update(kind=["x"]), "settings: kind: ['x']; allowed: 'wordpiece', 'byte_level_bpe'"),
    ("settings", lambda s: s.update(unk=True), "settings: unk: True; must be an integer of 0 to 4294967295"),
    ("settings", lambda s: s.update(unk=-1), "settings: unk: -1; must be an integer of 0 to 4294967295"),
    ("settings", lambda s: s.update(lowercase=1), "settings: lowercase: 1; must be true or false"),
    ("settings", lambda s: s.update(suffix=3), "settings: suffix: 3; must be a list"),
    ("settings", lambda s: s.update(suffix=["a"]), "settings: suffix[0]: 'a'; must be an integer of 0 to 4294967295"),
    (
        "settings",
        lambda s: s.update(added=[3]),
        "settings: added[0]: 3; must be an object with id, normalized, lstrip,",
    ),
    (
        "settings",
        lambda s: s["added"][1].pop("id"),
        "settings: added[1]: 'id' is missing or unknown; the fields are id,",
    ),
]


@pytest.mark.parametrize(("what", "change", "message"), CORE_REFUSALS)
def test_refused_parts(what: str, change: Callable[[Any], Any], message: str, parts: Callable[[str], Parts]) -> None:
    settings, vocabulary, merges = parts("wordpiece")
    change(settings if what == "settings" else vocabulary)
    with pytest.raises(ArtifactError) as caught:
        Tokenizer(settings, vocabulary, merges)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_an_added_token_of_which_nothing_is_left(parts: Callable[[str], Parts]) -> None:
    settings, vocabulary, merges = parts("wordpiece")
    settings["added"].append({**settings["added"][0], "id": len(vocabulary), "normalized": True})
    with pytest.raises(ArtifactError, match=r"settings: added\[5\]: id 2000: its text is empty; nothing can be found"):
        Tokenizer(settings, [*vocabulary, b"\x01"], merges)


@pytest.mark.parametrize(
    ("merge", "message"),
    [
        ([0, 10**6], "a merge has an id that is out of range, gives no token, or is there twice (merge 3)"),
        ([2, 2], "a merge has an id that is out of range, gives no token, or is there twice (merge 3)"),
        (None, "a merge has an id that is out of range, gives no token, or is there twice (merge 3)"),
    ],
)
def test_refused_merges(merge: list[int] | None, message: str, parts: Callable[[str], Parts]) -> None:
    settings, vocabulary, merges = parts("byte_level_bpe")
    merges[3] = merges[1] if merge is None else merge
    with pytest.raises(ArtifactError) as caught:
        Tokenizer(settings, vocabulary, merges)
    assert str(caught.value) == message


def test_refused_forms(parts: Callable[[str], Parts]) -> None:
    settings, vocabulary, merges = parts("byte_level_bpe")
    ends, text = packed(vocabulary)
    bad: Any
    for bad in (merges.astype(np.int64), merges.ravel(), merges[:, :1]):
        with pytest.raises(ArtifactError, match=r"merges: are .*; must be uint32 \[n, 2\]"):
            Tokenizer(settings, vocabulary, bad)
    for bad in (ends.astype(np.int64), ends[:0], ends.reshape(1, -1)):
        with pytest.raises(ArtifactError, match=r"vocabulary: ends are .*; must be uint32 \[n\]"):
            Tokenizer(settings, (bad, text), merges)
    with pytest.raises(ArtifactError, match="vocabulary: 0 bytes of tokens; must be 1 to"):
        Tokenizer(settings, [], merges)
    with pytest.raises(ArtifactError, match=r"no token stands for a byte \(byte 97\)"):
        Tokenizer(settings, [b"." * 9 if token == b"a" else token for token in vocabulary], merges[:0])
    swapped = ends.copy()
    swapped[[50, 51]] = swapped[[51, 50]]
    beyond = ends.copy()
    beyond[-1] += 1
    for bad in (swapped, beyond):
        with pytest.raises(ArtifactError, match="a token is empty or reaches beyond"):
            Tokenizer(settings, (bad, text), merges)


def test_tokens_that_were_chosen_to_collide(parts: Callable[[str], Parts]) -> None:
    """2,000 tokens for one place of the hash table (lil_text_core.h has the hash) are refused before they cost time."""
    numbers = np.arange(2**23, dtype=np.uint64)
    hashes = np.full(len(numbers), 0xCBF29CE484222325, np.uint64)
    for shift in (16, 8, 0):
        hashes = (hashes ^ (numbers >> np.uint64(shift) & np.uint64(255))) * np.uint64(0x100000001B3)
    places = hashes * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(64 - 12)
    tokens = [int(number).to_bytes(3, "big") for number in numbers[places == 7][:2048]]
    assert len(tokens) > 1500
    settings, _, merges = parts("wordpiece")
    with pytest.raises(ArtifactError, match=r"too many tokens or merges have the same hash \(token or merge 10"):
        Tokenizer({**settings, "model_tokens": len(tokens)}, tokens, merges)


def test_nothing_heavy_is_imported(parts: Callable[[str], Parts], tmp_path: Path) -> None:
    code = "import json, sys; import lilliput.text; print(json.dumps(sorted(sys.modules)))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    modules = set(json.loads(output))
    assert "numpy" in modules
    assert modules.isdisjoint({"torch", "tokenizers", "transformers", "pydantic", "regex"})
