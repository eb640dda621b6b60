"""Lowering: from a quantised torch model to the program that the device executes (docs/format.md)."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lilliput.errors import UserError
from lilliput.models.layers import Attention, Block, Linear, Mlp, UnfoldLinear
from lilliput.models.stack import WeightQuantizer, layer_of, levels_and_scale
from lilliput.models.vit import ViT
from lilliput.program.builder import ProgramBuilder
from lilliput.program.formats import weight_layout
from lilliput.program.ops import ACTIVATIONS
from lilliput.program.program import Program


class LoweringError(UserError):
    """The model cannot become a program: a weight is not quantised, or not finite."""


def lower(model: ViT, metadata: dict[str, Any]) -> Program:
    """Translate `model`, whose every `Linear`, class token and position table must be quantised.

    `metadata` is kept in the file; `task` and `image` are added here.

    Raises:
        LoweringError: a weight has no quantiser or is not finite.
    """
    for name, value in model.state_dict().items():
        if not bool(torch.isfinite(value).all()):
            raise LoweringError(f"cannot lower: {name} has NaN or infinite values; weights must be finite")
    stored: list[tuple[str, nn.Module, str]] = [(f"{name}.weight", x, "weight") for name, x in model.linears().items()]
    stored += [(name, model, name) for name in ("class_token", "positions") if getattr(model, name) is not None]
    for full_name, module, name in stored:
        if layer_of(module, name, WeightQuantizer) is None:
            raise LoweringError(f"cannot lower: {full_name} is not quantised; run the stage 'quantize' before 'export'")
    return _Lowering(model).program(metadata)


class _Lowering:
    """Walks the model once, in execution order. Handles are the builder's; names are the model's."""

    def __init__(self, model: ViT) -> None:
        self.model = model
        self.columns = model.program_columns()
        self.builder = ProgramBuilder()

    def program(self, metadata: dict[str, Any]) -> Program:
        model, builder = self.model, self.builder
        height, width, channels = model.image_shape
        x = builder.input("image", rows=height * width, cols=channels)
        x = self._normalize(x)
        for index, layer in enumerate(model.stem):
            assert isinstance(layer, UnfoldLinear)
            x = self._windows(f"stem.{index}", layer, x, (height, width), "relu")
            height, width = layer.output_size(height), layer.output_size(width)
        x = self._windows("patch_embed", model.patch_embed, x, (height, width), "none")
        x = self._embeddings(x)
        last = len(model.blocks) - 1
        for index, block in enumerate(model.blocks):
            assert isinstance(block, Block)
            x = (self._last_block if index == last else self._block)(f"blocks.{index}", block, x)
        x = self._layer_norm("norm", model.norm, x)
        if model.class_token is None:
            x = builder.emit("mean_rows", [x])
        logits = self._linear("head", model.head, x)
        image = {"height": model.image_shape[0], "width": model.image_shape[1], "channels": channels}
        return builder.build(output=logits, metadata={"task": "image-classification", "image": image, **metadata})

    def _normalize(self, x: Any) -> Any:
        scale, shift = (
            self.builder.tensor(
                f"pixel_{name}", role="constant", format="f32", layout="rows", values=_array(value)[None]
            )
            for name, value in (("scale", self.model.pixel_scale), ("shift", self.model.pixel_shift))
        )
        return self.builder.emit("normalize", [x], tensors=[scale, shift])

    def _windows(self, name: str, layer: UnfoldLinear, x: Any, size: tuple[int, int], activation: str) -> Any:
        if (layer.kernel_size, layer.stride, layer.padding) != (1, 1, 0):
            x = self.builder.emit(
                "unfold",
                [x],
                height=size[0],
                width=size[1],
                kernel=layer.kernel_size,
                stride=layer.stride,
                padding=layer.padding,
            )
        return self._linear(f"{name}.proj", layer.proj, x, activation=activation)

    def _embeddings(self, x: Any) -> Any:
        if self.model.class_token is not None:
            x = self.builder.emit("prepend_token", [x], tensors=self._table("class_token", "embedding"))
        role = "embedding" if self.model.settings.positions == "learned" else "constant"
        return self.builder.emit("add_positions", [x], tensors=self._table("positions", role))

    def _table(self, name: str, role: str) -> list[Any]:
        levels, scale = levels_and_scale(self.model, name)
        quantizer = layer_of(self.model, name, WeightQuantizer)
        assert quantizer is not None
        codes = self.builder.tensor(
            name, role=role, format=quantizer.format_name, layout="rows", values=_array(levels).astype(np.int8)
        )
        return [codes, self._vector(f"{name}.scale", "scale", scale)]

    def _vector(self, name: str, role: str, values: Tensor) -> Any:
        return self.builder.tensor(name, role=role, format="bf16", layout="rows", values=_array(values).reshape(1, -1))

    def _linear(self, name: str, linear: Linear, x: Any, activation: str = "none", residual: Any = None) -> Any:
        quantized = self.builder.emit("quantize", [x])
        levels, scale = levels_and_scale(linear, "weight")
        quantizer = layer_of(linear, "weight", WeightQuantizer)
        assert quantizer is not None
        values = _array(levels[:, self.columns[name]]).astype(np.int8)
        codes = self.builder.tensor(
            f"{name}.weight",
            role="weight",
            format=quantizer.format_name,
            layout=weight_layout(values, quantizer.format_name),
            values=values,
        )
        bias = self._vector(f"{name}.bias", "bias", linear.bias)
        tensors = [codes, self._vector(f"{name}.weight.scale", "scale", scale), bias]
        if residual is not None:
            return self.builder.emit("linear_add", [*quantized, residual], tensors=tensors)
        return self.builder.emit("linear", list(quantized), tensors=tensors, activation=ACTIVATIONS[activation])

    def _layer_norm(self, name: str, norm: nn.LayerNorm, x: Any) -> Any:
        gamma = self._vector(f"{name}.weight", "norm", norm.weight)
        beta = self._vector(f"{name}.bias", "norm", norm.bias)
        return self.builder.emit("layer_norm", [x], tensors=[gamma, beta], eps=norm.eps)

    def _block(self, name: str, block: Block, x: Any, class_token_only: bool = False) -> Any:
        normed = self._layer_norm(f"{name}.norm1", block.norm1, x)
        residual = self.builder.emit("select_row", [x], row=0) if class_token_only else x
        x = self._attention(f"{name}.attn", block.attn, normed, residual, num_queries=int(class_token_only))
        return self._mlp(f"{name}.mlp", block.mlp, self._layer_norm(f"{name}.norm2", block.norm2, x), x)

    def _last_block(self, name: str, block: Block, x: Any) -> Any:
        """What the head pools. From the last attention on no token sees another, so where the head reads the class
        token alone, its row is computed alone: the same bits, and less work."""
        return self._block(name, block, x, class_token_only=self.model.class_token is not None)

    def _attention(self, name: str, attention: Attention, x: Any, residual: Any, num_queries: int) -> Any:
        qkv = self._linear(f"{name}.qkv", attention.qkv, x)
        context = self.builder.emit(
            "attention",
            [qkv],
            num_heads=attention.num_heads,
            head_dim=attention.head_dim,
            logit_scale=attention.logit_scale * math.log2(math.e),  # the format's logits are to base 2
            num_queries=num_queries,
        )
        return self._linear(f"{name}.proj", attention.proj, context, residual=residual)

    def _mlp(self, name: str, mlp: Mlp, x: Any, residual: Any) -> Any:
        hidden = self._linear(f"{name}.fc1", mlp.fc1, x, activation="gelu")
        return self._linear(f"{name}.fc2", mlp.fc2, hidden, residual=residual)


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy().astype(np.float32)
