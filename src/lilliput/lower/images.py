"""A ViT as a program."""

from typing import Any

from lilliput.lower.blocks import lower_block
from lilliput.lower.emit import Emitter
from lilliput.models.layers import UnfoldLinear
from lilliput.models.vit import ViT
from lilliput.program.ops import ACTIVATIONS
from lilliput.program.program import Program


def lower_image_model(model: ViT, emit: Emitter, metadata: dict[str, Any]) -> Program:
    """The program of a checked model, in execution order; blocks that are shared are there once."""
    height, width, channels = model.image_shape
    builder = emit.builder
    x = builder.input("image", rows=height * width, cols=channels)
    normalization = {"pixel_scale": model.pixel_scale, "pixel_shift": model.pixel_shift}
    constants = [emit.vector(name, "constant", value, format="f32") for name, value in normalization.items()]
    x = builder.emit("normalize", [x], tensors=constants)
    for index, layer in enumerate(model.stem):
        assert isinstance(layer, UnfoldLinear)
        x = _windows(emit, f"stem.{index}", layer, x, (height, width), "relu")
        height, width = layer.output_size(height), layer.output_size(width)
    x = _windows(emit, "patch_embed", model.patch_embed, x, (height, width), "none")
    for name in ("distillation_token", "class_token"):  # the class token comes to stand first
        if getattr(model, name) is not None:
            x = builder.emit("prepend_token", [x], tensors=emit.table(model, name))
    role = "embedding" if model.settings.positions == "learned" else "constant"
    x = builder.emit("add_positions", [x], tensors=emit.table(model, "positions", role))
    logits = _head(model, emit, _blocks(model, emit, x))
    image = {"height": model.image_shape[0], "width": model.image_shape[1], "channels": channels}
    return builder.build(output=logits, metadata={"task": "image-classification", "image": image, **metadata})


def _blocks(model: ViT, emit: Emitter, x: int) -> int:
    # The head reads the class token alone, or with DeiT's second head that of distillation too.
    one_row = model.class_token is not None and model.distillation_head is None
    order = model.settings.resolved_order()
    for depth, index in enumerate(order):
        only_first = one_row and depth == len(order) - 1
        x = lower_block(emit, f"blocks.{index}", model.blocks[index], x, first_row_only=only_first)
    return emit.norm("norm", model.norm, x)


def _head(model: ViT, emit: Emitter, x: int) -> int:
    if model.distillation_head is None:
        if model.class_token is None:
            x = emit.builder.emit("mean_rows", [x])
        return emit.linear("head", model.head, x)
    # The mean of both heads is the sum of their halves: halving scales and biases is exact.
    name, head, row = emit.last_product("head", model.head, emit.row(x, 0))
    inputs, tensors = list(emit.quantize(row, head.input_bits)), emit.weights(name, head, 0.5)
    by_class = emit.builder.emit("linear", inputs, tensors, activation=ACTIVATIONS["none"])
    name, head, row = emit.last_product("distillation_head", model.distillation_head, emit.row(x, 1))
    inputs = [*emit.quantize(row, head.input_bits), by_class]
    return emit.builder.emit("linear_add", inputs, emit.weights(name, head, 0.5))


def _windows(emit: Emitter, name: str, layer: UnfoldLinear, x: int, size: tuple[int, int], activation: str) -> int:
    if (layer.kernel_size, layer.stride, layer.padding) != (1, 1, 0):
        x = emit.builder.emit(
            "unfold",
            [x],
            height=size[0],
            width=size[1],
            kernel=layer.kernel_size,
            stride=layer.stride,
            padding=layer.padding,
        )
    return emit.linear(f"{name}.proj", layer.proj, x, activation=activation)
