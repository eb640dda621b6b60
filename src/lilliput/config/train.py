"""Settings of stages that train: one loop serves them all."""

from typing import Literal, Self

from pydantic import Field, model_validator

from lilliput.config.base import Settings


def refuse_without_effect(settings: Settings, names: tuple[str, ...], why: str, place: str = "") -> None:
    """Raise if a field that changes nothing has another value than its default, which any saved recipe holds."""
    for name in names:
        value = getattr(settings, name)
        default = type(settings).model_fields[name].default
        if value != default:
            raise ValueError(f"{place}{name}={value!r} has no effect {why} (its default is {default!r})")


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
    precision: Literal["fp32", "bf16"] = Field(
        default="fp32",
        description="of the factors of a step's matrix products, a teacher's too (sums: fp32); bf16 is faster with AMX",
    )
    checkpoint_seconds: float = Field(default=15.0, ge=0.0, description="time between checkpoints; 0: every step")
    evaluate_every: int = Field(default=1, ge=1, description="epochs between looks at the validation set")


class TeacherSettings(Settings):
    """What a stage that trains learns from another model, besides the labels (Hinton et al. 2015)."""

    model: str = Field(
        default="train", description="'train': the run's own model after that stage; or a folder of a saved model"
    )
    kind: Literal["soft", "hard"] = Field(
        default="soft", description="the teacher's probabilities; or its choice as a second label (DeiT)"
    )
    weight: float = Field(default=0.5, ge=0.0, le=1.0, description="of the teacher's logits; 1 - that: of the labels")
    temperature: float = Field(default=2.0, gt=0.0, description="`soft`: both models' logits are divided by it")
    hidden_weight: float = Field(
        default=0.0, ge=0.0, description="of the hidden states' errors (same width; depth a multiple of the model's)"
    )
    attention_weight: float = Field(default=0.0, ge=0.0, description="of the last block's attention (MiniLM)")
    value_weight: float = Field(default=0.0, ge=0.0, description="of the last block's value relations (MiniLM)")

    @model_validator(mode="after")
    def _check_effect(self) -> Self:
        if not (self.weight or self.hidden_weight or self.attention_weight or self.value_weight):
            raise ValueError("every weight is 0, so nothing would be learned from the teacher; leave the table out")
        if not self.weight:
            why = "with weight=0: the teacher's logits are not learned; give a weight above 0, or leave it out"
            refuse_without_effect(self, ("kind", "temperature"), why)
        if self.kind == "hard":
            refuse_without_effect(self, ("temperature",), "with kind='hard'; take kind='soft', or leave it out")
        return self


class LoopSettings(FitSettings):
    """Stages that train an image classifier."""

    label_smoothing: float = Field(default=0.1, ge=0.0, lt=1.0)
    distill: TeacherSettings | None = Field(default=None, description="a teacher; None: labels alone")

    @model_validator(mode="after")
    def _check_steps(self) -> Self:
        if self.distill is not None and self.epochs == 0:
            raise ValueError("distill with epochs=0: nothing is trained, so nothing would be learned from the teacher")
        return self


class TrainSettings(LoopSettings):
    """Stage `train`: the fp32 model."""

    @model_validator(mode="after")
    def _check_teacher(self) -> Self:
        if self.distill is not None and self.distill.model == "train":
            raise ValueError("distill.model='train' is this stage's own result; give the folder of a saved model")
        return self


class FinetuneSettings(LoopSettings):
    """Stage `finetune`: training goes on with what earlier passes fixed (masks)."""

    epochs: int = Field(default=5, ge=1)
    lr: float = Field(default=3e-4, gt=0.0)
