"""Settings of the stages that compress: a pass each, and the training that lets a model recover from it."""

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from lilliput.config.train import LoopSettings, refuse_without_effect


def _refuse_pot6(name: object) -> object:
    if name == "pot6":
        raise ValueError(
            "'pot6' is no weight format: its powers of two below those of pot4 are no whole levels of 8 bits; take "
            "pot4, or for 6 bits apot6 (allowed: int8, int6, int4, pot4, apot4, apot6)"
        )
    return name


WeightFormatName = Annotated[Literal["int8", "int6", "int4", "pot4", "apot4", "apot6"], BeforeValidator(_refuse_pot6)]
ActivationBits = Literal[8, 6, 4]
Share = Annotated[float, Field(ge=0.0, lt=1.0)]

BLOCK = (16, 8)  # outputs x inputs that a file leaves out as a whole (docs/format.md, `blocks`)
SIX_BIT_BLOCK = (16, 16)


class ShareSettings(LoopSettings):
    """Stage `share`: neighbouring blocks become one, run at several depths (ALBERT; Lan et al. 2020)."""

    num_blocks: int = Field(default=1, ge=1, description="blocks that are left, each run at as many depths as can be")


class ShrinkSettings(LoopSettings):
    """Stage `shrink`: whole heads, neurons, blocks and columns of the residual stream go, and tensors get smaller."""

    lr: float = Field(default=5e-4, gt=0.0)
    heads: Share = Field(default=0.0, description="share of all heads that goes, the least important first (Michel)")
    neurons: Share = Field(default=0.0, description="share of all hidden neurons that goes")
    blocks: int = Field(default=0, ge=0, description="how many whole blocks go")
    embed_dim: int | None = Field(default=None, ge=1, description="width that is left; None: all of it")
    steps: int = Field(default=10, ge=1, description="heads and neurons go in so many steps")
    reestimate: bool = Field(default=True, description="importance is found anew before each step")
    examples: int = Field(default=512, ge=1, description="training examples that importance is found on")

    @model_validator(mode="after")
    def _check_effect(self) -> Self:
        if not (self.heads or self.neurons):
            why = "without heads or neurons to remove; give a share of those, or leave it out"
            refuse_without_effect(self, ("steps", "reestimate"), why)
        return self


class FactorizeSettings(LoopSettings):
    """Stage `factorize`: a weight becomes the product of two thin ones, where that takes fewer numbers."""

    method: Literal["svd", "whitened", "asvd"] = Field(
        default="whitened",
        description="of the weight alone; or least error on training examples (SVD-LLM); or scaled by them (ASVD)",
    )
    energy: float | None = Field(
        default=None, gt=0.0, le=1.0, description="share of the squared singular values that is kept"
    )
    budget: float | None = Field(
        default=None, gt=0.0, lt=1.0, description="share of each weight's numbers that is kept; None of the three: 0.5"
    )
    rank: int | None = Field(default=None, ge=1, description="the same for every layer")
    layers: tuple[str, ...] = Field(
        default=("blocks",), min_length=1, description="which, by name or beginning: 'blocks.0', 'blocks.0.mlp.fc1'"
    )
    alpha: float = Field(default=0.5, ge=0.0, le=1.0, description="`asvd`: exponent of an input's mean magnitude")
    examples: int = Field(default=512, ge=1, description="training examples that inputs are looked at on")

    @model_validator(mode="after")
    def _check_one(self) -> Self:
        given = [name for name in ("energy", "budget", "rank") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"give one of energy, budget and rank, got {' and '.join(given)}")
        return self

    @model_validator(mode="after")
    def _check_effect(self) -> Self:
        if self.method != "asvd":
            refuse_without_effect(self, ("alpha",), f"with method='{self.method}'; take 'asvd', or leave it out")
        if self.method == "svd":
            why = "with method='svd', which looks at weights alone; take 'whitened' or 'asvd', or leave it out"
            refuse_without_effect(self, ("examples",), why)
        return self


