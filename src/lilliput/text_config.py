"""Settings of `lil compress`: from a checkpoint and unlabelled texts to a small file. One class a stage."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from lilliput.config import ExportSettings, FitSettings, Settings

Format = Literal["int8", "int6", "int4", "pot4"]
TextStage = Literal["quantize", "distill", "export", "evaluate"]


class TextDataSettings(Settings):
    """Texts without labels. What is held out is drawn with the seed before anything else sees a text."""

    path: str | None = Field(default=None, description="one text a line, or a .csv or .jsonl; given by --data")
    column: str = Field(default="text", description="of a .csv or .jsonl")
    test: int = Field(default=1000, ge=1, description="texts to measure on; at most a quarter of all")
    validation: int = Field(default=300, ge=1, description="texts to watch training with; at most a quarter of all")
    split_seed: int = Field(default=0, ge=0)
    max_tokens: int = Field(default=128, ge=2, description="longer texts are cut here (not in the file)")


class PostTrainingSettings(Settings):
    """Stage `quantize`: every matrix to its format, with nothing but forward passes over some texts."""

    weight_format: Format = Field(default="int4", description="of linear layers; at 4 bits int4 is nearer than pot4")
    words_format: Format = "int4"
    positions_format: Format = "int8"
    formats: dict[str, Format] = Field(
        default={}, description="of single layers, by name or beginning: {'blocks.0' = 'int8', 'head.out' = 'int8'}"
    )
    texts: int = Field(default=256, ge=1, description="how many texts to calibrate with")
    damping: float = Field(default=0.01, gt=0.0, description="added to the Hessian's diagonal, as a share of its mean")


class DistillSettings(FitSettings):
    """Stage `distill`: the compressed model learns the outputs and hidden states of the one it was made from."""

    epochs: int = Field(default=1, ge=1)
    batch_size: int = Field(default=32, ge=1)
    lr: float = Field(default=2e-4, gt=0.0)
    weight_decay: float = Field(default=0.0, ge=0.0)
    final_lr_fraction: float = Field(default=0.0, ge=0.0, le=1.0, description="the cosine's end, as a share of lr")
    checkpoint_seconds: float = Field(default=120.0, ge=0.0, description="time between checkpoints; 0: every step")
    texts: int | None = Field(default=40_000, ge=1, description="how many texts to train on; None: all")
    max_tokens: int = Field(default=64, ge=2, description="longer texts are cut here in training")
    hidden_weight: float = Field(default=1.0, ge=0.0, description="of the hidden states' errors in the loss")


STAGE_NEEDS: dict[str, tuple[str, ...]] = {
    "quantize": (),
    "distill": ("quantize",),
    "export": ("quantize",),
    "evaluate": ("export",),
}


class CompressRecipe(Settings):
    """How a checkpoint becomes a file."""

    name: str = Field(default="compressed", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    seed: int = Field(default=0, ge=0)
    stages: Annotated[tuple[TextStage, ...], Field(min_length=1)] = ("quantize", "distill", "export", "evaluate")
    data: TextDataSettings = TextDataSettings()
    quantize: PostTrainingSettings = PostTrainingSettings()
    distill: DistillSettings = DistillSettings()
    export: ExportSettings = ExportSettings()

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        for index, stage in enumerate(self.stages):
            before = self.stages[:index]
            missing = [need for need in STAGE_NEEDS[stage] if need not in before]
            if missing:
                raise ValueError(f"stages: '{stage}' needs '{missing[0]}' before it; got {list(self.stages)}")
            if stage in before or (stage == "distill" and "export" in before):
                raise ValueError(f"stages: '{stage}' cannot follow '{before[-1]}'; got {list(self.stages)}")
        return self
