"""The layers that a program becomes for PyTorch: what a torch user would write. Axes: B batch, T or R rows, D width.

Where sequences of several lengths are padded to one, a mask [B, T] (1 for tokens, 0 for padding) says which are real;
None: all of them.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ToTokens(nn.Module):
    """[B, C, h, w] -> [B, h*w, C]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).transpose(1, 2)


class ToImage(nn.Module):
    """[B, h*w, C] -> [B, C, h, w]."""

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.size = (height, width)

    def forward(self, x: Tensor) -> Tensor:
        image: Tensor = x.transpose(1, 2).unflatten(2, self.size)
        return image


class Normalize(nn.Module):
    """`x * scale + shift` of each channel, of an image [B, C, h, w]."""

    scale: Tensor
    shift: Tensor

    def __init__(self, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale.reshape(-1, 1, 1))
        self.register_buffer("shift", shift.reshape(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.shift


class Unfold(nn.Module):
    """Windows of an image [B, C, h, w] as rows [B, oh*ow, k*k*C], columns (ky, kx, c)."""

    def __init__(self, kernel: int, stride: int, padding: int) -> None:
        super().__init__()
        self.kernel, self.stride, self.padding = kernel, stride, padding

    def forward(self, x: Tensor) -> Tensor:
        windows = F.unfold(x, self.kernel, padding=self.padding, stride=self.stride)  # [B, (c, ky, kx), oh*ow]
        taps = self.kernel * self.kernel
        rows: Tensor = windows.unflatten(1, (-1, taps)).permute(0, 3, 2, 1).flatten(2)
        return rows


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to logits [B, H, Q, T] so that padding gets no weight: [B, 1, 1, T], 0 or the lowest number."""
    return (1.0 - mask[:, None, None, :].to(dtype)) * torch.finfo(dtype).min


class Attention(nn.Module):
    """Multi-head self-attention of [B, T, 3*H*dh] (q, k, v blocks with the heads inside) -> [B, Q, H*dh].

    `num_queries`: only so many first tokens ask; 0: all of them, Q = T.
    `explicit`: two products and a softmax instead of torch's fused function, for exporters that decompose it badly.
    """

    def __init__(self, num_heads: int, head_dim: int, logit_scale: float, num_queries: int, explicit: bool) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.num_queries = num_heads, head_dim, num_queries
        self.logit_scale, self.explicit = logit_scale, explicit

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        batch, tokens = x.shape[:2]
        q, k, v = x.reshape(batch, tokens, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        queries = self.num_queries or tokens
        if self.num_queries:
            q = q[:, :, :queries]
        if self.explicit:
            logits = (q * self.logit_scale) @ k.transpose(-1, -2)
            context = torch.softmax(logits if mask is None else logits + additive(mask, x.dtype), dim=-1) @ v
        else:
            # Each query has its row of the mask, because ONNX Runtime's Attention spreads none.
            keys = None if mask is None else mask[:, None, None, :].bool().expand(-1, -1, queries, -1)
            context = F.scaled_dot_product_attention(q, k, v, attn_mask=keys, scale=self.logit_scale)
        return context.transpose(1, 2).reshape(batch, queries, self.num_heads * self.head_dim)


class Add(nn.Module):
    """A residual connection."""

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return residual + x


class PrependToken(nn.Module):
    """A learned row before the others."""

    def __init__(self, token: Tensor) -> None:
        super().__init__()
        self.token = nn.Parameter(token)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.token.expand(x.shape[0], 1, -1), x], dim=1)


class AddPositions(nn.Module):
    """A learned row for each token."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = nn.Parameter(table)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.table


class SelectRow(nn.Module):
    """[B, T, D] -> [B, 1, D], one row."""

    def __init__(self, row: int) -> None:
        super().__init__()
        self.row = row

    def forward(self, x: Tensor) -> Tensor:
        return x[:, self.row : self.row + 1]


class MeanRows(nn.Module):
    """[B, T, D] -> [B, 1, D], the mean of all rows, without those of padding."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if mask is None:
            return x.mean(dim=1, keepdim=True)
        real = mask[:, :, None].to(x.dtype)
        return (x * real).sum(dim=1, keepdim=True) / real.sum(dim=1, keepdim=True)


class EmbedTokens(nn.Module):
    """Ids [B, T] -> rows of a table, [B, T, D]."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.embedding = nn.Embedding.from_pretrained(table)

    def forward(self, ids: Tensor) -> Tensor:
        rows: Tensor = self.embedding(ids)
        return rows


class AddFirstPositions(AddPositions):
    """The same for sequences, which are as long as the table or shorter."""

    def forward(self, x: Tensor) -> Tensor:
        return x + self.table[: x.shape[1]]


class NormalizeRows(nn.Module):
    """Rows of length 1."""

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1, eps=1e-12)


class ScaleShift(nn.Module):
    """`x * gamma + beta` of each column."""

    def __init__(self, gamma: Tensor, beta: Tensor) -> None:
        super().__init__()
        self.gamma, self.beta = nn.Parameter(gamma), nn.Parameter(beta)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma + self.beta


class Neighbors(nn.Module):
    """Each row between the next and the one before, [B, T, D] -> [B, T, 3*D]; padding is as outside: zero."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if mask is not None:
            x = x * mask[:, :, None].to(x.dtype)
        outside = torch.zeros_like(x[:, :1])
        return torch.cat([torch.cat([x[:, 1:], outside], 1), x, torch.cat([outside, x[:, :-1]], 1)], dim=2)


class Concat(nn.Module):
    """The columns of the first, then of the second."""

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return torch.cat([first, second], dim=-1)
