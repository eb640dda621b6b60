"""Hugging Face checkpoints as configurations of our own models, in both directions, without `transformers`.

`files` reads JSON and safetensors; `configs` and `images` turn `config.json` into settings and back, `sentence` what
sentence-transformers adds; `families` says what tensors are called, `tensors` moves them.
"""

import json
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors.torch import save
from torch import Tensor

from lilliput.files import write_atomic
from lilliput.models.checkpoint import CheckpointError
from lilliput.models.encoder import EncoderSettings, TextEncoder
from lilliput.models.huggingface.configs import TEXT_CONFIGS, Config, TextConfig
from lilliput.models.huggingface.families import FAMILIES, Names
from lilliput.models.huggingface.files import WEIGHTS, check_folder, one_line, read_object, read_tensors
from lilliput.models.huggingface.images import DISTILLATION, ImageConfig, read_normalization, write_normalization
from lilliput.models.huggingface.sentence import read_sentence_settings, write_sentence_settings
from lilliput.models.huggingface.tensors import Checkpoint, slots_of, tensors_for_file
from lilliput.models.vit import ViT

__all__ = ["load_pretrained", "save_pretrained"]


def load_pretrained(folder: Path) -> TextEncoder | ViT:
    """A model with the weights of a folder in Hugging Face's layout, in evaluation mode and float32.

    `config.json` and `model.safetensors` (or an index of several) are read; of sentence-transformers' files pooling,
    normalisation and the longest text; of an image model's the normalisation of pixels. The model's `labels` are those
    of the configuration, its `ignored_tensors` those of the file that it has no use for (pretraining heads, poolers).

    Raises:
        CheckpointError: a file is missing or damaged, weights are pickled or do not fit the configuration or are not
            finite, or the configuration asks for something that our models do not have.
    """
    check_folder(folder)
    root, pooling = read_sentence_settings(folder)
    raw = read_object(root / "config.json")
    model_type, architecture = _architecture(raw, root)
    checkpoint = Checkpoint(root, FAMILIES[model_type], read_tensors(root))
    try:
        if model_type in TEXT_CONFIGS:
            return _load_text(checkpoint, raw, architecture, pooling)
        return _load_image(checkpoint, raw, architecture)
    except CheckpointError:
        raise
    except ValidationError as error:
        raise CheckpointError(f"model in {root}: config.json: {one_line(error)}") from None
    except ValueError as error:
        raise CheckpointError(f"model in {root}: config.json: {error}") from None


def _architecture(raw: dict[str, Any], folder: Path) -> tuple[str, str]:
    """Model type and architecture, which must be ones that work."""
    model_type, listed = raw.get("model_type"), raw.get("architectures")
    family = FAMILIES.get(model_type) if isinstance(model_type, str) else None
    if family is None:
        allowed = ", ".join(name for known in FAMILIES.values() for name in known.architectures)
        raise CheckpointError(f"model in {folder}: model_type is {model_type!r}; architectures that work: {allowed}")
    architecture = str(listed[0]) if isinstance(listed, list) and listed else next(iter(family.architectures))
    if architecture not in family.architectures:
        allowed = ", ".join(family.architectures)
        raise CheckpointError(
            f"model in {folder}: architecture {architecture!r}; those of {model_type} that work: {allowed}"
        )
    assert isinstance(model_type, str)
    return model_type, architecture


def _labels(config: Config, checkpoint: Checkpoint, classifier: object) -> tuple[str, ...]:
    """As many labels as the classifier has rows. A file without it is refused later, with all else that is missing."""
    weight = checkpoint.tensors.get(checkpoint.bare(f"{classifier}.weight"))
    if weight is None or weight.ndim == 0:
        return config.labels(len(config.id2label or {}) or 2)
    return config.labels(weight.shape[0])


def _load_text(checkpoint: Checkpoint, raw: dict[str, Any], architecture: str, pooling: dict[str, Any]) -> TextEncoder:
    config = TEXT_CONFIGS[raw["model_type"]].model_validate_json(json.dumps(raw))
    head = checkpoint.names.architectures[architecture]
    if head and pooling:
        raise CheckpointError(
            f"model in {checkpoint.folder}: {architecture} has a classifier, so modules.json cannot pool"
        )
    labels = _labels(config, checkpoint, head["head.out"]) if head else None
    with torch.device("meta"):
        model = TextEncoder(config.settings(labels, pooling))
    slots = slots_of(model, checkpoint.names.names(architecture), config.group_size)
    model.ignored_tensors = checkpoint.fill(model, slots, {})
    return model.eval()


