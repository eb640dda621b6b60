"""Write a `model.lil` with random (seeded) weights, for measuring speed: no data set and no training.

    python benchmarks/models.py vit-413k.lil
    python benchmarks/models.py wide.lil --embed-dim 1024 --mlp-dim 4096 --depth 4 --weights int8 --zero-blocks 0.5

Speed does not depend on the weights' values, only on which blocks of them are all zero. The weights go the usual way:
a `ViT` from settings, scales by least squared error, lowering, writing.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import lilliput
from lilliput import artifact
from lilliput.bench.images import random_images
from lilliput.compress.quantize import Quantization
from lilliput.config import ModelSettings, QuantizeSettings
from lilliput.lower import lower
from lilliput.models.stack import Mask, push
from lilliput.models.vit import ViT
from lilliput.program.builder import with_golden
from lilliput.program.formats import WEIGHT_FORMATS
from lilliput.program.program import Program
from lilliput.train.calibration import Calibration

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
BLOCK = (16, 8)  # outputs x inputs of a block that is zero as a whole: the file leaves it out, the kernels skip it
PIXEL_MEAN, PIXEL_DEVIATION = 120.0, 64.0
CENTRING_IMAGES = 256


def random_model(
    settings: ModelSettings,
    quantize: QuantizeSettings,
    image: tuple[int, int, int] = (32, 32, 3),
    zero_blocks: float = 0.0,
    block: tuple[int, int] = BLOCK,
    seed: int = 0,
) -> Program:
    """The program of a ViT with random weights, with one golden example.

    `zero_blocks` of the `block` (outputs x inputs) tiles of every linear weight are all zero, chosen at random; blocks
    cut off by the matrix's edge count as whole ones.
    """
    torch.manual_seed(seed)
    channels = image[2]
    model = ViT(settings, image, len(CLASSES))
    model.set_normalization(np.full(channels, PIXEL_MEAN, np.float32), np.full(channels, PIXEL_DEVIATION, np.float32))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.05)
        for linear in model.linears().values():
            mask = Mask(linear.weight)
            mask.mask.copy_(block_mask(linear.weight.shape[0], linear.weight.shape[1], zero_blocks, block))
            push(linear, "weight", mask)
        _centre_logits(model.eval(), seed)
    examples = Calibration(lambda count: model(_random_pixels(model, seed)), lambda count: iter(()))
    Quantization(quantize).attach(model, examples)
    metadata = {
        "labels": list(CLASSES),
        "provenance": {"lilliput": lilliput.__version__, "recipe": "random weights", "seed": seed},
    }
    return with_golden(lower(model, metadata), _flat(random_images(1, image, seed + 1)))


def block_mask(rows: int, cols: int, share: float, block: tuple[int, int]) -> Tensor:
    """Zeros in `round(share * blocks)` blocks of a [rows, cols] matrix, ones elsewhere."""
    grid = (-(-rows // block[0]), -(-cols // block[1]))
    keep = torch.ones(grid[0] * grid[1])
    keep[torch.randperm(len(keep))[: round(share * len(keep))]] = 0.0
    return keep.reshape(grid).repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)[:rows, :cols]


def _centre_logits(model: ViT, seed: int) -> None:
    """Take each class's mean logit away: otherwise random weights give nearly every image the same class."""
    model.head.bias.sub_(model(_random_pixels(model, seed)).mean(dim=0))


def _random_pixels(model: ViT, seed: int) -> Tensor:
    height, width, channels = model.image_shape
    images = random_images(CENTRING_IMAGES, (height, width, channels), seed + 2)
    return torch.from_numpy(images).permute(0, 3, 1, 2).float()


def _flat(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return images.reshape(len(images), -1, images.shape[3])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the file to write")
    parser.add_argument("--weights", choices=tuple(WEIGHT_FORMATS), default="pot4", help="format of linear weights")
    parser.add_argument("--embed-dim", type=int, default=128)
    parser.add_argument("--depth", type=int, default=3)
    parser.add_argument("--num-heads", type=int, help="by default heads of 32")
    parser.add_argument("--mlp-dim", type=int, help="by default twice the width")
    parser.add_argument("--patch-size", type=int, default=4)
    parser.add_argument("--image", type=int, nargs=3, default=(32, 32, 3), metavar=("HEIGHT", "WIDTH", "CHANNELS"))
    parser.add_argument("--zero-blocks", type=float, default=0.0, help="share of weight blocks that are all zero")
    parser.add_argument("--block", type=int, nargs=2, default=BLOCK, metavar=("OUTPUTS", "INPUTS"))
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    settings = ModelSettings(
        patch_size=given.patch_size,
        embed_dim=given.embed_dim,
        depth=given.depth,
        num_heads=given.num_heads or max(1, given.embed_dim // 32),
        mlp_dim=given.mlp_dim or 2 * given.embed_dim,
    )
    program = random_model(
        settings,
        QuantizeSettings(weight_format=given.weights),
        tuple(given.image),
        given.zero_blocks,
        tuple(given.block),
        given.seed,
    )
    size = artifact.write(program, given.out)
    print(f"{given.out}: {size:,} bytes, {sum(t.values.size for t in program.tensors if t.role == 'weight'):,} weights")
    return 0


if __name__ == "__main__":
    sys.exit(main())
