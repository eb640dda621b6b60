"""Small tokenizers, trained by the package `tokenizers` on real lines, in its form and in ours.

lines.txt: synopses and lines of Debian's package descriptions (Translation-en, -de and -fr of bookworm), drawn at
random, half of them with characters beyond ASCII.
"""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Reference
from tokenizers import models, normalizers, pre_tokenizers, processors, trainers

from lilliput.text import Tokenizer
from lilliput.text.huggingface import read_tokenizer

Spec = dict[str, Any]
Pair = tuple[Tokenizer, Reference]

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ROBERTA = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


@pytest.fixture(scope="session")
def lines() -> list[str]:
    return Path(__file__).with_name("lines.txt").read_text(encoding="utf-8").splitlines()


@pytest.fixture(scope="session")
def wordpiece(lines: list[str]) -> Spec:
    """The tokenizer.json of an uncased BERT of 2,000 tokens."""
    tokenizer = Reference(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator(
        lines, trainers.WordPieceTrainer(vocab_size=2000, special_tokens=SPECIAL, show_progress=False)
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    spec: Spec = json.loads(tokenizer.to_str())
    return spec


@pytest.fixture(scope="session")
def byte_level_bpe(lines: list[str]) -> Spec:
    """The tokenizer.json of a RoBERTa of 2,000 tokens."""
    tokenizer = Reference(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        special_tokens=ROBERTA,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    spec: Spec = json.loads(tokenizer.to_str())
    mask = next(token for token in spec["added_tokens"] if token["content"] == "<mask>")
    mask["lstrip"] = True
    return spec


@pytest.fixture(scope="session")
def specs(wordpiece: Spec, byte_level_bpe: Spec) -> dict[str, Spec]:
    return {"wordpiece": wordpiece, "byte_level_bpe": byte_level_bpe}


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Spec], Path]:
    """Write a tokenizer.json; gives its folder."""

    def write(spec: Spec) -> Path:
        folder = tmp_path_factory.mktemp("tokenizer")
        (folder / "tokenizer.json").write_text(json.dumps(spec), encoding="utf-8")
        return folder

    return write


@pytest.fixture(scope="session")
def open_both(folder_of: Callable[[Spec], Path]) -> Callable[[Spec], Pair]:
    """A tokenizer.json as ours and as theirs."""

    def both(spec: Spec) -> Pair:
        folder = folder_of(spec)
        theirs = Reference.from_file(str(folder / "tokenizer.json"))
        theirs.no_padding()
        theirs.no_truncation()
        return Tokenizer(*read_tokenizer(folder)), theirs

    return both


@pytest.fixture(scope="session")
def with_added() -> Callable[..., Spec]:
    """A copy of a tokenizer.json with one more added token; flags as there."""

    def add(spec: Spec, content: str, **flags: bool) -> Spec:
        spec = copy.deepcopy(spec)
        added = {token["content"]: token["id"] for token in spec["added_tokens"]}
        known = {**spec["model"]["vocab"], **added}
        token = {"id": known.get(content, len(known)), "content": content, "special": False}
        off = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        spec["added_tokens"].append({**token, **off, **flags})
        return spec

    return add
