"""Text encoders: one model whose settings cover BERT (Devlin et al. 2019; MiniLM is one), RoBERTa (Liu et al. 2019),
DistilBERT (Sanh et al. 2019), ALBERT (Lan et al. 2020) and MobileBERT (Sun et al. 2020).

Axes: B batch, T tokens, V vocabulary, P positions, E width of the embeddings, D width of the model. A batch is padded
at the end, and a mask says which tokens are real: no value of a real token depends on padding, because the program has
none.
"""

from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lilliput.config import LayerSettings, Settings
from lilliput.errors import InputError
from lilliput.models.layers import ACTIVATIONS, Attention, Block, BlockStyle, Linear, Mlp, NoNorm
from lilliput.models.stack import rows_of
from lilliput.models.straight_through import Activation

Family = Literal["bert", "roberta", "distilbert", "albert", "mobilebert"]


class EncoderLayerSettings(LayerSettings):
    """One block. With `bottleneck_dim` it is MobileBERT's, with as many MLPs before its last as `stacked_dims` has."""

    bottleneck_dim: int | None = Field(default=None, ge=1)
    stacked_dims: tuple[int, ...] = Field(default=(), description="mlp_dim of each MLP before the last")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.stacked_dims and self.bottleneck_dim is None:
            raise ValueError("stacked_dims needs bottleneck_dim: only a block with bottlenecks stacks MLPs")
        if any(dim < 1 for dim in self.stacked_dims):
            raise ValueError(f"stacked_dims={list(self.stacked_dims)}: each must be at least 1")
        return self


class HeadSettings(Settings):
    """A classifier on the pooled token: maybe a hidden layer, then one logit a label."""

    labels: tuple[str, ...] = Field(min_length=1)
    hidden_dim: int | None = Field(default=None, ge=1, description="None: no hidden layer")
    activation: Literal["tanh", "relu"] = Field(default="tanh", description="of the hidden layer")


class EncoderSettings(Settings):
    """A text encoder as data.

    Token vectors are `embedding_dim` wide. Where that is not `embed_dim` they are projected: `words` before positions
    are added (MobileBERT), or `sum` after positions and norm (ALBERT), in which case positions are `embedding_dim` wide
    too.
    """

    family: Family = Field(default="bert", description="Hugging Face's model type, as which it can be saved")
    vocabulary_size: int = Field(ge=1)
    num_positions: int = Field(default=512, ge=1, le=65536)
    max_tokens: int | None = Field(default=None, ge=1, description="longer texts are cut; None: `num_positions`")
    token_types: int = Field(default=0, ge=0, description="rows of that table, of which row 0 is added to every token")
    pad_id: int | None = Field(default=None, ge=0, description="kept for saving; the mask says what is padding")
    embed_dim: int = Field(ge=1, le=65536)
    embedding_dim: int | None = Field(default=None, ge=1, le=65536, description="None: `embed_dim`")
    projection: Literal["words", "sum"] | None = None
    trigram: bool = Field(default=False, description="a word's vector stands between its two neighbours' (MobileBERT)")
    layers: tuple[EncoderLayerSettings, ...] = Field(min_length=1)
    order: tuple[int, ...] | None = Field(
        default=None, description="which of `layers` is run at each depth (ALBERT shares them); None: each once"
    )
    embedding_norm: Literal["layer_norm", "no_norm"] = "layer_norm"
    norm_eps: float = Field(default=1e-12, gt=0.0, le=1.0)
    norm_first: bool = Field(default=False, description="pre-norm blocks, and a norm behind the last")
    activation: Activation = "gelu"
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    pooling: Literal["cls", "mean"] | None = Field(default=None, description="None: the vectors of all tokens")
    normalize: bool = Field(default=False, description="pooled vectors get length 1")
    head: HeadSettings | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        bad = [index for index in self.order or () if not 0 <= index < len(self.layers)]
        if self.order == () or bad:
            raise ValueError(f"order={list(self.order or ())}: give indices of the {len(self.layers)} layers")
        if self.projection is None and (self.trigram or self.token_dim != self.embed_dim):
            raise ValueError("trigram, or an embedding_dim that is not embed_dim, needs a projection: 'words' or 'sum'")
        if self.trigram and self.projection != "words":
            raise ValueError(f"trigram needs projection='words', got '{self.projection}'")
        if self.pooling is None and (self.normalize or self.head is not None):
            raise ValueError("normalize and head need pooling 'cls' or 'mean'")
        if self.normalize and self.head is not None:
            raise ValueError("normalize is for embeddings: drop it, or the head")
        if self.norm_first and any(layer.bottleneck_dim for layer in self.layers):
            raise ValueError("a layer with bottleneck_dim has its norms last; drop norm_first")
        if self.max_tokens is not None and self.max_tokens > self.num_positions:
            raise ValueError(f"max_tokens={self.max_tokens} is above num_positions={self.num_positions}")
        return self

    @property
    def token_dim(self) -> int:
        """E, the width of a token's own vector."""
        return self.embedding_dim or self.embed_dim

    @property
    def position_dim(self) -> int:
        """Width of positions and token types."""
        return self.token_dim if self.projection == "sum" else self.embed_dim

    def resolved_order(self) -> tuple[int, ...]:
        """Which block is run at each depth."""
        return tuple(range(len(self.layers))) if self.order is None else self.order


