"""`read_tokenizer`: every form of a folder, and every refusal with its message."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lilliput.errors import DataError
from lilliput.text import Tokenizer
from lilliput.text.huggingface import read_tokenizer

Spec = dict[str, Any]
BERT_WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "##b")


def write(folder: Path, **files: Any) -> Path:
    """`vocab_txt="..."` writes vocab.txt; what is no string is written as JSON."""
    for name, content in files.items():
        stem, _, suffix = name.rpartition("_")
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / f"{stem}.{suffix}").write_text(text, encoding="utf-8", newline="")
    return folder


def test_settings_of_a_wordpiece_tokenizer(wordpiece: Spec, tmp_path: Path) -> None:
    settings, vocabulary, merges = read_tokenizer(write(tmp_path, tokenizer_json=wordpiece))
    flags = dict.fromkeys(("normalized", "lstrip", "rstrip", "single_word"), False)
    assert settings == {
        "kind": "wordpiece",
        "model_tokens": 2000,
        "prefix": [2],
        "suffix": [3],
        "added": [{"id": index, **flags} for index in range(5)],
        "clean_text": True,
        "handle_chinese_chars": True,
        "lowercase": True,
        "strip_accents": True,
        "unk": 1,
        "max_input_chars_per_word": 100,
    }
    assert settings == json.loads(json.dumps(settings))
    assert (len(vocabulary), vocabulary[1], merges.shape, str(merges.dtype)) == (2000, b"[UNK]", (0, 2), "uint32")


def test_settings_of_a_byte_level_tokenizer(byte_level_bpe: Spec, tmp_path: Path) -> None:
    settings, vocabulary, merges = read_tokenizer(str(write(tmp_path, tokenizer_json=byte_level_bpe)))
    assert {name: settings[name] for name in settings if name != "added"} == {
        "kind": "byte_level_bpe",
        "model_tokens": 2000,
        "prefix": [0],
        "suffix": [2],
        "add_prefix_space": False,
        "use_regex": True,
    }
    assert [(token["id"], token["lstrip"]) for token in settings["added"]] == [
        *((i, False) for i in range(4)),
        (4, True),
    ]
    left, right = merges[0].tolist()
    assert vocabulary[left] + vocabulary[right] in vocabulary
    assert len(merges) == len(byte_level_bpe["model"]["merges"])


@pytest.mark.parametrize(
    ("strip_accents", "lowercase", "expected"),
    [(None, True, True), (None, False, False), (True, False, True), (False, True, False)],
)
def test_accents_go_where_case_does(
    strip_accents: bool | None, lowercase: bool, expected: bool, wordpiece: Spec, tmp_path: Path
) -> None:
    spec = copy.deepcopy(wordpiece)
    spec["normalizer"].update(strip_accents=strip_accents, lowercase=lowercase)
    assert read_tokenizer(write(tmp_path, tokenizer_json=spec))[0]["strip_accents"] is expected


def test_older_files_do_not_name_the_model(specs: dict[str, Spec], tmp_path: Path) -> None:
    """And write merges as strings; padding and truncation are passed over."""
    for kind, spec in specs.items():
        expected = read_tokenizer(write(tmp_path, tokenizer_json=spec))
        older = copy.deepcopy(spec)
        del older["model"]["type"]
        if "merges" in older["model"]:
            older["model"]["merges"] = [" ".join(merge) for merge in older["model"]["merges"]]
        older["truncation"] = {"max_length": 3, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
        found = read_tokenizer(write(tmp_path, tokenizer_json=older))
        assert found[:2] == expected[:2], kind
        np.testing.assert_array_equal(found[2], expected[2])


def test_tokens_behind_the_model(wordpiece: Spec, with_added: Callable[..., Spec], tmp_path: Path) -> None:
    spec = with_added(with_added(wordpiece, "zzz", normalized=True), "yyy", special=True)
    settings, vocabulary, merges = read_tokenizer(write(tmp_path, tokenizer_json=spec))
    assert vocabulary[2000:] == [b"zzz", b"yyy"]
    assert settings["model_tokens"] == 2000
    assert [token["id"] for token in settings["added"]] == [0, 1, 2, 3, 4, 2001, 2000]  # the special ones first
    ids = Tokenizer(settings, vocabulary, merges).encode("zzz yyy", 9).tolist()
    assert ids == [2, 2000, 2001, 3]


def test_vocab_txt(tmp_path: Path) -> None:
    config = {"do_lower_case": False, "tokenize_chinese_chars": False, "strip_accents": True, "model_max_length": 512}
    for end in ("", "\n", "\r\n"):
        text = (end or "\n").join(BERT_WORDS) + end
        folder = write(tmp_path, vocab_txt=text, tokenizer_config_json=config)
        settings, vocabulary, merges = read_tokenizer(folder)
        assert vocabulary == [word.encode() for word in BERT_WORDS]
        assert {name: settings[name] for name in ("prefix", "suffix", "unk")} == {
            "prefix": [2],
            "suffix": [3],
            "unk": 1,
        }
        assert [settings["lowercase"], settings["strip_accents"]] == [False, True]
        assert [settings["clean_text"], settings["handle_chinese_chars"]] == [True, False]
        assert Tokenizer(settings, vocabulary, merges).encode("abb B [MASK]", 9).tolist() == [2, 5, 7, 7, 1, 4, 3]


def test_vocab_txt_alone_and_with_other_special_tokens(tmp_path: Path) -> None:
    """Those of tokenizer_config.json come before those of special_tokens_map.json; missing ones are added behind."""
    settings, vocabulary, _ = read_tokenizer(write(tmp_path, vocab_txt="[UNK]\n[CLS]\n[SEP]\na"))
    assert settings["lowercase"] is settings["strip_accents"] is True
    assert vocabulary[4:] == [b"[PAD]", b"[MASK]"]
    write(tmp_path, special_tokens_map_json={"cls_token": {"content": "a", "lstrip": True}, "sep_token": "x"})
    write(tmp_path, tokenizer_config_json={"sep_token": "[SEP]", "pad_token": None, "mask_token": "<m>"})
    settings, vocabulary, _ = read_tokenizer(tmp_path)
    assert [settings["prefix"], settings["suffix"]] == [[3], [2]]
    assert [token["lstrip"] for token in settings["added"] if token["id"] == 3] == [True]
    assert vocabulary[4:] == [b"[PAD]", b"<m>"]
    decoder = {"3": {"content": "a", "lstrip": False, "rstrip": True, "normalized": True, "single_word": False}}
    write(tmp_path, tokenizer_config_json={"added_tokens_decoder": decoder, "cls_token": "[CLS]"})
    settings, vocabulary, _ = read_tokenizer(tmp_path)
    assert [settings["prefix"], settings["suffix"]] == [[1], [2]]
    assert [(token["rstrip"], token["normalized"]) for token in settings["added"] if token["id"] == 3] == [(True, True)]


@pytest.fixture
def byte_level_files(byte_level_bpe: Spec, tmp_path: Path) -> Path:
    lines = ["#version: 0.2", *(" ".join(merge) for merge in byte_level_bpe["model"]["merges"])]
    return write(tmp_path, vocab_json=byte_level_bpe["model"]["vocab"], merges_txt="\n".join(lines) + "\n")


def test_vocab_json_and_merges_txt(byte_level_files: Path, byte_level_bpe: Spec, tmp_path_factory: Any) -> None:
    expected = read_tokenizer(write(tmp_path_factory.mktemp("json"), tokenizer_json=byte_level_bpe))
    for config in ({}, {"tokenizer_class": "RobertaTokenizerFast", "add_prefix_space": True}):
        settings, vocabulary, merges = read_tokenizer(write(byte_level_files, tokenizer_config_json=config))
        assert vocabulary == expected[1]
        np.testing.assert_array_equal(merges, expected[2])
        assert settings["add_prefix_space"] is ("add_prefix_space" in config)
        for name in ("kind", "model_tokens", "prefix", "suffix", "use_regex"):
            assert settings[name] == expected[0][name]
        assert sorted(token["id"] for token in settings["added"]) == [0, 1, 2, 3, 4]


def test_gpt2_adds_nothing_around_a_text(byte_level_files: Path) -> None:
    settings, vocabulary, _ = read_tokenizer(
        write(byte_level_files, tokenizer_config_json={"tokenizer_class": "GPT2Tokenizer"})
    )
    assert (settings["prefix"], settings["suffix"]) == ([], [])
    assert vocabulary[2000:] == [b"<|endoftext|>"]


def unigram(spec: Spec) -> None:
    spec["model"] = {"type": "Unigram", "unk_id": 1, "vocab": [["a", -1.0]]}


def set_at(*path: Any) -> Callable[[Spec], None]:
    """Set the value (the last) at a place in the spec."""

    def change(spec: Spec) -> None:
        *places, last, value = path
        for place in places:
            spec = spec[place]
        spec[last] = value

    return change


WORDPIECE_REFUSALS: list[tuple[Callable[[Spec], Any], str]] = [
    (unigram, "model: Unigram; those that work are WordPiece and byte-level BPE"),
    (set_at("model", {"type": "WordLevel"}), "model: WordLevel; those that work are WordPiece and byte-level BPE"),
    (set_at("model", {}), "model: None; those that work are WordPiece and byte-level BPE"),
    (set_at("model", 3), "model: missing or no object"),
    (
        set_at("normalizer", {"type": "Lowercase"}),
        "normalizer: Lowercase; with a model of kind wordpiece it must be BertNormalizer",
    ),
    (set_at("normalizer", None), "normalizer: None; with a model of kind wordpiece it must be BertNormalizer"),
    (
        set_at("pre_tokenizer", {"type": "Whitespace"}),
        "pre_tokenizer: Whitespace; with a model of kind wordpiece it must be BertPreTokenizer",
    ),
    (
        set_at("post_processor", {"type": "Own"}),
        "post_processor: Own; those that work are TemplateProcessing, BertProcessing, RobertaProcessing, ByteLevel",
    ),
    (set_at("post_processor", "single", []), "post_processor: single: the text is there 0 times; must be once"),
    (
        set_at("post_processor", "special_tokens", "[SEP]", "ids", [2000]),
        "post_processor: id: 2000; the vocabulary has 2000 tokens",
    ),
    (set_at("post_processor", "special_tokens", {}), "[CLS]: missing or no object"),
    (set_at("post_processor", {"type": "BertProcessing"}), "BertProcessing: cls: missing or no list"),
    (
        set_at("post_processor", {"type": "Sequence", "processors": [{"type": "BertProcessing"}] * 2}),
        "post_processor: Sequence: only one of its processors may be another than ByteLevel",
    ),
    (set_at("model", "continuing_subword_prefix", "@@"), "model: continuing_subword_prefix: '@@'; must be '##'"),
    (set_at("model", "unk_token", "?!"), "model: unk_token: '?!'; must be in the model's vocabulary"),
    (set_at("model", "max_input_chars_per_word", 1.5), "model: max_input_chars_per_word: 1.5; must be an integer"),
    (
        set_at("model", "vocab", "[UNK]", 2000),
        "model: vocab: '[CLS]' has the id 2, not 1; each must be there, and once",
    ),
    (set_at("model", "vocab", "[UNK]", -1), "model: vocab: '[UNK]': -1; must be an integer of at least 0"),
    (set_at("model", "vocab", {}), "model: vocab: no tokens; at least 1 is needed"),
    (
        set_at("model", "vocab", "", 2000),
        "model: vocab: the token of id 2000 is empty; must have at least one character",
    ),
    (set_at("model", "vocab", "\ud800", 2000), "model: vocab: '\\ud800' has half of a surrogate pair; must be text"),
    (set_at("added_tokens", [3]), "added_tokens: must be a list of objects"),
    (set_at("added_tokens", 0, "content", ""), "added_tokens: content: ''; must be a string of at least one character"),
    (set_at("added_tokens", 0, "content", "[SEP]"), "added_tokens: content: '[SEP]'; must be a string of at least one"),
    (set_at("added_tokens", 0, "id", 7), "added_tokens: '[PAD]': id: 7; by the vocabulary it must be 0"),
    (set_at("added_tokens", 0, "content", "zzz"), "added_tokens: 'zzz': id: 0; by the vocabulary it must be 2000"),
    (set_at("added_tokens", 0, "lstrip", "no"), "lstrip: 'no'; must be true or false"),
    (set_at("normalizer", "lowercase", None), "lowercase: None; must be true or false"),
]
BPE_REFUSALS: list[tuple[Callable[[Spec], Any], str]] = [
    (set_at("model", "dropout", 0.1), "model: dropout: 0.1; must be 0.0"),
    (set_at("model", "continuing_subword_prefix", "##"), "model: continuing_subword_prefix: '##'; must be \"\""),
    (set_at("model", "end_of_word_suffix", "</w>"), "model: end_of_word_suffix: '</w>'; must be \"\""),
    (set_at("model", "ignore_merges", True), "model: ignore_merges: True; must be false"),
    (
        set_at("normalizer", {"type": "NFC"}),
        "normalizer: NFC; with a model of kind byte_level_bpe it must be None",
    ),
    (
        set_at("pre_tokenizer", {"type": "Metaspace"}),
        "pre_tokenizer: Metaspace; with a model of kind byte_level_bpe it must be ByteLevel",
    ),
    (set_at("model", "merges", 0, "a b c"), "model: merges[0]: 'a b c'; must be two tokens of the vocabulary"),
    (set_at("model", "merges", 0, ["a"]), "model: merges[0]: ['a']; must be two tokens of the vocabulary"),
    (set_at("model", "merges", 0, ["a", "no such"]), "model: merges[0]: ['a', 'no such']; must be two tokens"),
    (set_at("model", "merges", 0, [["a"], "b"]), "model: merges[0]: [['a'], 'b']; must be two tokens"),
    (set_at("model", "merges", "a b"), "model: merges: missing or no list"),
]


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [("wordpiece", *case) for case in WORDPIECE_REFUSALS] + [("byte_level_bpe", *case) for case in BPE_REFUSALS],
)
def test_refused_parts(
    kind: str, change: Callable[[Spec], Any], message: str, specs: dict[str, Spec], tmp_path: Path
) -> None:
    spec = copy.deepcopy(specs[kind])
    change(spec)
    with pytest.raises(DataError) as caught:
        read_tokenizer(write(tmp_path, tokenizer_json=spec))
    assert str(caught.value).startswith(f"{tmp_path / 'tokenizer.json'}: {message}")
    assert "\n" not in str(caught.value)


def test_refused_folders(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"nowhere: no such folder; give one with tokenizer.json, vocab.txt, or vocab.json"
    ):
        read_tokenizer(tmp_path / "nowhere")
    with pytest.raises(
        DataError, match=r"no tokenizer that works: give tokenizer.json \(WordPiece or byte-level BPE\)"
    ):
        read_tokenizer(tmp_path)
    with pytest.raises(DataError, match="no tokenizer that works"):  # ALBERT's
        read_tokenizer(write(tmp_path, spiece_model="binary"))
    with pytest.raises(DataError, match="no tokenizer that works"):
        read_tokenizer(write(tmp_path, vocab_json={"a": 0}))


@pytest.mark.parametrize("text", ["{", "[" * 100_000, "", "[]", "3"])
def test_refused_json(text: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"tokenizer.json: (no JSON \(|must be a JSON object)"):
        read_tokenizer(write(tmp_path, tokenizer_json=text))


def test_refused_vocabulary_files(byte_level_files: Path, tmp_path_factory: Any) -> None:
    folder = tmp_path_factory.mktemp("bert")
    for text, message in (
        ("a\n\nb\n", "line 2: '' is empty; each line is one token"),
        ("a\nb\na\n", "line 3: 'a' is there twice; each line is one token"),
    ):
        with pytest.raises(DataError, match=message):
            read_tokenizer(write(folder, vocab_txt=text))
    with pytest.raises(DataError, match=r"model: unk_token: '\[UNK\]'; must be in the model's vocabulary"):
        read_tokenizer(write(folder, vocab_txt="[CLS]\n[SEP]\n", tokenizer_config_json={}))
    (folder / "vocab.txt").write_bytes(b"\xff\n")
    with pytest.raises(DataError, match=r"vocab.txt: cannot be read \(.*\); must be UTF-8"):
        read_tokenizer(folder)
    write(folder, vocab_txt="[UNK]\n")
    for config, message in (
        ({"cls_token": 3}, "a special token is 3; must be a string or have a content"),
        ({"added_tokens_decoder": []}, "added_tokens_decoder: must be an object"),
        ({"do_lower_case": "yes"}, "lowercase: 'yes'; must be true or false"),
    ):
        with pytest.raises(DataError, match=message):
            read_tokenizer(write(folder, tokenizer_config_json=config))
    with pytest.raises(
        DataError, match=r"tokenizer_class: CLIPTokenizer; without a tokenizer\.json those that work are"
    ):
        read_tokenizer(write(byte_level_files, tokenizer_config_json={"tokenizer_class": "CLIPTokenizer"}))