class PruneSettings(LoopSettings):
    """Stage `prune`: weights become zero, on a cubic schedule (Zhu and Gupta).

    By default the smallest of all linear and projection weights go. `scope = "layer"` takes the same share of every
    layer. `criterion = "movement"` removes those that training moves towards zero (Sanh et al. 2020). With `pattern`,
    so many of every few consecutive inputs are kept. With `block`, whole blocks go, those of least norm relative to
    their layer's; shares are then shares of blocks. Blocks alone make the runtime faster.
    """

    epochs: int = Field(default=10, ge=1)
    lr: float = Field(default=5e-4, gt=0.0)
    sparsity: float = Field(default=0.6, gt=0.0, lt=1.0, description="share of zero weights at the end")
    scope: Literal["global", "layer"] = Field(default="global", description="one threshold for all layers, or one each")
    criterion: Literal["magnitude", "movement"] = "magnitude"
    score_lr: float = Field(default=1e-2, gt=0.0, description="`movement`: learning rate of the scores")
    pattern: tuple[int, int] | None = Field(
        default=None, description="[N, M]: N of every M consecutive inputs are kept, so `sparsity` is 1 - N/M"
    )
    start_fraction: float = Field(default=0.0, ge=0.0, lt=1.0, description="of the steps, before the first weight goes")
    end_fraction: float = Field(
        default=0.7, gt=0.0, le=1.0, description="of the steps, when the full sparsity is reached"
    )
    update_every: int = Field(default=20, ge=1, description="steps between updates of the masks")
    layer_floor: float = Field(
        default=0.02, ge=0.0, lt=1.0, description="share of weights that every layer keeps, if the threshold is global"
    )
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
        if self.pattern is None and self.scope == "global" and self.layer_floor > 1.0 - self.sparsity:
            raise ValueError(f"layer_floor={self.layer_floor} must be at most 1 - sparsity = {1.0 - self.sparsity:.3g}")
        return self

    @model_validator(mode="after")
    def _check_structure(self) -> Self:
        if self.pattern is not None:
            if not 1 <= self.pattern[0] < self.pattern[1] <= 64:
                raise ValueError(f"pattern={list(self.pattern)} must be [N, M] with 1 <= N < M <= 64")
            share = 1.0 - self.pattern[0] / self.pattern[1]
            if "sparsity" in self.model_fields_set and self.sparsity != share:
                pattern = list(self.pattern)
                raise ValueError(f"pattern={pattern} makes {share:g} of the weights zero; leave out sparsity")
            self.__dict__["sparsity"] = share  # so that reports and saved recipes say what is done
        others = [name for name in ("pattern", "block") if getattr(self, name) is not None]
        if len(others) > 1 or (others and self.criterion == "movement"):
            got = " and ".join([*others, "criterion='movement'"][:2])
            raise ValueError(f"{got} exclude each other")
        return self

    @model_validator(mode="after")
    def _check_effect(self) -> Self:
        if self.criterion != "movement":
            why = f"with criterion='{self.criterion}'; take 'movement', or leave it out"
            refuse_without_effect(self, ("score_lr",), why)
        if self.layer_floor and (self.pattern is not None or self.scope == "layer"):  # 0 says what is so
            other = "scope='layer'" if self.pattern is None else f"pattern={list(self.pattern)}"
            why = f"with {other}, which takes the same share of each layer; leave it out"
            refuse_without_effect(self, ("layer_floor",), why)
        return self


HiddenScales = Annotated[
    Literal["static", "dynamic"],
    Field(description="scales of hidden activations: constants in the file, one a channel; or found for each row"),
]


class QuantizeSettings(LoopSettings):
    """Stage `quantize`: quantisation of weights, activations, embeddings and vectors, with training or, with
    `epochs = 0`, by calibration alone."""

    epochs: int = Field(default=10, ge=0, description="0: post-training, no step is trained")
    lr: float = Field(default=3e-4, gt=0.0)
    weight_format: WeightFormatName = "pot4"
    embedding_format: WeightFormatName = "int8"
    formats: dict[str, WeightFormatName] = Field(
        default={}, description="of single layers, by name or beginning: {'blocks.0' = 'int8', 'head' = 'int8'}"
    )
    code_bytes: int | None = Field(
        default=None,
        ge=1,
        description="instead of one format: the bytes that all weights' codes may take, given to the layers that need "
        "them most (sensitivity on training examples)",
    )
    activation_bits: ActivationBits = Field(default=8, description="of what goes into each product with weights")
    hidden: HiddenScales = "static"
    scales: Literal["searched", "learned", "power_of_two"] = Field(
        default="searched",
        description="searched once, before training; or learned (LSQ), starting from there; or searched among powers "
        "of two, for hardware that only shifts",
    )

    @model_validator(mode="after")
    def _check_effect(self) -> Self:
        if self.code_bytes is not None and "weight_format" in self.model_fields_set:
            raise ValueError("code_bytes and weight_format exclude each other: with code_bytes each layer gets its own")
        if self.epochs == 0 and self.scales == "learned":
            raise ValueError("scales='learned' needs epochs; with epochs=0 they are 'searched' or 'power_of_two'")
        return self
