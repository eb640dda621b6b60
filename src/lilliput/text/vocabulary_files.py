"""Tokenizers of before tokenizer.json: vocab.txt (BERT), or vocab.json and merges.txt (RoBERTa, GPT-2).

They are turned into what their tokenizer.json would say. The special tokens are those of tokenizer_config.json, or of
special_tokens_map.json, or the defaults of the class; as in the package `transformers`, those that the vocabulary lacks
are added behind it.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lilliput.errors import DataError

# In the order in which missing ones are added.
SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
BERT = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}
ROBERTA = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "sep_token": "</s>",
    "pad_token": "<pad>",
    "cls_token": "<s>",
    "mask_token": "<mask>",
}
GPT2 = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
# tokenizer_class, without "Fast", of a folder with merges -> its special tokens. Without a class it is RoBERTa's.
BYTE_LEVEL_CLASSES = {"RobertaTokenizer": ROBERTA, "GPT2Tokenizer": GPT2}
FLAGS = ("lstrip", "rstrip", "single_word", "normalized")


class Folder:
    """A folder whose files are read where they are.

    Raises:
        DataError: there is no such folder, or, later, a file in it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_dir():
            raise DataError(
                f"{path}: no such folder; give one with tokenizer.json, vocab.txt, or vocab.json and merges.txt"
            )

    def text(self, name: str) -> str | None:
        """The text of a file, its lines ended by a newline; None if there is no such file."""
        path = self.path / name
        if not path.is_file():
            return None
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: cannot be read ({error}); must be UTF-8") from None

    def json(self, name: str) -> dict[str, Any] | None:
        """The object in a JSON file; None if there is no such file."""
        text = self.text(name)
        if text is None:
            return None
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{self.path / name}: no JSON ({error})") from None
        if not isinstance(value, dict):
            raise DataError(f"{self.path / name}: must be a JSON object")
        return value


def from_vocabulary_files(folder: Folder) -> tuple[str, dict[str, Any]]:
    """The name of the folder's vocabulary file, and what a tokenizer.json would say.

    Raises:
        DataError: the files are missing, damaged or of a class that is not known.
    """
    config = folder.json("tokenizer_config.json") or {}
    if (text := folder.text("vocab.txt")) is not None:
        return "vocab.txt", _bert(folder, config, text)
    vocabulary, merges = folder.json("vocab.json"), folder.text("merges.txt")
    if vocabulary is not None and merges is not None:
        return "vocab.json", _byte_level(folder, config, vocabulary, merges)
    raise DataError(
        f"{folder.path}: no tokenizer that works: give tokenizer.json (WordPiece or byte-level BPE), vocab.txt, or "
        "vocab.json and merges.txt"
    )


def _bert(folder: Folder, config: Mapping[str, Any], text: str) -> dict[str, Any]:
    vocabulary: dict[str, int] = {}
    for number, token in enumerate(text.removesuffix("\n").split("\n")):
        if not token or token in vocabulary:
            what = "is there twice" if token else "is empty"
            raise DataError(f"{folder.path / 'vocab.txt'}: line {number + 1}: {token!r} {what}; each line is one token")
        vocabulary[token] = number
    added, names = _special_tokens(folder, config, BERT, vocabulary)
    return {
        "added_tokens": added,
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": config.get("tokenize_chinese_chars", True),
            "strip_accents": config.get("strip_accents"),
            "lowercase": config.get("do_lower_case", True),
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "BertProcessing", "cls": names["cls_token"], "sep": names["sep_token"]},
        "model": {"type": "WordPiece", "unk_token": names["unk_token"][0], "vocab": vocabulary},
    }


def _byte_level(
    folder: Folder, config: Mapping[str, Any], vocabulary: Mapping[str, Any], merges: str
) -> dict[str, Any]:
    name = str(config.get("tokenizer_class") or "RobertaTokenizer").removesuffix("Fast")
    if name not in BYTE_LEVEL_CLASSES:
        raise DataError(
            f"{folder.path / 'tokenizer_config.json'}: tokenizer_class: {name}; without a tokenizer.json those that "
            f"work are {', '.join(BYTE_LEVEL_CLASSES)}"
        )
    added, names = _special_tokens(folder, config, BYTE_LEVEL_CLASSES[name], vocabulary)
    lines = [line for line in merges.split("\n") if line and not line.startswith("#version")]
    around = name == "RobertaTokenizer"
    return {
        "added_tokens": added,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": config.get("add_prefix_space", False)},
        "post_processor": {"type": "RobertaProcessing", "cls": names["cls_token"], "sep": names["sep_token"]}
        if around
        else None,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": lines},
    }


def _special_tokens(
    folder: Folder, config: Mapping[str, Any], defaults: Mapping[str, str], vocabulary: Mapping[str, Any]
) -> tuple[list[dict[str, Any]], dict[str, list[Any]]]:
    """The entries of `added_tokens`, and for each role its token and id."""
    decoder = config.get("added_tokens_decoder")
    if not isinstance(decoder, Mapping | None):
        raise DataError(f"{folder.path / 'tokenizer_config.json'}: added_tokens_decoder: must be an object")
    legacy = folder.json("special_tokens_map.json") or {} if decoder is None else {}
    roles = dict(defaults) | {
        role: value
        for role, value in (*legacy.items(), *config.items())
        if role in SPECIAL_TOKENS and value is not None
    }
    entries: dict[str, dict[str, Any]] = {}
    for token in (*(decoder or {}).values(), *(roles[role] for role in SPECIAL_TOKENS if role in roles)):
        entry = _entry(folder, token)
        entries.setdefault(entry["content"], entry)
    count = len(vocabulary)
    for content, entry in entries.items():
        entry["id"] = vocabulary.get(content, count)
        count += content not in vocabulary
    names = {role: _entry(folder, token)["content"] for role, token in roles.items()}
    return list(entries.values()), {role: [name, entries[name]["id"]] for role, name in names.items()}


def _entry(folder: Folder, token: Any) -> dict[str, Any]:
    """A special token as `added_tokens` has it; it may be written as a string, or as an object with flags."""
    if isinstance(token, str) and token:
        return {"content": token, "special": True}
    if isinstance(token, Mapping) and isinstance(token.get("content"), str) and token["content"]:
        return {"content": token["content"], "special": token.get("special", True)} | {
            flag: token.get(flag, False) for flag in FLAGS
        }
    raise DataError(
        f"{folder.path}: tokenizer_config.json: a special token is {token!r}; must be a string or have a content"
    )
