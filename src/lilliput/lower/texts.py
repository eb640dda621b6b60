"""A text encoder as a program of sequences."""

from typing import Any

from lilliput.lower.blocks import lower_block
from lilliput.lower.emit import Emitter
from lilliput.models.encoder import TextEncoder
from lilliput.program.program import Program, Vocabulary


def lower_text_model(
    model: TextEncoder, emit: Emitter, metadata: dict[str, Any], vocabulary: Vocabulary | None
) -> Program:
    """The program of a checked model, in execution order; blocks that are shared are there once."""
    settings = model.settings
    task = "text-embedding" if model.head is None else "text-classification"
    metadata = {"task": task, "labels": list(model.labels), "tokenizer": None, **metadata}
    x = _embeddings(model, emit)
    order = settings.resolved_order()
    for depth, index in enumerate(order):
        only_first = settings.pooling == "cls" and depth == len(order) - 1
        x = lower_block(emit, f"blocks.{index}", model.blocks[index], x, first_row_only=only_first)
    if model.norm is not None:
        x = emit.norm("norm", model.norm, x)
    if settings.pooling == "mean":
        x = emit.builder.emit("mean_rows", [x])
    if model.head is not None:
        if model.head.hidden is not None:
            x = emit.linear("head.hidden", model.head.hidden, x, activation=model.head.activation)
        x = emit.linear("head.out", model.head.out, x)
    elif settings.normalize:
        x = emit.builder.emit("normalize_rows", [x])
    return emit.builder.build(output=x, metadata=metadata, vocabulary=vocabulary)


def _embeddings(model: TextEncoder, emit: Emitter) -> int:
    settings, builder = model.settings, emit.builder
    max_tokens = settings.max_tokens or settings.num_positions
    x = builder.emit("embed_tokens", [builder.tokens("tokens", max_tokens)], tensors=emit.table(model, "words"))
    if settings.trigram:
        x = builder.emit("neighbors", [x])
    if model.projection is not None and settings.projection == "words":
        x = emit.linear("projection", model.projection, x)
    x = builder.emit("add_positions", [x], tensors=emit.table(model, "positions", rows=max_tokens))
    x = emit.norm("embedding_norm", model.embedding_norm, x)
    if model.projection is not None and settings.projection == "sum":
        x = emit.linear("projection", model.projection, x)
    return x
