"""What sentence-transformers keeps beside the model: how tokens are pooled, where texts are cut, and what is done to
them before."""

import json
from pathlib import Path
from typing import Any

from lilliput.errors import DataError
from lilliput.files import write_atomic
from lilliput.models.checkpoint import CheckpointError
from lilliput.models.encoder import EncoderSettings
from lilliput.models.huggingface.files import read_json, read_object
from lilliput.text.huggingface import read_tokenizer

MODULES = (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"])
POOLINGS = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean"}


def read_sentence_settings(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The folder of the Transformer itself, and fields of `EncoderSettings`: none where there is no `modules.json`.

    Raises:
        CheckpointError: there are other modules, or another pooling, than we have; or texts are changed before they
            come to the tokenizer: by a prompt, or made lower case.
    """
    if not (folder / "modules.json").exists():
        return folder, {}
    modules = read_json(folder / "modules.json")
    try:
        kinds = [str(module["type"]).rpartition(".")[2] for module in modules]
        paths = [str(module["path"]) for module in modules]
    except (TypeError, KeyError):
        raise CheckpointError(f"model in {folder}: modules.json must be a list of modules with type and path") from None
    if kinds not in MODULES:
        raise CheckpointError(f"model in {folder}: modules.json has {kinds}; those that work: {list(MODULES)}")
    for path in paths:
        if Path(path).is_absolute() or ".." in Path(path).parts:
            raise CheckpointError(f"model in {folder}: modules.json names {path!r}, which is not inside the folder")
    root = folder / paths[0]
    _check_prompt(folder)
    fields = {"pooling": _pooling(folder / paths[1] / "config.json"), "normalize": len(kinds) == 3}
    return root, fields | _max_tokens(root)


def _pooling(path: Path) -> str:
    config = read_object(path)
    modes = [name for name, value in config.items() if name.startswith("pooling_mode_") and value is True]
    if "pooling_mode" in config:  # the newer spelling
        modes.append(str(config["pooling_mode"]))
    if len(modes) != 1 or POOLINGS.get(modes[0], modes[0]) not in POOLINGS.values():
        raise CheckpointError(f"model in {path.parent}: pools by {modes}; those that work: one of {list(POOLINGS)}")
    return POOLINGS.get(modes[0], modes[0])


def _check_prompt(folder: Path) -> None:
    """No prompt is put before every text."""
    path = folder / "config_sentence_transformers.json"
    config = read_object(path) if path.exists() else {}
    name, prompts = config.get("default_prompt_name"), config.get("prompts")
    if name is not None and not (isinstance(prompts, dict) and prompts.get(str(name)) == ""):
        raise CheckpointError(
            f"model in {folder}: {path.name}: default_prompt_name is {name!r}, which puts a prompt before each text; "
            "must be null"
        )


def _max_tokens(root: Path) -> dict[str, Any]:
    path = root / "sentence_bert_config.json"
    config = read_object(path) if path.exists() else {}
    if config.get("do_lower_case") and not _lowercases(root):
        raise CheckpointError(
            f"model in {root}: {path.name}: do_lower_case is true, which works only where the tokenizer itself makes "
            "texts lower case"
        )
    value = config.get("max_seq_length")
    return {} if value is None else {"max_tokens": value}


def _lowercases(root: Path) -> bool:
    try:
        settings, _, _ = read_tokenizer(root)
    except DataError:
        return False
    return bool(settings.get("lowercase"))


def write_sentence_settings(settings: EncoderSettings, folder: Path) -> None:
    """The same files for a model that pools and has no head; nothing for others."""
    if settings.pooling is None or settings.head is not None:
        return
    kinds = MODULES[settings.normalize]
    paths = ["", *(f"{index}_{kind}" for index, kind in enumerate(kinds) if index)]
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (kind, path) in enumerate(zip(kinds, paths, strict=True))
    ]
    pooling = {"word_embedding_dimension": settings.embed_dim}
    pooling |= {name: mode == settings.pooling for name, mode in POOLINGS.items()}
    _write(folder / paths[1] / "config.json", pooling)
    if settings.max_tokens is not None:
        _write(folder / "sentence_bert_config.json", {"max_seq_length": settings.max_tokens})
    _write(folder / "modules.json", modules)


def _write(path: Path, content: Any) -> None:
    write_atomic(path, json.dumps(content, indent=2).encode())
