"""Every code point once: what the normalizer makes of it, and where the two kinds split words at it."""

import itertools
import unicodedata
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tokenizers import Tokenizer as Reference
from tokenizers import normalizers

from lilliput.text import Tokenizer, _text

Spec = dict[str, Any]
OpenBoth = Callable[[Spec], tuple[Tokenizer, Reference]]

CODE_POINTS = [code for code in range(0x110000) if not 0xD800 <= code < 0xE000]
NO_LIMIT = 10**7
# Surrounded by marks of three classes that stay and one that goes, so that order and what ends a run of marks show.
SURROUNDED = "a\u302e{}\u1b44\u0301\u08d4"


def chunks(size: int) -> Iterator[list[str]]:
    for start in range(0, len(CODE_POINTS), size):
        yield [chr(code) for code in CODE_POINTS[start : start + size]]


def ours(clean_text: bool, handle_chinese_chars: bool, strip_accents: bool, lowercase: bool) -> Callable[[str], str]:
    settings = _text.Settings.wordpiece(
        clean_text=clean_text,
        handle_chinese_chars=handle_chinese_chars,
        strip_accents=strip_accents,
        lowercase=lowercase,
        unk=0,
        max_input_chars_per_word=100,
    )
    return lambda text: settings.normalize(text.encode()).decode()


FLAGS = (
    (True, True, True, True),
    (True, False, False, False),
    (False, True, False, False),
    (False, False, True, False),
    (False, False, False, True),
)


@pytest.mark.parametrize("flags", FLAGS)
def test_normalizer_on_every_code_point(flags: tuple[bool, bool, bool, bool]) -> None:
    mine, theirs = ours(*flags), normalizers.BertNormalizer(*flags)
    wrong = []
    for chunk in chunks(512):
        text = "x".join(chunk)
        if mine(text) != theirs.normalize_str(text):
            wrong += [hex(ord(char)) for char in chunk if mine(char) != theirs.normalize_str(char)]
    assert wrong == []


def test_marks_are_put_in_order() -> None:
    """Whatever has a combining class in any version of Unicode, and all else below U+3100, among other marks."""
    mine, theirs = ours(False, False, True, False), normalizers.BertNormalizer(False, False, True, False)
    codes = {code for code in CODE_POINTS if unicodedata.combining(chr(code))} | set(range(0x3100))
    codes |= {0x1D15E, 0x1D15F, 0x1D160, 0x1D161, 0x1D162, 0x1D163, 0x1D164, 0x1D1BB, 0x1D1BC}
    texts = [SURROUNDED.format(chr(code)) for code in sorted(codes)]
    assert len(texts) > 12_000
    assert [text for text in texts if mine(text) != theirs.normalize_str(text)] == []
    marks = "\u302e\u1b44\u08d4\U00011446\U0001d16d\u0301\u0b56"
    for order in itertools.permutations(marks, 4):
        text = "a" + "".join(order) + "b" + "".join(order)
        assert mine(text) == theirs.normalize_str(text)


def test_a_long_run_of_marks_is_sorted() -> None:
    mine, theirs = ours(True, True, True, True), normalizers.BertNormalizer()
    text = "a" + "\u302e\u1b44\u0301\U0001d160" * 2000
    assert mine(text) == theirs.normalize_str(text)


def test_no_character_grows_more_than_threefold() -> None:
    """What the core's memory is planned for."""
    fence = "\U0010ffff"  # no character, and always left alone
    for flags in FLAGS:
        mine = ours(*flags)
        for chunk in chunks(2048):
            results = mine(fence.join(char for char in chunk if char != fence)).split(fence)
            sizes = [(len(before.encode()), len(after.encode())) for before, after in zip(chunk, results, strict=False)]
            assert len(results) in (len(chunk), len(chunk) - 1)
            assert all(after <= 3 * before for before, after in sizes)


def ids_of(pair: tuple[Tokenizer, Reference], text: str) -> tuple[list[int], list[int]]:
    mine, theirs = pair
    return mine.encode(text, NO_LIMIT).tolist(), theirs.encode_batch_fast([text])[0].ids


def test_bert_splits_at_every_code_point(open_both: OpenBoth) -> None:
    """Between two a's a character is white space, a word by itself, or part of a word, which is unknown then. Untouched
    by the normalizer."""
    off = dict.fromkeys(("clean_text", "handle_chinese_chars", "strip_accents", "lowercase"), False)
    spec = {
        "added_tokens": [],
        "normalizer": {"type": "BertNormalizer", **off},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "model": {
            "type": "WordPiece",
            "unk_token": "?",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 9,
            "vocab": {"?": 0, "a": 1, "##a": 2, ".": 3},
        },
    }
    pair = open_both(spec)
    for chunk in chunks(2048):
        mine, theirs = ids_of(pair, " ".join(f"a{char}a" for char in chunk))
        if mine != theirs:
            wrong = [char for char in chunk if len(set(map(tuple, ids_of(pair, f"a{char}a")))) > 1]
            raise AssertionError([hex(ord(char)) for char in wrong])


def test_gpt2_splits_at_every_code_point(byte_level_bpe: Spec, open_both: OpenBoth) -> None:
    """A letter, a number or white space merges with the one before it, being in one word; <|> keeps cases apart."""
    alphabet = [token for token in byte_level_bpe["model"]["vocab"] if len(token) == 1]
    starts = [byte_level(byte) for byte in (*range(0x80), *range(0xC2, 0xF5))]
    merges = [(first, second) for first in ("a", "1", byte_level(ord("\t"))) for second in starts]
    vocabulary = {token: index for index, token in enumerate([*alphabet, *(a + b for a, b in merges)])}
    special = {"id": len(vocabulary), "content": "<|>", "special": True}
    spec = {
        "added_tokens": [{**special, **dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)}],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "vocab": vocabulary, "merges": merges},
    }
    pair = open_both(spec)
    for chunk in chunks(64):
        mine, theirs = ids_of(pair, "".join(f"a{char}1{char}\t{char}<|>" for char in chunk))
        if mine != theirs:
            wrong = [char for char in chunk if len(set(map(tuple, ids_of(pair, f"a{char}1{char}\t{char}")))) > 1]
            raise AssertionError([hex(ord(char)) for char in wrong])


def byte_level(byte: int) -> str:
    """GPT-2's printable character for a byte."""
    prints = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return chr(byte) if byte in prints else chr(0x100 + byte - sum(other < byte for other in prints))


def test_a_token_that_stands_alone_before_every_code_point(
    wordpiece: Spec, open_both: OpenBoth, with_added: Callable[..., Spec]
) -> None:
    pair = open_both(with_added(wordpiece, "<m>", single_word=True))
    for chunk in chunks(512):
        mine, theirs = ids_of(pair, "".join(f".<m>{char}" for char in chunk))
        if mine != theirs:
            raise AssertionError([hex(ord(char)) for char in chunk])


def test_tokens_behind_characters_of_every_length(
    wordpiece: Spec, open_both: OpenBoth, with_added: Callable[..., Spec]
) -> None:
    """One that stands alone, and one that swallows the white space around it."""
    spec = with_added(with_added(wordpiece, "<m>", single_word=True), "<w>", lstrip=True, rstrip=True)
    spec["normalizer"]["clean_text"] = False
    pair = open_both(spec)
    codes = [*range(0x3100), *CODE_POINTS[0x3100::61]]
    for start in range(0, len(codes), 32):
        text = "".join(f".{chr(code)}<m>.{chr(code)}<w>{chr(code)}" for code in codes[start : start + 32])
        mine, theirs = ids_of(pair, text)
        assert mine == theirs, hex(codes[start])
