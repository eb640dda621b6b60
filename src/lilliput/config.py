"""Validated settings: one class for the data, the model and each stage, and the recipe that holds them.

A recipe file (TOML) is a diff from these defaults. Every class is frozen and refuses unknown fields, so a typing
error in a recipe is an error message and never a silently ignored setting.
"""

import json
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, cast, get_args, overload

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from lilliput.errors import RecipeError


class Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


Side = Annotated[int, Field(ge=1, le=65536)]


class DataSettings(Settings):
    """Which data set, where it lies, and how it is split. Splits are seeded; the test set is never used for a
    choice."""

    name: Literal["digits", "fashion-mnist", "cifar10", "folder"] = "digits"
    path: str | None = Field(default=None, description="folder or archive; None: the usual place of that data set")
    validation_fraction: float = Field(default=0.1, gt=0.0, lt=1.0, description="of the training part")
    test_fraction: float = Field(
        default=0.2, gt=0.0, lt=1.0, description="where the data set has no test part of its own"
    )
    split_seed: int = Field(default=0, ge=0)
    image_size: tuple[Side, Side] | None = Field(
        default=None, description="(height, width); `folder`: size to resize to"
    )
    mode: Literal["L", "RGB"] | None = Field(default=None, description="`folder`: grey or colour; None: RGB")
    limit: int | None = Field(
        default=None, ge=1, description="use only the first images of each part (for quick looks)"
    )


class AugmentSettings(Settings):
    """Random changes of training images. All off by default."""

    crop_padding: int = Field(default=0, ge=0, le=1024, description="pixels of zero padding before a random crop")
    flip: bool = Field(default=False, description="mirror left-right with probability 1/2")
    randaugment_ops: int = Field(default=0, ge=0, le=4, description="RandAugment: operations an image")
    randaugment_magnitude: float = Field(default=9.0, ge=0.0, le=30.0)
    mixup: float = Field(default=0.0, ge=0.0, description="alpha of the Beta distribution; 0: off")
    cutmix: float = Field(default=0.0, ge=0.0, description="alpha of the Beta distribution; 0: off")


class LayerSettings(Settings):
    """One Transformer block. A pruned model has other numbers here, so it reloads by construction."""

    num_heads: int = Field(ge=1)
    head_dim: int = Field(ge=1)
    mlp_dim: int = Field(ge=1)


class StemConvSettings(Settings):
    """One convolution of the stem, followed by ReLU."""

    channels: int = Field(ge=1)
    kernel_size: int = Field(default=3, ge=1)
    stride: int = Field(default=2, ge=1)
    padding: int = Field(default=1, ge=0)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.padding >= self.kernel_size:
            raise ValueError(f"padding={self.padding} must be below kernel_size={self.kernel_size}")
        return self


