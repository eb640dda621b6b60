"""A recipe of `lil run`: data, model, and stages in a legal order."""

from typing import Annotated, Literal, Self, get_args

from pydantic import Field, model_validator

from lilliput.config.base import Settings
from lilliput.config.data import AugmentSettings, DataSettings
from lilliput.config.model import ModelSettings
from lilliput.config.passes import (
    SIX_BIT_BLOCK,
    FactorizeSettings,
    PruneSettings,
    QuantizeSettings,
    ShareSettings,
    ShrinkSettings,
)
from lilliput.config.products import EvaluateSettings, ExportSettings, ReportSettings
from lilliput.config.train import FinetuneSettings, TrainSettings, refuse_without_effect

StageName = Literal[
    "train", "share", "shrink", "factorize", "prune", "finetune", "quantize", "export", "evaluate", "report"
]

# What must have run before each stage, in any distance. Checked before anything is trained.
STAGE_NEEDS: dict[str, tuple[str, ...]] = {
    "train": (),
    "share": ("train",),
    "shrink": ("train",),
    "factorize": ("train",),
    "prune": ("train",),
    "finetune": ("train",),
    "quantize": ("train",),
    "export": ("quantize",),
    "evaluate": ("export",),
    "report": ("evaluate",),
}
# What must not have run before. What changes tensors' shapes comes first, from the coarsest on: blocks that are to be
# one must have the same shape, a head cannot be cut out of two factors, and factors of a pruned weight have no zeros.
# Then zeros, then levels: pruning after the weights are quantised would undo the guarantee of either.
STAGE_NOT_AFTER: dict[str, tuple[str, ...]] = {
    "train": ("train", "share", "shrink", "factorize", "prune", "finetune", "quantize", "export"),
    "share": ("share", "shrink", "factorize", "prune", "quantize", "export"),
    "shrink": ("shrink", "factorize", "prune", "quantize", "export"),
    "factorize": ("factorize", "prune", "quantize", "export"),
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
    share: ShareSettings = ShareSettings()
    shrink: ShrinkSettings = ShrinkSettings()
    factorize: FactorizeSettings = FactorizeSettings()
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
                order = ", ".join(name for name in get_args(StageName) if name in self.stages)
                raise ValueError(
                    f"stages: '{stage}' cannot follow '{forbidden[0]}'; got {list(self.stages)}, their order is {order}"
                )
            done.append(stage)
        return self

    @model_validator(mode="after")
    def _check_block(self) -> Self:
        block, inputs = self.prune.block, SIX_BIT_BLOCK[1]
        if block is None or not {"prune", "quantize"} <= set(self.stages) or not block[1] % inputs:
            return self
        quantize = self.quantize
        six = [name for name in (quantize.weight_format, *quantize.formats.values()) if name in ("int6", "apot6")]
        if six or quantize.code_bytes is not None:
            why = f"format '{six[0]}'" if six else "quantize.code_bytes, which may choose a format of 6 bits"
            raise ValueError(f"prune.block={list(block)}: inputs must be a multiple of {inputs} with {why}")
        return self

    @model_validator(mode="after")
    def _check_shrink(self) -> Self:
        shrink = self.shrink
        if "shrink" in self.stages and not (shrink.heads or shrink.neurons or shrink.blocks or shrink.embed_dim):
            raise ValueError("shrink: nothing to remove; give at least one of heads, neurons, blocks and embed_dim")
        return self

    @model_validator(mode="after")
    def _check_effect(self) -> Self:
        # Here and not in the settings themselves: those of a model that a pass has changed keep what they began with.
        if self.model.layers is not None:
            why = "with model.layers, which give every block's sizes; leave one of them out"
            refuse_without_effect(self.model, ("depth", "num_heads", "mlp_dim"), why, "model.")
        return self
