"""What sentence-transformers keeps beside the model: how tokens are pooled, and where texts are cut."""

import json
from pathlib import Path
from typing import Any

from lilliput.files import write_atomic
from lilliput.models.checkpoint import CheckpointError
from lilliput.models.encoder import EncoderSettings
from lilliput.models.huggingface.files import read_json, read_object

MODULES = (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"])
POOLINGS = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean"}


def read_sentence_settings(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The folder of the Transformer itself, and fields of `EncoderSettings`: none where there is no `modules.json`.

    Raises:
        CheckpointError: there are other modules, or another pooling, than we have.
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
    fields = {"pooling": _pooling(folder / paths[1] / "config.json"), "normalize": len(kinds) == 3}
    return root, fields | _max_tokens(root / "sentence_bert_config.json")


def _pooling(path: Path) -> str:
    config = read_object(path)
    modes = [name for name, value in config.items() if name.startswith("pooling_mode_") and value is True]
    if "pooling_mode" in config:  # the newer spelling
        modes.append(str(config["pooling_mode"]))
    if len(modes) != 1 or POOLINGS.get(modes[0], modes[0]) not in POOLINGS.values():
        raise CheckpointError(f"model in {path.parent}: pools by {modes}; those that work: one of {list(POOLINGS)}")
    return POOLINGS.get(modes[0], modes[0])


def _max_tokens(path: Path) -> dict[str, Any]:
    value = read_object(path).get("max_seq_length") if path.exists() else None
    return {} if value is None else {"max_tokens": value}


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