class ModelSettings(Settings):
    """A ViT as data: sizes may be given once (`depth`, `num_heads`, `mlp_dim`) or layer by layer (`layers`)."""

    preset: Literal["vit-413k"] | None = None
    patch_size: int = Field(default=4, ge=1, description="1 with a stem: each pixel of the feature map is a token")
    embed_dim: int = Field(default=128, ge=1, le=65536)
    depth: int = Field(default=3, ge=1, le=1000)
    num_heads: int = Field(default=4, ge=1)
    mlp_dim: int = Field(default=256, ge=1, le=65536)
    layers: tuple[LayerSettings, ...] | None = Field(
        default=None, description="per-layer sizes; replaces the three above"
    )
    stem: tuple[StemConvSettings, ...] = Field(default=(), description="convolutions before the patches (hybrid)")
    pool: Literal["cls", "mean"] = "cls"
    positions: Literal["learned", "sinusoidal"] = "learned"
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    norm_eps: float = Field(default=1e-6, gt=0.0, le=1.0, description="LayerNorm's epsilon")
    distillation: Literal["token", "head"] | None = Field(
        default=None, description="DeiT: a distillation token behind the class token; 'head': and a head on it"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.layers is None and self.embed_dim % self.num_heads:
            allowed = [n for n in range(1, self.embed_dim + 1) if self.embed_dim % n == 0 and n <= 64]
            raise ValueError(
                f"num_heads={self.num_heads} does not divide embed_dim={self.embed_dim}; allowed: {allowed}"
            )
        if self.layers is not None and not self.layers:
            raise ValueError("layers is empty; give at least one layer")
        if self.distillation is not None and self.pool != "cls":
            raise ValueError(f"distillation='{self.distillation}' needs pool='cls', got '{self.pool}'")
        if self.preset == "vit-413k":
            fixed = {"patch_size": 4, "embed_dim": 128, "depth": 3, "num_heads": 4, "mlp_dim": 256, "pool": "cls"}
            changed = [name for name in self.model_fields_set if name in fixed and getattr(self, name) != fixed[name]]
            others = (self.layers, self.stem or None, self.distillation)
            if changed or others != (None, None, None) or self.positions != "learned":
                raise ValueError(f"preset 'vit-413k' fixes the architecture ({fixed}); drop the preset to change it")
        return self

    def resolved_layers(self) -> tuple[LayerSettings, ...]:
        """Sizes of every block, however they were given."""
        if self.layers is not None:
            return self.layers
        head_dim = self.embed_dim // self.num_heads
        return (LayerSettings(num_heads=self.num_heads, head_dim=head_dim, mlp_dim=self.mlp_dim),) * self.depth


class FitSettings(Settings):
    """What every stage that trains shares: one loop serves them all."""

    epochs: int = Field(default=20, ge=1)
    batch_size: int = Field(default=128, ge=1)
    lr: float = Field(default=1e-3, gt=0.0)
    weight_decay: float = Field(default=0.05, ge=0.0)
    warmup_fraction: float = Field(default=0.05, ge=0.0, lt=1.0, description="of all steps; then cosine to `final_lr`")
    final_lr_fraction: float = Field(default=0.01, ge=0.0, le=1.0, description="the cosine's end, as a share of lr")
    clip_norm: float = Field(default=1.0, gt=0.0, description="gradient norm is clipped to this")
    ema_decay: float | None = Field(default=None, gt=0.0, lt=1.0, description="None: no moving average of the weights")
    checkpoint_seconds: float = Field(default=15.0, ge=0.0, description="time between checkpoints; 0: every step")
    evaluate_every: int = Field(default=1, ge=1, description="epochs between looks at the validation set")


class LoopSettings(FitSettings):
    """Stages that train an image classifier."""

    label_smoothing: float = Field(default=0.1, ge=0.0, lt=1.0)


class TrainSettings(LoopSettings):
    """Stage `train`: the fp32 model."""


BLOCK = (16, 8)  # outputs x inputs that a file leaves out as a whole (docs/format.md, `blocks`)
INT6_BLOCK = (16, 16)


class PruneSettings(LoopSettings):
    """Stage `prune`: global magnitude over all linear and projection weights, on a cubic schedule (Zhu and Gupta).

    With `block`, whole blocks go, those of least norm relative to their layer's; shares are then shares of blocks.
    """

    epochs: int = Field(default=10, ge=1)
    lr: float = Field(default=5e-4, gt=0.0)
    sparsity: float = Field(default=0.6, gt=0.0, lt=1.0, description="share of zero weights at the end")
    start_fraction: float = Field(default=0.0, ge=0.0, lt=1.0, description="of the steps, before the first weight goes")
    end_fraction: float = Field(
        default=0.7, gt=0.0, le=1.0, description="of the steps, when the full sparsity is reached"
    )
    update_every: int = Field(default=20, ge=1, description="steps between updates of the masks")
    layer_floor: float = Field(default=0.02, ge=0.0, lt=1.0, description="share of weights that every layer keeps")
    block: tuple[int, int] | None = Field(
        default=None,
        description="(outputs, inputs) of the blocks to zero, multiples of 16 and 8: the file leaves those out and the "
        "runtime skips them; None: single weights",
    )

    @model_validator(mode="after")
    def _check_schedule(self) -> Self:
        if self.start_fraction >= self.end_fraction:
            raise ValueError(f"start_fraction={self.start_fraction} must be below end_fraction={self.end_fraction}")
        if self.block is not None and not all(n > 0 and n % of == 0 for n, of in zip(self.block, BLOCK, strict=True)):
            raise ValueError(
                f"block={list(self.block)} must be [outputs, inputs], multiples of {BLOCK[0]} and {BLOCK[1]}: the "
                "blocks that the runtime skips"
            )
        if self.layer_floor > 1.0 - self.sparsity:
            raise ValueError(f"layer_floor={self.layer_floor} must be at most 1 - sparsity = {1.0 - self.sparsity:.3g}")
        return self


class FinetuneSettings(LoopSettings):
    """Stage `finetune`: training goes on with what earlier passes fixed (masks)."""

    epochs: int = Field(default=5, ge=1)
    lr: float = Field(default=3e-4, gt=0.0)


HiddenScales = Annotated[
    Literal["static", "dynamic"],
    Field(description="scales of hidden activations: constants in the file, one a channel; or found for each row"),
]


class QuantizeSettings(LoopSettings):
    """Stage `quantize`: quantisation-aware training of weights, activations, embeddings and vectors."""

    epochs: int = Field(default=10, ge=1)
    lr: float = Field(default=3e-4, gt=0.0)
    weight_format: Literal["int8", "int6", "int4", "pot4"] = "pot4"
    embedding_format: Literal["int8", "int6", "int4", "pot4"] = "int8"
    hidden: HiddenScales = "static"
    scales: Literal["searched", "learned"] = Field(
        default="searched", description="searched once, before training; or learned (LSQ), starting from there"
    )


class ExportSettings(Settings):
    """Stage `export`: lower the model to a program and write `model.lil`."""

    golden: int = Field(default=1, ge=1, le=64, description="examples with their exact outputs, kept in the file")


class EvaluateSettings(Settings):
    """Stage `evaluate`: accuracy of the artifact, through the runtime, on the test set."""

    samples: int = Field(default=24, ge=0, le=200, description="test images with predictions kept for the report")


class ReportSettings(Settings):
    """Stage `report`: one self-contained page and its records."""

    title: str | None = None


StageName = Literal["train", "prune", "finetune", "quantize", "export", "evaluate", "report"]

# What must have run before each stage, in any distance. Checked before anything is trained.
STAGE_NEEDS: dict[str, tuple[str, ...]] = {
    "train": (),
    "prune": ("train",),
    "finetune": ("train",),
    "quantize": ("train",),
    "export": ("quantize",),
    "evaluate": ("export",),
    "report": ("evaluate",),
}
# What must not have run before: pruning after the weights are quantised would undo the guarantee of either.
STAGE_NOT_AFTER: dict[str, tuple[str, ...]] = {
    "train": ("train", "prune", "finetune", "quantize", "export"),
    "prune": ("prune", "quantize", "export"),
    "finetune": ("quantize", "export"),
    "quantize": ("quantize", "export"),
    "export": ("export",),
    "evaluate": ("evaluate",),
    "report": ("report",),
}


class Recipe(Settings):
    """One experiment: data, model, and stages in order."""

    command: Literal["run"] = Field(default="run", description="which command the recipe is for")
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    seed: int = Field(default=0, ge=0)
    stages: Annotated[tuple[StageName, ...], Field(min_length=1)] = (
        "train",
        "prune",
        "finetune",
        "quantize",
        "export",
        "evaluate",
        "report",
    )
    data: DataSettings = DataSettings()
    augment: AugmentSettings = AugmentSettings()
    model: ModelSettings = ModelSettings()
    train: TrainSettings = TrainSettings()
    prune: PruneSettings = PruneSettings()
    finetune: FinetuneSettings = FinetuneSettings()
    quantize: QuantizeSettings = QuantizeSettings()
    export: ExportSettings = ExportSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    report: ReportSettings = ReportSettings()

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        done: list[str] = []
        for stage in self.stages:
            missing = [need for need in STAGE_NEEDS[stage] if need not in done]
            if missing:
                raise ValueError(f"stages: '{stage}' needs '{missing[0]}' before it; got {list(self.stages)}")
            forbidden = [before for before in STAGE_NOT_AFTER[stage] if before in done]
            if forbidden:
                raise ValueError(f"stages: '{stage}' cannot follow '{forbidden[0]}'; got {list(self.stages)}")
            done.append(stage)
        return self

    @model_validator(mode="after")
    def _check_block(self) -> Self:
        block, inputs = self.prune.block, INT6_BLOCK[1]
        both = {"prune", "quantize"} <= set(self.stages)
        if both and block is not None and self.quantize.weight_format == "int6" and block[1] % inputs:
            raise ValueError(
                f"prune.block={list(block)}: inputs must be a multiple of {inputs} with quantize.weight_format 'int6'"
            )
        return self


R = TypeVar("R", bound=Settings)


@overload
def load_recipe(path: str | Path, overrides: list[str] | None = None) -> Recipe: ...
@overload
def load_recipe(path: str | Path, overrides: list[str] | None, kind: type[R]) -> R: ...
def load_recipe(path: str | Path, overrides: list[str] | None = None, kind: type[Settings] = Recipe) -> Settings:
    """Read a recipe file and apply `stage.field=value` overrides (values in TOML syntax; bare words are strings).

    Raises:
        RecipeError: the file is missing or not TOML, or a field is unknown, of the wrong type or out of range.
    """
    path = Path(path)
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(
            f"recipe {path}: cannot be read ({error.strerror}); give the path of a .toml recipe"
        ) from None
    except (ValueError, RecursionError) as error:  # among them TOMLDecodeError, UnicodeDecodeError, numbers too long
        raise RecipeError(f"recipe {path}: not valid TOML ({error})") from None
    tree.setdefault("name", path.stem)
    return parse_settings(tree, str(path), overrides, kind)


def parse_recipe(tree: dict[str, Any], where: str) -> Recipe:
    """Validate a recipe's tree of plain values; `where` names its source in errors."""
    return parse_settings(tree, where, None, Recipe)


def parse_settings(tree: dict[str, Any], where: str, overrides: list[str] | None, kind: type[R]) -> R:
    """Apply overrides to a tree of plain values, and validate it as a recipe of class `kind`.

    Raises:
        RecipeError: as `load_recipe`.
    """
    for override in overrides or []:
        _apply_override(tree, override)
    try:
        # Through JSON, because strict validation takes lists for tuples only from JSON.
        return kind.model_validate_json(json.dumps(tree, default=str))
    except ValidationError as error:
        raise RecipeError(f"recipe {where}: {_one_line(error, kind)}") from None


def _apply_override(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise RecipeError(f"--set {override}: write it as stage.field=value, for example train.epochs=5")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    node = tree
    for part in parts[:-1]:
        child = node.setdefault(part, {})
        if not isinstance(child, dict):
            raise RecipeError(f"--set {override}: '{part}' is a value, not a table of settings")
        node = cast("dict[str, Any]", child)
    node[parts[-1]] = value


def _one_line(error: ValidationError, kind: type[BaseModel]) -> str:
    # Of another command's recipe nothing else matters. A misspelt field also makes the right one missing, so unknown
    # fields are told before others.
    errors = sorted(error.errors(), key=lambda one: (one["loc"] != ("command",), one["type"] != "extra_forbidden"))
    first, more = errors[0], f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    place = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        return f"unknown field '{place}'; allowed: {', '.join(_allowed_fields(first['loc'], kind))}{more}"
    if first["type"] == "value_error":
        return f"{place}: {message}{more}" if place else f"{message}{more}"
    if first["type"] == "missing":
        return f"{place} is missing{more}"
    return f"{place}: {message}, got {first['input']!r}{more}"


def _allowed_fields(location: tuple[int | str, ...], kind: type[BaseModel]) -> list[str]:
    """Fields of the settings class in which the unknown field at `location`, of a recipe of class `kind`, stands."""
    settings = kind
    for part in location[:-1]:
        if isinstance(part, int):
            continue  # an element of a list: its class was found under the list's name
        annotation = settings.model_fields[part].annotation
        candidates = [annotation, *get_args(annotation), *(a for b in get_args(annotation) for a in get_args(b))]
        settings = next(c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel))
    return sorted(settings.model_fields)
