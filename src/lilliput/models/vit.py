"""The vision Transformer (Dosovitskiy et al. 2021), with an optional convolutional stem (hybrid), mean pooling, and
DeiT's distillation token (Touvron et al. 2021).

Its input is raw pixels, 0..255, [B, C, height, width]: normalisation is part of the model, hence part of the file.
"""

import math

import numpy as np
import torch
from torch import Tensor, nn

from lilliput.config import ModelSettings
from lilliput.errors import RecipeError
from lilliput.models.layers import Block, BlockStyle, Linear, UnfoldLinear
from lilliput.models.low_rank import LowRankLinear, linear_layers, lower_ranks


def sinusoidal_positions(tokens: int, dim: int) -> Tensor:
    """Table [tokens, dim] of Vaswani et al. 2017, section 3.5: sine in even columns, cosine in odd ones."""
    position = torch.arange(tokens, dtype=torch.float64)[:, None]
    frequency = torch.exp(torch.arange(0, dim, 2, dtype=torch.float64) * (-math.log(10000.0) / dim))
    table = torch.zeros(tokens, dim, dtype=torch.float64)
    table[:, 0::2] = torch.sin(position * frequency)
    table[:, 1::2] = torch.cos(position * frequency)[:, : dim // 2]
    return table.float()


class ViT(nn.Module):
    """Image classifier: stem -> patches -> class token and positions -> blocks -> norm -> pool -> head.

    A distillation token is row 1, behind the class token; with `distillation="head"` it has a head of its own, and the
    logits are the mean of both heads' (as in Hugging Face's DeiT with a teacher).

    Args:
        settings: the architecture as data; `resolved_layers()` gives every block's sizes, `resolved_order()` which of
            them is run at each depth, `ranks` which layers are of low rank.
        image_shape: (height, width, channels).
        num_classes: number of logits.

    Raises:
        RecipeError: the patches do not divide the (feature map of the) image; a rank is no layer's, or too large.
    """

    pixel_scale: Tensor
    pixel_shift: Tensor
    labels: tuple[str, ...] = ()  # names of the classes, if the checkpoint that the model was read from gives them
    ignored_tensors: tuple[str, ...] = ()  # of that checkpoint

    def __init__(self, settings: ModelSettings, image_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        self.settings, self.image_shape, self.num_classes = settings, image_shape, num_classes
        height, width, channels = image_shape
        self.register_buffer("pixel_scale", torch.full((channels,), 1.0 / 255.0))
        self.register_buffer("pixel_shift", torch.zeros(channels))
        self.stem = nn.ModuleList()
        for conv in settings.stem:
            layer = UnfoldLinear(channels, conv.channels, conv.kernel_size, conv.stride, conv.padding)
            height, width, channels = layer.output_size(height), layer.output_size(width), conv.channels
            self.stem.append(layer)
        patch, dim = settings.patch_size, settings.embed_dim
        if min(height, width) < 1 or height % patch or width % patch:
            allowed = [p for p in range(1, min(height, width) + 1) if height % p == 0 and width % p == 0]
            raise RecipeError(
                f"model.patch_size={patch} does not divide the {height}x{width} "
                f"{'feature map of the stem' if settings.stem else 'image'}; allowed: {allowed}"
            )
        self.patch_embed = UnfoldLinear(channels, dim, patch, patch, 0)
        tokens = (height // patch) * (width // patch) + (settings.pool == "cls") + bool(settings.distillation)
        self.class_token = nn.Parameter(torch.zeros(1, dim)) if settings.pool == "cls" else None
        self.distillation_token = nn.Parameter(torch.zeros(1, dim)) if settings.distillation else None
        if settings.positions == "learned":
            self.positions = nn.Parameter(torch.zeros(tokens, dim))
        else:
            self.register_buffer("positions", sinusoidal_positions(tokens, dim))
        style = BlockStyle(norm_eps=settings.norm_eps, dropout=settings.dropout)
        # Each block once; `forward` runs them in the settings' order.
        self.blocks = nn.ModuleList(Block(dim, layer, style) for layer in settings.resolved_layers())
        self.norm = nn.LayerNorm(dim, eps=settings.norm_eps)
        self.head: Linear | LowRankLinear = Linear(dim, num_classes)
        self.distillation_head: Linear | LowRankLinear | None = None
        if settings.distillation == "head":
            self.distillation_head = Linear(dim, num_classes)
        self.dropout = nn.Dropout(settings.dropout)
        lower_ranks(self, settings.ranks)
        self._initialize()

    def _initialize(self) -> None:
        for module in self.modules():
            if isinstance(module, Linear):
                nn.init.xavier_uniform_(module.weight)  # small widths learn far faster than with BERT's std of 0.02
                nn.init.zeros_(module.bias)
        for projection in self.stem:
            assert isinstance(projection, UnfoldLinear)
            if isinstance(projection.proj, Linear):
                nn.init.kaiming_normal_(projection.proj.weight, nonlinearity="relu")
        for head in (self.head, self.distillation_head):
            if isinstance(head, Linear):
                nn.init.trunc_normal_(head.weight, std=0.02)
        if isinstance(self.positions, nn.Parameter):
            # Of the size of a token: with BERT's 0.02 a short training spends its first epochs telling positions apart.
            nn.init.trunc_normal_(self.positions, std=0.5)
        for token in (self.class_token, self.distillation_token):
            if token is not None:
                nn.init.trunc_normal_(token, std=0.02)

    def set_normalization(self, mean: np.ndarray, std: np.ndarray) -> None:
        """Take the training set's statistics, in pixel units (0..255), one value a channel."""
        self.pixel_scale.copy_(torch.from_numpy(1.0 / std.astype("float64")).float())
        self.pixel_shift.copy_(torch.from_numpy(-mean.astype("float64") / std.astype("float64")).float())

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits [B, num_classes] of pixels [B, C, height, width] in 0..255."""
        logits, by_distillation = self.logits_of_heads(pixels)
        return logits if by_distillation is None else (logits + by_distillation) / 2

    def logits_of_heads(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits [B, num_classes] of the head, and of the distillation head, if there is one."""
        x = pixels * self.pixel_scale[:, None, None] + self.pixel_shift[:, None, None]
        for layer in self.stem:
            assert isinstance(layer, UnfoldLinear)
            height, width = layer.output_size(x.shape[2]), layer.output_size(x.shape[3])
            x = torch.relu(layer(x)).transpose(1, 2).unflatten(2, (height, width))
        tokens: Tensor = self.patch_embed(x)
        for token in (self.distillation_token, self.class_token):
            if token is not None:
                tokens = torch.cat([token.expand(tokens.shape[0], 1, -1), tokens], dim=1)
        tokens = self.dropout(tokens + self.positions)
        for index in self.settings.resolved_order():
            tokens = self.blocks[index](tokens)
        tokens = self.norm(tokens)
        pooled = tokens[:, 0] if self.class_token is not None else tokens.mean(dim=1)
        by_distillation = None if self.distillation_head is None else self.distillation_head(tokens[:, 1])
        return self.head(pooled), by_distillation

    def linears(self) -> dict[str, Linear]:
        """Every linear and projection layer by name, a shared one once and of a layer of low rank both factors: what
        pruning and weight quantisation apply to."""
        return linear_layers(self)

    def program_columns(self) -> dict[str, Tensor]:
        """For every entry of `linears`, the order of its columns in the program."""
        columns = {name: torch.arange(linear.in_features) for name, linear in self.linears().items()}
        for name, module in self.named_modules():
            if isinstance(module, UnfoldLinear):
                reads = f"{name}.proj" if isinstance(module.proj, Linear) else f"{name}.proj.inner"
                columns[reads] = module.program_columns()
        return columns

    def num_parameters(self) -> int:
        """Learned parameters, counted once, whatever is on their stacks."""
        return sum(p.numel() for name, p in self.named_parameters() if not name.endswith((".scale", ".scores")))
