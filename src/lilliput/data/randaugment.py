"""RandAugment (Cubuk et al. 2020, arXiv:1909.13719), vectorised over the batch.

Each image gets `num_ops` operations drawn uniformly, with replacement, from the paper's fourteen, at one shared
magnitude 0..30. Departures from the paper: the geometric operations of an image are composed into one affine map and
sampled once (bilinear, zeros outside) after its colour operations; values are not rounded in between; `solarize`
compares with 256 * (1 - m/30), so that magnitude 0 changes nothing; `color` (saturation) leaves grey images alone.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_MAGNITUDE = 30.0
GEOMETRIC_OPS = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")


def randaugment(images: Tensor, num_ops: int, magnitude: float, generator: torch.Generator) -> Tensor:
    """Change each image of float32 [n, c, h, w] (0..255) by `num_ops` random operations; returns a new tensor."""
    count = len(images)
    num_kinds = 1 + len(GEOMETRIC_OPS) + len(COLOUR_OPS)  # kind 0 is the identity
    kinds = torch.randint(num_kinds, (num_ops, count), generator=generator, device=generator.device).to(images.device)
    coins = torch.randint(2, (num_ops, count), generator=generator, device=generator.device).to(images.device)
    signs = coins.to(torch.float32) * 2.0 - 1.0
    strength = magnitude / MAX_MAGNITUDE
    result = images.clone()
    height, width = images.shape[2:]
    maps = torch.eye(3, device=images.device).repeat(count, 1, 1)
    for kind, sign in zip(kinds, signs, strict=True):
        for number, name in enumerate(GEOMETRIC_OPS, start=1):
            chosen = (kind == number).nonzero()[:, 0]
            # The map takes an output place to its input place, so a later operation multiplies from the right.
            maps[chosen] = maps[chosen] @ geometric_map(name, strength * sign[chosen], height, width)
        for number, name in enumerate(COLOUR_OPS, start=1 + len(GEOMETRIC_OPS)):
            chosen = (kind == number).nonzero()[:, 0]
            if len(chosen):
                result[chosen] = COLOUR_OPS[name](result[chosen], strength * sign[chosen].view(-1, 1, 1, 1))
    is_geometric = (kinds >= 1) & (kinds <= len(GEOMETRIC_OPS))
    moved = is_geometric.any(0).nonzero()[:, 0]
    if len(moved):
        result[moved] = sample_affine(result[moved], maps[moved])
    return result


def geometric_map(name: str, strength: Tensor, height: int, width: int) -> Tensor:
    """Maps [k, 3, 3] from output to input places, in pixels from the centre (x right, y down); strength [k] in -1..1.

    Greatest strengths: 30 degrees, shear 0.3, and a shift of 150/331 of the side.
    """
    maps = torch.eye(3, device=strength.device).repeat(len(strength), 1, 1)
    if name == "rotate":
        angle = strength * math.radians(30.0)
        maps[:, 0, 0], maps[:, 0, 1] = angle.cos(), angle.sin()
        maps[:, 1, 0], maps[:, 1, 1] = -angle.sin(), angle.cos()
    elif name == "shear_x":
        maps[:, 0, 1] = 0.3 * strength
    elif name == "shear_y":
        maps[:, 1, 0] = 0.3 * strength
    elif name == "translate_x":
        maps[:, 0, 2] = 150.0 / 331.0 * width * strength
    else:
        assert name == "translate_y", name
        maps[:, 1, 2] = 150.0 / 331.0 * height * strength
    return maps


def sample_affine(images: Tensor, maps: Tensor) -> Tensor:
    """Look up [k, c, h, w] at the places that maps [k, 3, 3] (pixels from the centre) give; zeros outside."""
    height, width = images.shape[2:]
    # grid_sample counts from -1 to 1 across each side: a coefficient from y to x also changes its unit.
    to_pixels = images.new_tensor([width / 2.0, height / 2.0, 1.0])
    theta = (maps * to_pixels / to_pixels[:, None])[:, :2]
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    sampled = F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return sampled.clamp_(0.0, 255.0)  # the four weights may sum to a little above 1


def _blend(other: Tensor, images: Tensor, strength: Tensor) -> Tensor:
    """Move from `other` (factor 0) past the image (factor 1): factors 0.1 to 1.9."""
    return (other + (1.0 + 0.9 * strength) * (images - other)).clamp(0.0, 255.0)


def _grey(images: Tensor) -> Tensor:
    """Luma (ITU-R 601) of [k, c, h, w] as [k, 1, h, w]."""
    if images.shape[1] == 1:
        return images
    assert images.shape[1] == 3, images.shape
    weights = images.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    return (images * weights).sum(1, keepdim=True)


def brightness(images: Tensor, strength: Tensor) -> Tensor:
    return _blend(torch.zeros_like(images), images, strength)


def color(images: Tensor, strength: Tensor) -> Tensor:
    return _blend(_grey(images), images, strength)


def contrast(images: Tensor, strength: Tensor) -> Tensor:
    return _blend(_grey(images).mean((2, 3), keepdim=True), images, strength)


def sharpness(images: Tensor, strength: Tensor) -> Tensor:
    channels = images.shape[1]
    kernel = images.new_ones(channels, 1, 3, 3)
    kernel[:, :, 1, 1] = 5.0
    smooth = images.clone()  # the outermost pixels have no full neighbourhood, and stay
    if min(images.shape[2:]) >= 3:
        smooth[:, :, 1:-1, 1:-1] = F.conv2d(images, kernel / 13.0, groups=channels)
    return _blend(smooth, images, strength)


def posterize(images: Tensor, strength: Tensor) -> Tensor:
    """Keep the upper 8 down to 4 bits of each pixel."""
    step = 2.0 ** (4.0 * strength.abs()).round()
    return (images / step).floor() * step


def solarize(images: Tensor, strength: Tensor) -> Tensor:
    """Invert the pixels at and above a threshold that falls from 256 to 0."""
    return torch.where(images >= 256.0 * (1.0 - strength.abs()), 255.0 - images, images)


def autocontrast(images: Tensor, strength: Tensor) -> Tensor:
    """Stretch each channel to 0..255; a channel of one value stays. The strength plays no part."""
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    stretched = (images - low) * (255.0 / (high - low).clamp(min=1e-6))
    return torch.where(high > low, stretched, images).clamp(0.0, 255.0)


def equalize(images: Tensor, strength: Tensor) -> Tensor:
    """Flatten each channel's histogram; a channel of one value stays. The strength plays no part."""
    count, channels, height, width = images.shape
    levels = images.round().to(torch.int64).view(count * channels, height * width)
    histogram = levels.new_zeros(count * channels, 256).scatter_add_(1, levels, torch.ones_like(levels))
    below = histogram.cumsum(1)
    # Classic equalisation: the lowest level present goes to 0 and the highest to 255.
    first = below.gather(1, levels.amin(1, keepdim=True))
    spread = height * width - first
    table = ((below - first) * 255.0 / spread.clamp(min=1)).clamp(0.0, 255.0)
    equalized = table.gather(1, levels).view_as(images)
    return torch.where((spread > 0).view(count, channels, 1, 1), equalized, images)


# float32 [k, c, h, w] in 0..255 and strength [k, 1, 1, 1] in -1..1 (magnitude / 30, random sign) -> the same shape.
COLOUR_OPS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "autocontrast": autocontrast,
    "brightness": brightness,
    "color": color,
    "contrast": contrast,
    "equalize": equalize,
    "posterize": posterize,
    "sharpness": sharpness,
    "solarize": solarize,
}