def _load_image(checkpoint: Checkpoint, raw: dict[str, Any], architecture: str) -> ViT:
    config = ImageConfig.model_validate_json(json.dumps(raw))
    names = checkpoint.names.names(architecture)
    labels = _labels(config, checkpoint, names["head"])
    buffers = read_normalization(checkpoint.folder, config.num_channels)
    with torch.device("meta"):
        model = ViT(config.settings(architecture), config.image_shape(), len(labels))
    slots = slots_of(model, names)
    if not config.qkv_bias:  # ours always has one: zeros
        biases = [name for slot in slots if slot.ours.endswith(".qkv.bias") for name in slot.theirs]
        checkpoint.add({name: torch.zeros(config.hidden_size) for name in biases})
    model.labels, model.ignored_tensors = labels, checkpoint.fill(model, slots, buffers)
    return model.eval()


def save_pretrained(model: TextEncoder | ViT, folder: Path) -> None:
    """Write a model as Hugging Face's `from_pretrained` reads it: `config.json` last, beside `model.safetensors`.

    Weights are written as the model computes with them: masked, quantised. Where token types were merged into the
    positions, one row of zeros stands for them. Absent biases of q, k and v are written as zeros. A model that pools
    and has no head gets sentence-transformers' files too, and an image model its `preprocessor_config.json`.

    Raises:
        CheckpointError: the model is one for which Hugging Face's configuration has no words, for example after heads
            were pruned, or one that `load_pretrained` would refuse: a classifier of one class.
        FailureError: the folder cannot be written.
    """
    config: Config
    if isinstance(model, ViT):
        config, model_type, architecture = _image_config(model)
        tensors = tensors_for_file(model, slots_of(model, FAMILIES[model_type].names(architecture)))
        write_normalization(model, folder)
    else:
        config, model_type, architecture = _text_config(model.settings)
        names = FAMILIES[model_type].names(architecture)
        tensors = tensors_for_file(model, slots_of(model, names, config.group_size)) | _no_token_types(model, names)
        write_sentence_settings(model.settings, folder)
    content = config.model_dump(mode="json", by_alias=True, exclude={"id2label"})
    content |= {"model_type": model_type, "architectures": [architecture], "dtype": "float32"}
    if config.id2label is not None:
        content |= {"id2label": config.id2label, "label2id": {name: int(n) for n, name in config.id2label.items()}}
    write_atomic(folder / WEIGHTS, save(tensors, {"format": "pt"}))
    write_atomic(folder / "config.json", json.dumps(content, indent=2).encode())


def _text_config(settings: EncoderSettings) -> tuple[TextConfig, str, str]:
    """Configuration, model type and architecture that say what `settings` say."""
    family = FAMILIES[settings.family]
    architecture = next(name for name, head in family.architectures.items() if bool(head) == bool(settings.head))
    # What is written elsewhere, or in other words, is made alike first.
    same: dict[str, Any] = {"max_tokens": None, "embedding_dim": settings.token_dim, "order": settings.resolved_order()}
    if "token_types" in family.base:
        same["token_types"] = max(1, settings.token_types)
    settings = settings.model_copy(update=same)
    pooling = {} if settings.head else {"pooling": settings.pooling, "normalize": settings.normalize}
    try:
        config = TEXT_CONFIGS[settings.family].of(settings)
        said = config.settings(config.labels(len(settings.head.labels)) if settings.head else None, pooling)
    except ValueError as error:
        raise _no_words(settings.family, error) from None
    said = said.model_copy(update={"embedding_dim": said.token_dim, "order": said.resolved_order()})
    _compare(settings.family, settings.model_dump(), said.model_dump())
    return config, settings.family, architecture


def _image_config(model: ViT) -> tuple[ImageConfig, str, str]:
    """Configuration, model type and architecture that say what the model's settings say."""
    architecture = next(name for name, token in DISTILLATION.items() if token == model.settings.distillation)
    model_type = next(name for name, family in FAMILIES.items() if architecture in family.architectures)
    try:
        config = ImageConfig.of(model)
        config.labels(model.num_classes)
        said = config.settings(architecture)
    except ValueError as error:
        raise _no_words(model_type, error) from None
    # Sizes are compared layer by layer; positions are written as the table that they are, learned or not.
    once = {"preset", "depth", "num_heads", "mlp_dim", "positions"}
    ours, theirs = (
        settings.model_dump(exclude=once) | {"layers": settings.resolved_layers()}
        for settings in (model.settings, said)
    )
    _compare(model_type, ours, theirs)
    return config, model_type, architecture


def _compare(model_type: str, ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    fields = [name for name, value in ours.items() if value != theirs[name]]
    if fields:
        raise _no_words(model_type, f"it would lose {', '.join(fields)}")


def _no_words(model_type: str, why: object) -> CheckpointError:
    why = one_line(why) if isinstance(why, ValidationError) else why
    return CheckpointError(f"this model cannot be written as Hugging Face's {model_type}: {why}")


def _no_token_types(model: TextEncoder, names: Names) -> dict[str, Tensor]:
    """The row of zeros that stands for token types which are part of the positions."""
    theirs = names.get("token_types")
    if model.token_types is not None or theirs is None:
        return {}
    assert isinstance(theirs, str)
    return {theirs: torch.zeros(1, model.settings.position_dim)}
