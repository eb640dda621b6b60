"""From a Hugging Face folder to what `Tokenizer` takes: tokenizer.json, or the vocabulary files that came before it.

A tokenizer.json is what the package `tokenizers` writes. The parts that `Tokenizer` computes are accepted, all others
are refused by name. Truncation and padding in the file do not count: results are as long as the caller allows, and
nothing is padded.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lilliput.errors import DataError
from lilliput.text.vocabulary_files import Folder, from_vocabulary_files

ADDED_FLAGS = ("normalized", "lstrip", "rstrip", "single_word")
# Kind -> the type that each part must have.
PARTS: dict[str, dict[str, str | None]] = {
    "wordpiece": {"normalizer": "BertNormalizer", "pre_tokenizer": "BertPreTokenizer"},
    "byte_level_bpe": {"normalizer": None, "pre_tokenizer": "ByteLevel"},
}
MODELS = {"WordPiece": "wordpiece", "BPE": "byte_level_bpe"}
POST_PROCESSORS = ("TemplateProcessing", "BertProcessing", "RobertaProcessing", "ByteLevel")
# Options of BPE that change its result, and the values that leave it as it is.
BPE_OPTIONS: dict[str, tuple[Any, ...]] = {
    "dropout": (None, 0, 0.0),
    "continuing_subword_prefix": (None, ""),
    "end_of_word_suffix": (None, ""),
    "ignore_merges": (None, False),
}


def read_tokenizer(folder: str | Path) -> tuple[dict[str, Any], list[bytes], NDArray[np.uint32]]:
    """Read the tokenizer of a Hugging Face folder.

    Args:
        folder: has tokenizer.json (which is preferred); or vocab.txt (BERT); or vocab.json and merges.txt (RoBERTa,
            GPT-2). Beside the latter, tokenizer_config.json and special_tokens_map.json are read where they are.

    Returns:
        Settings, vocabulary and merges (uint32 [n, 2]), as `Tokenizer` takes them.

    Raises:
        DataError: there is no such folder or file, a file cannot be read or is damaged, or the tokenizer has a part
            that does not work here; the message names it, and those that do.
    """
    files = Folder(Path(folder))
    name, spec = "tokenizer.json", files.json("tokenizer.json")
    if spec is None:
        name, spec = from_vocabulary_files(files)
    try:
        return _parsed(spec)
    except DataError as error:
        raise DataError(f"{files.path / name}: {error}") from None


def _parsed(spec: Mapping[str, Any]) -> tuple[dict[str, Any], list[bytes], NDArray[np.uint32]]:
    model = _part(spec, "model")
    kind = _kind(model)
    for name, wanted in PARTS[kind].items():
        found = None if spec.get(name) is None else str(_type(spec[name]))
        if found != wanted:
            raise DataError(f"{name}: {found}; with a model of kind {kind} it must be {wanted}")
    ids = _vocabulary(model)
    model_tokens = len(ids)
    added = _added(spec.get("added_tokens") or [], ids)
    prefix, suffix = _around(spec.get("post_processor"), len(ids))
    settings: dict[str, Any] = {
        "kind": kind,
        "model_tokens": model_tokens,
        "prefix": prefix,
        "suffix": suffix,
        "added": added,
    }
    if kind == "wordpiece":
        settings |= _wordpiece(model, _part(spec, "normalizer"), ids, model_tokens)
    else:
        settings |= _byte_level(model, _part(spec, "pre_tokenizer"))
    merges = _merges(model, ids) if kind == "byte_level_bpe" else []
    return settings, _as_bytes(ids), np.array(merges, np.uint32).reshape(-1, 2)


def _kind(model: Mapping[str, Any]) -> str:
    """The kind of a model; files of older versions do not name its type."""
    found = _type(model) or (
        "WordPiece" if "max_input_chars_per_word" in model else "BPE" if "merges" in model else None
    )
    if found not in MODELS:
        raise DataError(f"model: {found}; those that work are WordPiece and byte-level BPE")
    return MODELS[found]


def _wordpiece(
    model: Mapping[str, Any], normalizer: Mapping[str, Any], ids: Mapping[str, int], model_tokens: int
) -> dict[str, Any]:
    prefix = model.get("continuing_subword_prefix", "##")
    if prefix != "##":
        raise DataError(f"model: continuing_subword_prefix: {prefix!r}; must be '##'")
    unk = model.get("unk_token", "[UNK]")
    if not isinstance(unk, str) or ids.get(unk, model_tokens) >= model_tokens:
        raise DataError(f"model: unk_token: {unk!r}; must be in the model's vocabulary")
    flags = {name: _flag(normalizer, name, True) for name in ("clean_text", "handle_chinese_chars", "lowercase")}
    # Where nothing is said, accents go where case does.
    strip = flags["lowercase"] if normalizer.get("strip_accents") is None else _flag(normalizer, "strip_accents", True)
    longest = _integer(model.get("max_input_chars_per_word", 100), "model: max_input_chars_per_word")
    return {**flags, "strip_accents": strip, "unk": ids[unk], "max_input_chars_per_word": longest}


def _byte_level(model: Mapping[str, Any], pre_tokenizer: Mapping[str, Any]) -> dict[str, Any]:
    for name, allowed in BPE_OPTIONS.items():
        if model.get(name) not in allowed:
            raise DataError(f"model: {name}: {model[name]!r}; must be {json.dumps(allowed[-1])}")
    return {name: _flag(pre_tokenizer, name, True) for name in ("add_prefix_space", "use_regex")}


def _vocabulary(model: Mapping[str, Any]) -> dict[str, int]:
    """Token -> id, in the order of ids, which must be 0, 1, 2 ..."""
    vocabulary = _part(model, "vocab")
    ids = {token: _integer(number, f"model: vocab: {token!r}") for token, number in vocabulary.items()}
    ordered = dict(sorted(ids.items(), key=lambda pair: pair[1]))
    for expected, (token, number) in enumerate(ordered.items()):
        if number != expected:
            raise DataError(
                f"model: vocab: {token!r} has the id {number}, not {expected}; each must be there, and once"
            )
    if not ordered:
        raise DataError("model: vocab: no tokens; at least 1 is needed")
    return ordered


def _added(tokens: Any, ids: dict[str, int]) -> list[dict[str, Any]]:
    """The added tokens, the special ones first, as `tokenizers` ranks them. Those that the model lacks extend `ids`."""
    if not isinstance(tokens, list) or not all(isinstance(token, Mapping) for token in tokens):
        raise DataError("added_tokens: must be a list of objects")
    entries: dict[str, dict[str, Any]] = {}
    for token in sorted(tokens, key=lambda token: not _flag(token, "special", False)):
        content = token.get("content")
        if not isinstance(content, str) or not content or content in entries:
            raise DataError(
                f"added_tokens: content: {content!r}; must be a string of at least one character, and no two alike"
            )
        number = _integer(token.get("id"), f"added_tokens: {content!r}: id")
        entries[content] = {"id": number, **{name: _flag(token, name, False) for name in ADDED_FLAGS}}
    for content, entry in sorted(entries.items(), key=lambda pair: pair[1]["id"]):
        if ids.setdefault(content, len(ids)) != entry["id"]:
            raise DataError(
                f"added_tokens: {content!r}: id: {entry['id']}; by the vocabulary it must be {ids[content]}"
            )
    return list(entries.values())


def _around(processor: Any, num_tokens: int) -> tuple[list[int], list[int]]:
    """The ids before and behind a single text."""
    kind = _type(processor)
    if kind == "Sequence":
        parts = [part for part in _list(processor, "processors", "post_processor") if _type(part) != "ByteLevel"]
        if len(parts) > 1:
            raise DataError("post_processor: Sequence: only one of its processors may be another than ByteLevel")
        return _around(parts[0] if parts else None, num_tokens)
    if kind is None or kind == "ByteLevel":
        return [], []
    if kind == "TemplateProcessing":
        prefix, suffix = _template(processor)
    elif kind in ("BertProcessing", "RobertaProcessing"):
        prefix, suffix = [_list(processor, "cls", kind)[-1]], [_list(processor, "sep", kind)[-1]]
    else:
        raise DataError(f"post_processor: {kind}; those that work are {', '.join(POST_PROCESSORS)}")
    for number in (*prefix, *suffix):
        if _integer(number, "post_processor: id") >= num_tokens:
            raise DataError(f"post_processor: id: {number}; the vocabulary has {num_tokens} tokens")
    return prefix, suffix


def _template(processor: Mapping[str, Any]) -> tuple[list[Any], list[Any]]:
    """The ids of a template's special tokens before and behind its `A`, which must be there once."""
    sides: list[list[Any]] = [[]]
    specials = _part(processor, "special_tokens")
    for piece in _list(processor, "single", "TemplateProcessing"):
        special = piece.get("SpecialToken") if isinstance(piece, Mapping) else None
        if isinstance(special, Mapping):
            sides[-1] += _list(_part(specials, str(special.get("id"))), "ids", "special_tokens")
        else:
            sides.append([])
    if len(sides) != 2:
        raise DataError(f"post_processor: single: the text is there {len(sides) - 1} times; must be once")
    return sides[0], sides[1]


