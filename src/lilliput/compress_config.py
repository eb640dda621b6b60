"""Settings of `lil compress`: from a checkpoint and unlabelled texts or images to a small file. One class a stage."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from lilliput.config import (
    DataSettings,
    ExportSettings,
    FitSettings,
    HiddenScales,
    Settings,
)
from lilliput.config import WeightFormatName as Format

CompressStage = Literal["factorize", "quantize", "distill", "export", "evaluate"]
ImageCompressStage = Literal["quantize", "distill", "export", "evaluate"]


class TextDataSettings(Settings):
    """Texts without labels. What is held out is drawn with the seed before anything else sees a text."""

    path: str | None = Field(default=None, description="one text a line, or a .csv or .jsonl; given by --data")
    column: str | None = Field(default=None, description="of a .csv or .jsonl; None: 'text'")
    test: int = Field(default=1000, ge=1, description="texts to measure on; at most a quarter of all")
    validation: int = Field(default=300, ge=1, description="texts to watch training with; at most a quarter of all")
    split_seed: int = Field(default=0, ge=0)
    max_tokens: int = Field(default=128, ge=2, description="longer texts are cut here (not in the file)")


class TextFactorizeSettings(Settings):
    """Stage `factorize` of texts: the table of words becomes vectors of `embedding_dim` numbers, and one product that
    makes them as wide as the model, nearest for the words that the training texts have most of."""

    embedding_dim: int = Field(default=192, ge=1, description="of a word's vector; fewer are a smaller file")


class PostTrainingSettings(Settings):
    """Stage `quantize`: every matrix to its format, with nothing but forward passes over some examples."""

    weight_format: Format = Field(default="int4", description="of linear layers; at 4 bits int4 is nearer than pot4")
    positions_format: Format = Field(default="int8", description="of an image model's class tokens, too")
    hidden: HiddenScales = "static"
    formats: dict[str, Format] = Field(
        default={}, description="of single layers, by name or beginning: {'blocks.0' = 'int8', 'head.out' = 'int8'}"
    )
    damping: float = Field(default=0.01, gt=0.0, description="added to the Hessian's diagonal, as a share of its mean")

    def embedding_format(self, name: str) -> Format:
        """The format of the table that the model calls `name`."""
        return self.positions_format


class TextPostTrainingSettings(PostTrainingSettings):
    words_format: Format = "int4"
    texts: int = Field(default=256, ge=1, description="how many texts to calibrate with")

    def embedding_format(self, name: str) -> Format:
        return self.words_format if name == "words" else self.positions_format


class ImagePostTrainingSettings(PostTrainingSettings):
    images: int = Field(default=256, ge=1, description="how many images to calibrate with")


class DistillSettings(FitSettings):
    """Stage `distill`: the compressed model learns the outputs and hidden states of the one it was made from."""

    epochs: int = Field(default=1, ge=1)
    batch_size: int = Field(default=32, ge=1)
    lr: float = Field(default=2e-4, gt=0.0)
    weight_decay: float = Field(default=0.0, ge=0.0)
    final_lr_fraction: float = Field(default=0.0, ge=0.0, le=1.0, description="the cosine's end, as a share of lr")
    checkpoint_seconds: float = Field(default=120.0, ge=0.0, description="time between checkpoints; 0: every step")
    hidden_weight: float = Field(default=1.0, ge=0.0, description="of the hidden states' errors in the loss")


class TextDistillSettings(DistillSettings):
    texts: int | None = Field(default=40_000, ge=1, description="how many texts to train on; None: all")
    max_tokens: int = Field(default=64, ge=2, description="longer texts are cut here in training")


class ImageDistillSettings(DistillSettings):
    images: int | None = Field(default=40_000, ge=1, description="how many images to train on; None: all")


STAGE_NEEDS: dict[str, tuple[str, ...]] = {
    "factorize": (),
    "quantize": (),
    "distill": ("quantize",),
    "export": ("quantize",),
    "evaluate": ("export",),
}
STAGE_NOT_AFTER: dict[str, tuple[str, ...]] = {"factorize": ("quantize",), "distill": ("export",)}


class CommonRecipe(Settings):
    """How a checkpoint becomes a file: what those of texts and of images share."""

    command: Literal["compress"] = Field(default="compress", description="which command the recipe is for")
    name: str = Field(default="compressed", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    seed: int = Field(default=0, ge=0)
    stages: Annotated[tuple[CompressStage, ...], Field(min_length=1)] = ("quantize", "distill", "export", "evaluate")
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
            for other in (stage, *STAGE_NOT_AFTER.get(stage, ())):
                if other in before:
                    raise ValueError(f"stages: '{stage}' cannot follow '{other}'; got {list(self.stages)}")
        return self


class TextCompressRecipe(CommonRecipe):
    """For a text encoder."""

    data: TextDataSettings = TextDataSettings()
    factorize: TextFactorizeSettings = TextFactorizeSettings()
    quantize: TextPostTrainingSettings = TextPostTrainingSettings()
    distill: TextDistillSettings = TextDistillSettings()

    def with_data(self, given: str) -> Self:
        """`given` by --data: a file."""
        return self.model_copy(update={"data": self.data.model_copy(update={"path": given})})


class ImageCompressRecipe(CommonRecipe):
    """For an image model. Of the data only `evaluate` looks at labels, if there are any."""

    stages: Annotated[tuple[ImageCompressStage, ...], Field(min_length=1)] = (
        "quantize",
        "distill",
        "export",
        "evaluate",
    )
    data: DataSettings | None = None
    quantize: ImagePostTrainingSettings = ImagePostTrainingSettings()
    distill: ImageDistillSettings = ImageDistillSettings()

    def with_data(self, given: str) -> Self:
        """`given` by --data: the name of a data set, or a folder of images."""
        place = (
            {"name": given} if given in ("digits", "fashion-mnist", "cifar10") else {"name": "folder", "path": given}
        )
        return self.model_copy(update={"data": (self.data or DataSettings()).model_copy(update=place)})
