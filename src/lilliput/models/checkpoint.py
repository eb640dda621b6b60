"""Models on disk: `model.safetensors` beside `model.json` (architecture and stacks as data), never pickle."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lilliput.config import ModelSettings
from lilliput.errors import UserError
from lilliput.files import write_atomic
from lilliput.models.encoder import EncoderSettings, TextEncoder
from lilliput.models.stack import Mask, StoredAsBf16, WeightQuantizer, base_of, push
from lilliput.models.vit import ViT

M = TypeVar("M", ViT, TextEncoder)


class CheckpointError(UserError):
    """A saved model is missing, damaged, or does not fit its own description."""


def save_model(model: ViT | TextEncoder, folder: Path) -> None:
    """Write the model; the description last, so that a folder with `model.json` is complete."""
    write_atomic(folder / "model.safetensors", tensors_to_bytes(tensors_of(model)))
    description: dict[str, Any] = {"settings": json.loads(model.settings.model_dump_json())}
    if isinstance(model, ViT):
        description |= {"image_shape": list(model.image_shape), "num_classes": model.num_classes}
        if model.labels:
            description["labels"] = list(model.labels)
    description["stacks"] = describe_stacks(model)
    description["fixed_inputs"] = [
        name for name, linear in model.linears().items() if linear.input_multiplier is not None
    ]
    description["input_bits"] = {
        name: linear.input_bits for name, linear in model.linears().items() if linear.input_bits != 8
    }
    write_atomic(folder / "model.json", json.dumps(description, indent=1).encode())


def load_model(folder: Path) -> ViT:
    """Rebuild an image model from its own description.

    Raises:
        CheckpointError: a file is missing or damaged, tensors do not fit, or a value is NaN or infinite.
    """
    return _load(folder, _image_model)


def load_text_model(folder: Path) -> TextEncoder:
    """As `load_model`, for a text encoder."""
    return _load(folder, lambda saved: TextEncoder(EncoderSettings.model_validate_json(json.dumps(saved["settings"]))))


def _image_model(saved: dict[str, Any]) -> ViT:
    settings = ModelSettings.model_validate_json(json.dumps(saved["settings"]))
    model = ViT(settings, tuple(saved["image_shape"]), saved["num_classes"])
    if "labels" in saved:  # absent: not known when it was saved
        labels = saved["labels"]
        if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
            raise ValueError("labels must be a list of names")
        if len(labels) != model.num_classes:
            raise ValueError(f"{len(labels)} labels for {model.num_classes} classes")
        model.labels = tuple(labels)
    return model


def _load(folder: Path, make: Callable[[dict[str, Any]], M]) -> M:
    try:
        description = json.loads((folder / "model.json").read_text())
        model = make(description)
        restore_stacks(model, description["stacks"])
        for name in description["fixed_inputs"]:
            linear = model.linears()[name]
            linear.input_multiplier = torch.ones(linear.in_features)
        for name, bits in description.get("input_bits", {}).items():  # absent: saved when there were only 8 bits
            if bits not in (8, 6, 4):
                raise ValueError(f"input_bits of {name} are {bits}; must be 8, 6 or 4")
            model.linears()[name].input_bits = bits
        tensors = tensors_from_bytes((folder / "model.safetensors").read_bytes())
    except UserError:
        raise
    except KeyError as error:
        raise CheckpointError(
            f"model in {folder}: damaged, or of another version ({error} is missing or unknown); delete that folder to "
            "do its stage again"
        ) from None
    # What a changed description may lead to, in torch too; errors of JSON and of settings are ValueErrors.
    except (OSError, TypeError, ValueError, AttributeError, RuntimeError, SafetensorError) as error:
        why = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"model in {folder}: missing or damaged ({why}); delete that folder to do its stage again"
        ) from None
    load_tensors(model, tensors, str(folder))
    return model


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().contiguous().clone() for name, tensor in model.state_dict().items()}


def load_tensors(model: nn.Module, tensors: dict[str, Tensor], where: str) -> None:
    """Copy tensors into the model; names and shapes must match exactly and every value must be finite."""
    own = model.state_dict()
    for name in sorted(own.keys() | tensors.keys()):
        if name not in tensors or name not in own:
            raise CheckpointError(f"model in {where}: tensor {name} is {'extra' if name in tensors else 'missing'}")
        if tensors[name].shape != own[name].shape:
            shapes = f"{list(tensors[name].shape)}, expected {list(own[name].shape)}"
            raise CheckpointError(f"model in {where}: tensor {name} has shape {shapes}")
    check_finite(tensors, where)
    model.load_state_dict(tensors)


def check_finite(tensors: dict[str, Tensor], where: str) -> None:
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"model in {where}: tensor {name} has NaN or infinite values; weights must be finite")


def describe_stacks(model: nn.Module) -> list[dict[str, Any]]:
    """Every stack, bottom to top, as plain data."""
    stacks: list[dict[str, Any]] = []
    for module_name, module in model.named_modules():
        if not parametrize.is_parametrized(module):
            continue
        for name, layers in module.parametrizations.items():
            stacks.append({"module": module_name, "parameter": name, "layers": [_describe(layer) for layer in layers]})
    return stacks


def _describe(layer: nn.Module) -> dict[str, Any]:
    if isinstance(layer, WeightQuantizer):
        return {
            "kind": "quantizer",
            "format": layer.format_name,
            "rows": layer.scale.shape[0],
            "learned": layer.learned,
        }
    return {"kind": "mask" if isinstance(layer, Mask) else "bf16"}


def restore_stacks(model: nn.Module, stacks: list[dict[str, Any]]) -> None:
    """Put on what `describe_stacks` found.

    Raises:
        ValueError: a kind of layer is unknown, or a quantiser's rows are not its weight's. (Another name is one that
            torch does not find.)
    """
    for stack in stacks:
        module, name = model.get_submodule(stack["module"]), stack["parameter"]
        for layer in stack["layers"]:
            push(module, name, _layer(layer, base_of(module, name), f"{stack['module']}.{name}".lstrip(".")))


def _layer(description: dict[str, Any], base: Tensor, name: str) -> nn.Module:
    kind = description["kind"]
    if kind == "quantizer":
        rows = description["rows"]
        if base.ndim != 2 or rows != base.shape[0]:
            raise ValueError(f"quantizer of {name} has {rows} rows; the weight is {list(base.shape)}")
        return WeightQuantizer(description["format"], rows, description["learned"])
    if kind == "mask":
        return Mask(base)
    if kind == "bf16":
        return StoredAsBf16()
    raise ValueError(f"layer of {name} is '{kind}'; must be quantizer, mask or bf16")
