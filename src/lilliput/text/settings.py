"""The settings of a tokenizer: a dictionary that JSON can hold, and the check of one that may come from anywhere.

Every tokenizer has
    kind           "wordpiece" or "byte_level_bpe",
    model_tokens   how many tokens of the vocabulary, from the first, are the model's; behind them may stand added ones,
    prefix, suffix lists of the ids that surround every text,
    added          the tokens that are found in a text before the model sees it; where two look for the same, the first
                   counts. Each has `id`, and the flags `normalized`, `lstrip`, `rstrip`, `single_word`, which mean what
                   they mean in a tokenizer.json.
One of WordPiece has `unk` (an id), `max_input_chars_per_word`, and the flags `clean_text`, `handle_chinese_chars`,
`strip_accents` and `lowercase`; one of byte-level BPE has the flags `add_prefix_space` and `use_regex`.
"""

from collections.abc import Mapping
from typing import Any

from lilliput.errors import ArtifactError
from lilliput.text import _text

MAX_ID = 2**32 - 1
KINDS: dict[str, dict[str, type]] = {
    "wordpiece": {
        "clean_text": bool,
        "handle_chinese_chars": bool,
        "strip_accents": bool,
        "lowercase": bool,
        "unk": int,
        "max_input_chars_per_word": int,
    },
    "byte_level_bpe": {"add_prefix_space": bool, "use_regex": bool},
}
COMMON: dict[str, type] = {"kind": str, "model_tokens": int, "prefix": list, "suffix": list, "added": list}
ADDED: dict[str, type] = {"id": int, "normalized": bool, "lstrip": bool, "rstrip": bool, "single_word": bool}
NAMES = {bool: "true or false", int: f"an integer of 0 to {MAX_ID}", str: "a string", list: "a list"}


def check_settings(settings: Mapping[str, Any]) -> None:
    """Refuse settings that are not as this module says. Whether ids are in range is the core's to say.

    Raises:
        ArtifactError: a field is missing, unknown, of another type or out of range.
    """
    kind = settings.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise ArtifactError(f"settings: kind: {kind!r}; allowed: {', '.join(map(repr, KINDS))}")
    _check_fields("settings", settings, {**COMMON, **KINDS[kind]})
    for name in ("prefix", "suffix"):
        for index, value in enumerate(settings[name]):
            _check_type(f"settings: {name}[{index}]", value, int)
    for index, token in enumerate(settings["added"]):
        where = f"settings: added[{index}]"
        if not isinstance(token, Mapping):
            raise ArtifactError(f"{where}: {token!r}; must be an object with {', '.join(ADDED)}")
        _check_fields(where, token, ADDED)


def core_settings(settings: Mapping[str, Any]) -> _text.Settings:
    """Checked settings, without the added tokens, as the C core takes them."""
    values = {name: settings[name] for name in KINDS[settings["kind"]]}
    make = _text.Settings.wordpiece if settings["kind"] == "wordpiece" else _text.Settings.byte_level_bpe
    core = make(**values)
    core.prefix = settings["prefix"]
    core.suffix = settings["suffix"]
    return core


def _check_fields(where: str, values: Mapping[str, Any], types: Mapping[str, type]) -> None:
    if odd := sorted(str(name) for name in values.keys() ^ types.keys()):
        raise ArtifactError(f"{where}: {odd[0]!r} is missing or unknown; the fields are {', '.join(types)}")
    for name, kind in types.items():
        _check_type(f"{where}: {name}", values[name], kind)


def _check_type(where: str, value: Any, kind: type) -> None:
    if type(value) is not kind or (isinstance(value, int) and not 0 <= value <= MAX_ID):
        raise ArtifactError(f"{where}: {value!r}; must be {NAMES[kind]}")