def _merges(model: Mapping[str, Any], ids: Mapping[str, int]) -> list[tuple[int, int]]:
    """Pairs of ids; a merge is written "a b", or ["a", "b"]."""
    pairs = []
    for index, merge in enumerate(_list(model, "merges", "model")):
        parts = merge.split(" ") if isinstance(merge, str) else merge
        if (
            not isinstance(parts, list)
            or len(parts) != 2
            or not all(isinstance(part, str) and part in ids for part in parts)
        ):
            raise DataError(f"model: merges[{index}]: {merge!r}; must be two tokens of the vocabulary")
        pairs.append((ids[parts[0]], ids[parts[1]]))
    return pairs


def _as_bytes(ids: Mapping[str, int]) -> list[bytes]:
    tokens = []
    for token in ids:
        try:
            tokens.append(token.encode())
        except UnicodeEncodeError:
            raise DataError(f"model: vocab: {token!r} has half of a surrogate pair; must be text") from None
        if not token:
            raise DataError(f"model: vocab: the token of id {ids[token]} is empty; must have at least one character")
    return tokens


def _part(spec: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = spec.get(name)
    if not isinstance(value, Mapping):
        raise DataError(f"{name}: missing or no object")
    return value


def _list(spec: Mapping[str, Any], name: str, where: str) -> Sequence[Any]:
    value = spec.get(name)
    if not isinstance(value, list) or (name in ("cls", "sep") and len(value) != 2):
        raise DataError(f"{where}: {name}: missing or no list")
    return value


def _type(part: Any) -> str | None:
    """The type of a part; None where there is no part, or it does not say."""
    return str(part.get("type")) if isinstance(part, Mapping) and "type" in part else None


def _flag(spec: Mapping[str, Any], name: str, default: bool) -> bool:
    value = spec.get(name, default)
    if type(value) is not bool:
        raise DataError(f"{name}: {value!r}; must be true or false")
    return value


def _integer(value: Any, where: str) -> int:
    if type(value) is not int or not 0 <= value < 2**32:
        raise DataError(f"{where}: {value!r}; must be an integer of at least 0")
    return value