class Bottleneck(nn.Module):
    """MobileBERT's way into a narrower block: a product and NoNorm."""

    def __init__(self, dim: int, bottleneck_dim: int) -> None:
        super().__init__()
        self.proj = Linear(dim, bottleneck_dim)
        self.norm = NoNorm(bottleneck_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x))


class StackedMlp(nn.Module):
    """NoNorm(x + MLP(x))."""

    def __init__(self, dim: int, mlp_dim: int, activation: Activation) -> None:
        super().__init__()
        self.mlp = Mlp(dim, mlp_dim, activation)
        self.norm = NoNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.mlp(x))


class BottleneckBlock(nn.Module):
    """MobileBERT's block (Sun et al. 2020, figure 1 (c)): narrow inside, wide between blocks.

    Queries and keys share one bottleneck, the residual stream inside has another, and values come from the wide input.
    Its norms are NoNorm and come last.
    """

    def __init__(self, dim: int, layer: EncoderLayerSettings, style: BlockStyle) -> None:
        super().__init__()
        assert layer.bottleneck_dim is not None
        inner = layer.bottleneck_dim
        self.bottleneck = Bottleneck(dim, inner)
        self.attn_bottleneck = Bottleneck(dim, inner)
        self.attn = Attention(inner, layer.num_heads, layer.head_dim, value_dim=dim)
        self.norm1 = NoNorm(inner)
        self.stacked = nn.ModuleList(StackedMlp(inner, mlp_dim, style.activation) for mlp_dim in layer.stacked_dims)
        self.mlp = Mlp(inner, layer.mlp_dim, style.activation)
        self.norm2 = NoNorm(inner)
        self.out = Linear(inner, dim)
        self.out_norm = NoNorm(dim)
        self.dropout = nn.Dropout(style.dropout)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B, T, D] -> [B, T, D]; `mask` as in `Attention`."""
        inner = self.norm1(self.bottleneck(x) + self.attn(self.attn_bottleneck(x), mask, values=x))
        for mlp in self.stacked:
            inner = mlp(inner)
        inner = self.norm2(inner + self.mlp(inner))
        return self.out_norm(x + self.dropout(self.out(inner)))


class Head(nn.Module):
    """Logits [B, number of labels] of pooled vectors [B, D]."""

    def __init__(self, dim: int, settings: HeadSettings, dropout: float) -> None:
        super().__init__()
        self.activation = settings.activation
        self.hidden = None if settings.hidden_dim is None else Linear(dim, settings.hidden_dim)
        self.out = Linear(settings.hidden_dim or dim, len(settings.labels))
        self.dropout = nn.Dropout(dropout)

    def forward(self, pooled: Tensor) -> Tensor:
        if self.hidden is not None:
            pooled = ACTIVATIONS[self.activation](self.hidden(pooled))
        return self.out(self.dropout(pooled))


class TextEncoder(nn.Module):
    """Token embeddings -> blocks -> pooling -> head, as far as the settings have them."""

    ignored_tensors: tuple[str, ...] = ()  # of the checkpoint that it was read from

    def __init__(self, settings: EncoderSettings) -> None:
        super().__init__()
        self.settings = settings
        dim, words, positions = settings.embed_dim, settings.token_dim, settings.position_dim
        style = BlockStyle(settings.activation, settings.norm_eps, settings.norm_first, settings.dropout)
        self.words = nn.Parameter(torch.zeros(settings.vocabulary_size, words))
        self.positions = nn.Parameter(torch.zeros(settings.num_positions, positions))
        self.token_types: nn.Parameter | None
        self.token_types = nn.Parameter(torch.zeros(settings.token_types, positions)) if settings.token_types else None
        self.embedding_norm: nn.Module
        if settings.embedding_norm == "no_norm":
            self.embedding_norm = NoNorm(positions)
        else:
            self.embedding_norm = nn.LayerNorm(positions, eps=settings.norm_eps)
        width = 3 * words if settings.trigram else words
        self.projection = None if settings.projection is None else Linear(width, dim)
        # Each block once; `forward` runs them in the settings' order.
        self.blocks = nn.ModuleList(
            Block(dim, layer, style) if layer.bottleneck_dim is None else BottleneckBlock(dim, layer, style)
            for layer in settings.layers
        )
        self.norm = nn.LayerNorm(dim, eps=settings.norm_eps) if settings.norm_first else None
        self.head = None if settings.head is None else Head(dim, settings.head, settings.dropout)
        self.dropout = nn.Dropout(settings.dropout)
        self._initialize()

    def _initialize(self) -> None:
        for module in self.modules():
            if isinstance(module, Linear):
                nn.init.xavier_uniform_(module.weight)  # as in the ViT
                nn.init.zeros_(module.bias)
        if self.head is not None:
            nn.init.trunc_normal_(self.head.out.weight, std=0.02)
        for table in (self.words, self.positions, self.token_types):
            if table is not None:
                nn.init.trunc_normal_(table, std=0.02)  # BERT's; a norm follows, so only their sizes' ratio matters

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the logits; empty without a head."""
        return () if self.settings.head is None else self.settings.head.labels

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """The model's output: hidden states [B, T, D]; with pooling [B, D]; with a head logits [B, number of labels].

        Args:
            ids: int64 [B, T], each below `vocabulary_size`.
            mask: bool [B, T], False for padding (at the end of a row; every row has a True). None: nothing is padding.

        Raises:
            InputError: there are more tokens than positions, or the mask has another shape.
        """
        x = self.embed(ids, mask)
        for index in self.settings.resolved_order():
            x = self.blocks[index](x, mask)
        return self.output(x, mask)

    def output(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """What `forward` returns, from what the last block gives."""
        if self.norm is not None:
            x = self.norm(x)
        if self.settings.pooling is None:
            return x
        pooled = x[:, 0] if self.settings.pooling == "cls" else _mean(x, mask)
        if self.head is not None:
            return self.head(pooled)
        return F.normalize(pooled, dim=-1, eps=1e-12) if self.settings.normalize else pooled

    def hidden_states(self, ids: Tensor, mask: Tensor | None = None) -> list[Tensor]:
        """What goes into the first block and what comes out of each: depth + 1 tensors [B, T, D]."""
        states = [self.embed(ids, mask)]
        for index in self.settings.resolved_order():
            states.append(self.blocks[index](states[-1], mask))
        return states

    def embed(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        """What goes into the first block, [B, T, D]."""
        settings, tokens = self.settings, ids.shape[1]
        if tokens > settings.num_positions:
            raise InputError(f"a text of {tokens} tokens: this model has positions for {settings.num_positions}")
        if mask is not None and mask.shape != ids.shape:
            raise InputError(f"a mask of shape {list(mask.shape)}: it must be that of the ids, {list(ids.shape)}")
        x = rows_of(self, "words", ids)
        if settings.trigram:
            x = _with_neighbors(x if mask is None else x * mask[..., None])
        if self.projection is not None and settings.projection == "words":
            x = self.projection(x)
        x = self.dropout(self.embedding_norm(x + self.position_table()[:tokens]))
        if self.projection is not None and settings.projection == "sum":
            x = self.projection(x)
        return x

    def position_table(self) -> Tensor:
        """What is added to the tokens, row by row: positions and token type 0. [P, E or D]."""
        return self.positions if self.token_types is None else self.positions + self.token_types[0]

    @torch.no_grad()
    def merge_token_types(self) -> None:
        """Make `position_table` one parameter: add token type 0 to the positions, and drop the token types.

        Quantisation does this first, because the program holds one table.
        """
        if self.token_types is not None:
            assert not parametrize.is_parametrized(self, "positions"), "the stack of `positions` comes after merging"
            self.positions.add_(self.token_types[0])
            self.token_types = None
            self.settings = self.settings.model_copy(update={"token_types": 0})

    def linears(self) -> dict[str, Linear]:
        """Every linear layer by name, a shared one once: what pruning and weight quantisation apply to."""
        return {name: module for name, module in self.named_modules() if isinstance(module, Linear)}

    def program_columns(self) -> dict[str, Tensor]:
        """For every entry of `linears`, the order of its columns in the program: their own."""
        return {name: torch.arange(linear.in_features) for name, linear in self.linears().items()}

    def num_parameters(self) -> int:
        """Learned parameters, counted once, whatever is on their stacks."""
        return sum(p.numel() for name, p in self.named_parameters() if not name.endswith(".scale"))


def _mean(x: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over the real tokens: [B, T, D] -> [B, D]."""
    if mask is None:
        return x.mean(dim=1)
    return (x * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)


def _with_neighbors(x: Tensor) -> Tensor:
    """The next token's vector, the token's own, and the one before: [B, T, E] -> [B, T, 3 * E]; zeros outside."""
    padded = F.pad(x, (0, 0, 1, 1))
    before, after = padded[:, :-2], padded[:, 2:]
    return torch.cat([after, x, before], dim=-1)
