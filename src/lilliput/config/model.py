"""The architecture as data: a model that a pass has changed reloads from its own settings."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from lilliput.config.base import Settings


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
    order: tuple[int, ...] | None = Field(
        default=None,
        description="which block is run at each depth (one may be run at several); None: each once",
    )
    ranks: dict[str, Annotated[int, Field(ge=1)]] = Field(
        default={}, description="layers, by name, that are a product of two, and how many numbers lie between"
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
        blocks = self.depth if self.layers is None else len(self.layers)
        if self.order is not None and set(self.order) != set(range(blocks)):
            raise ValueError(f"order={list(self.order)} must name each of the {blocks} blocks, 0 to {blocks - 1}")
        if self.preset == "vit-413k":
            fixed = {"patch_size": 4, "embed_dim": 128, "depth": 3, "num_heads": 4, "mlp_dim": 256, "pool": "cls"}
            changed = [name for name in self.model_fields_set if name in fixed and getattr(self, name) != fixed[name]]
            others = (self.layers, self.stem or None, self.distillation, self.order, self.ranks or None)
            if changed or any(other is not None for other in others) or self.positions != "learned":
                raise ValueError(f"preset 'vit-413k' fixes the architecture ({fixed}); drop the preset to change it")
        return self

    def resolved_layers(self) -> tuple[LayerSettings, ...]:
        """Sizes of every block, however they were given."""
        if self.layers is not None:
            return self.layers
        head_dim = self.embed_dim // self.num_heads
        return (LayerSettings(num_heads=self.num_heads, head_dim=head_dim, mlp_dim=self.mlp_dim),) * self.depth

    def resolved_order(self) -> tuple[int, ...]:
        """The block that is run at each depth."""
        return self.order if self.order is not None else tuple(range(len(self.resolved_layers())))
