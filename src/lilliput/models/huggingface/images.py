"""The image families, ViT and DeiT: `config.json` and `preprocessor_config.json` as our `ViT` has them."""

import json
from pathlib import Path
from typing import Annotated, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from lilliput.config import ModelSettings
from lilliput.files import write_atomic
from lilliput.models.checkpoint import CheckpointError
from lilliput.models.huggingface.configs import Config, Count, Rate, Size, id2label
from lilliput.models.huggingface.files import one_line, read_object
from lilliput.models.vit import ViT

PREPROCESSOR = "preprocessor_config.json"
RESCALE = 1.0 / 255.0
Side = Annotated[int, Field(ge=1, le=65536)]
DISTILLATION: dict[str, Literal["token", "head"] | None] = {
    "ViTForImageClassification": None,
    "DeiTForImageClassification": "token",
    "DeiTForImageClassificationWithTeacher": "head",
}


class ImageConfig(Config):
    """ViT's and DeiT's configuration."""

    hidden_size: Size = 768
    num_hidden_layers: Count = 12
    num_attention_heads: Size = 12
    intermediate_size: Size = 3072
    hidden_act: Literal["gelu"] = "gelu"
    hidden_dropout_prob: Rate = 0.0
    attention_probs_dropout_prob: Rate = 0.0
    layer_norm_eps: float = Field(default=1e-12, gt=0.0, le=1.0)
    image_size: Side | tuple[Side, Side] = 224
    patch_size: Side | tuple[Side, Side] = 16
    num_channels: Side = 3
    qkv_bias: bool = True

    def settings(self, architecture: str) -> ModelSettings:
        """The architecture as ours.

        Raises:
            ValueError: sizes do not fit each other.
        """
        height, width = _pair(self.patch_size)
        if height != width:
            raise ValueError(f"patch_size={[height, width]} must be square")
        return ModelSettings(
            patch_size=height,
            embed_dim=self.hidden_size,
            depth=self.num_hidden_layers,
            num_heads=self.num_attention_heads,
            mlp_dim=self.intermediate_size,
            dropout=float(self.hidden_dropout_prob),
            norm_eps=self.layer_norm_eps,
            distillation=DISTILLATION[architecture],
        )

    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels)."""
        return (*_pair(self.image_size), self.num_channels)

    @classmethod
    def of(cls, model: ViT) -> Self:
        """The configuration nearest to a model's: whether it says the same is for the caller to compare."""
        settings, (height, width, channels) = model.settings, model.image_shape
        layers = settings.resolved_layers()
        return cls(
            hidden_size=settings.embed_dim,
            num_hidden_layers=len(layers),
            num_attention_heads=layers[0].num_heads,
            intermediate_size=layers[0].mlp_dim,
            hidden_dropout_prob=settings.dropout,
            layer_norm_eps=settings.norm_eps,
            image_size=height if height == width else (height, width),
            patch_size=settings.patch_size,
            num_channels=channels,
            id2label=id2label(model.labels or cls().labels(model.num_classes)),
        )


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return size if isinstance(size, tuple) else (size, size)


class _Preprocessor(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)

    do_rescale: bool = True
    rescale_factor: float = Field(default=RESCALE, gt=0.0)
    do_normalize: bool = True
    image_mean: list[float] | None = None
    image_std: list[Annotated[float, Field(gt=0.0)]] | None = None


def read_normalization(folder: Path, channels: int) -> dict[str, Tensor]:
    """The ViT's buffers `pixel_scale` and `pixel_shift` [channels], of (pixel * rescale - mean) / std.

    Raises:
        CheckpointError: the file is missing, or has not one mean and one deviation a channel.
    """
    where = f"model in {folder}: {PREPROCESSOR}"
    if not (folder / PREPROCESSOR).exists():
        raise CheckpointError(f"{where} is missing: it says how pixels are normalised, which belongs to the model")
    try:
        settings = _Preprocessor.model_validate_json(json.dumps(read_object(folder / PREPROCESSOR)))
    except ValidationError as error:
        raise CheckpointError(f"{where}: {one_line(error)}") from None
    mean, std = ([0.0] * channels, [1.0] * channels)
    if settings.do_normalize:
        mean, std = settings.image_mean or [], settings.image_std or []
    if len(mean) != channels or len(std) != channels:
        raise CheckpointError(f"{where}: image_mean and image_std must have {channels} numbers, one a channel")
    rescale = settings.rescale_factor if settings.do_rescale else 1.0
    scale = [rescale / s for s in std]
    shift = [-m / s for m, s in zip(mean, std, strict=True)]
    return {"pixel_scale": torch.tensor(scale), "pixel_shift": torch.tensor(shift)}


def write_normalization(model: ViT, folder: Path) -> None:
    """The same file for a model: its float64 numbers give the buffers' float32 back."""
    std = [RESCALE / scale for scale in model.pixel_scale.tolist()]
    height, width, _ = model.image_shape
    settings = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": RESCALE,
        "do_normalize": True,
        "image_mean": [-shift * s for shift, s in zip(model.pixel_shift.tolist(), std, strict=True)],
        "image_std": std,
    }
    write_atomic(folder / PREPROCESSOR, json.dumps(settings, indent=2).encode())
