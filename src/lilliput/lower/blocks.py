"""Transformer blocks as ops: the one of ViT, BERT and its family, and MobileBERT's."""

from torch import nn

from lilliput.lower.emit import Emitter
from lilliput.models.encoder import Bottleneck, BottleneckBlock, StackedMlp
from lilliput.models.layers import Attention, Block


def lower_block(emit: Emitter, name: str, block: nn.Module, x: int, first_row_only: bool = False) -> int:
    """[T, D] -> [T, D].

    From a model's last attention on no token sees another, so where only the first row of the last block is read, that
    row can be computed alone (`first_row_only`, -> [1, D]): the same bits, and less work.
    """
    if isinstance(block, BottleneckBlock):
        return _bottleneck_block(emit, name, block, x, first_row_only)
    assert isinstance(block, Block)
    attended = emit.norm(f"{name}.norm1", block.norm1, x) if block.norm_first else x
    residual = emit.row(x, 0) if first_row_only else x
    qkv = emit.linear(f"{name}.attn.qkv", block.attn.qkv, attended)
    x = _attention(emit, f"{name}.attn", block.attn, qkv, residual, first_row_only)
    if block.norm_first:
        return emit.mlp(f"{name}.mlp", block.mlp, emit.norm(f"{name}.norm2", block.norm2, x), x)
    x = emit.norm(f"{name}.norm1", block.norm1, x)
    return emit.norm(f"{name}.norm2", block.norm2, emit.mlp(f"{name}.mlp", block.mlp, x, x))


def _bottleneck_block(emit: Emitter, name: str, block: BottleneckBlock, x: int, first_row_only: bool) -> int:
    shared = _bottleneck(emit, f"{name}.attn_bottleneck", block.attn_bottleneck, x)
    query_key = emit.linear(f"{name}.attn.qk", block.attn.qk, shared)
    value = emit.linear(f"{name}.attn.v", block.attn.v, x)
    qkv = emit.builder.emit("concat", [query_key, value])
    wide = emit.row(x, 0) if first_row_only else x
    inner = _bottleneck(emit, f"{name}.bottleneck", block.bottleneck, wide)
    inner = _attention(emit, f"{name}.attn", block.attn, qkv, inner, first_row_only)
    inner = emit.norm(f"{name}.norm1", block.norm1, inner)
    for index, stacked in enumerate(block.stacked):
        assert isinstance(stacked, StackedMlp)
        place = f"{name}.stacked.{index}"
        inner = emit.norm(f"{place}.norm", stacked.norm, emit.mlp(f"{place}.mlp", stacked.mlp, inner, inner))
    inner = emit.norm(f"{name}.norm2", block.norm2, emit.mlp(f"{name}.mlp", block.mlp, inner, inner))
    return emit.norm(f"{name}.out_norm", block.out_norm, emit.linear(f"{name}.out", block.out, inner, residual=wide))


def _bottleneck(emit: Emitter, name: str, bottleneck: Bottleneck, x: int) -> int:
    return emit.norm(f"{name}.norm", bottleneck.norm, emit.linear(f"{name}.proj", bottleneck.proj, x))


def _attention(emit: Emitter, name: str, attention: Attention, qkv: int, residual: int, first_row_only: bool) -> int:
    context = emit.attention(attention, qkv, num_queries=int(first_row_only))
    return emit.linear(f"{name}.proj", attention.proj, context, residual=residual)
