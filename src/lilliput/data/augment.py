"""Random changes of training images, vectorised over the batch. Every draw comes from the generator that is given."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lilliput.config import AugmentSettings
from lilliput.data.randaugment import randaugment


def augment(
    images: Tensor, labels: Tensor, settings: AugmentSettings, num_classes: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """One training batch: padded crop, flip, RandAugment, then mixup or cutmix, each where the settings ask for it.

    images: uint8 [n, height, width, channels]; labels: int64 [n]. Neither is changed.
    Returns: float32 [n, channels, height, width] in 0..255, and targets float32 [n, num_classes], rows of sum 1.
    """
    pixels = images.permute(0, 3, 1, 2)
    if settings.crop_padding:
        pixels = random_crop(pixels, settings.crop_padding, generator)
    if settings.flip:
        pixels = random_flip(pixels, generator)
    batch = pixels.to(torch.float32, memory_format=torch.contiguous_format)
    if settings.randaugment_ops:
        batch = randaugment(batch, settings.randaugment_ops, settings.randaugment_magnitude, generator)
    targets = F.one_hot(labels, num_classes).to(torch.float32)
    if settings.mixup or settings.cutmix:
        batch, targets = mix(batch, targets, settings.mixup, settings.cutmix, generator)
    return batch, targets


def random_crop(images: Tensor, padding: int, generator: torch.Generator) -> Tensor:
    """Pad [n, c, h, w] with zeros on all sides and cut a window of the old size at a random place, for each image."""
    count, _, height, width = images.shape
    padded = F.pad(images, (padding, padding, padding, padding))
    offsets = torch.randint(2 * padding + 1, (2, count), generator=generator, device=generator.device).to(images.device)
    # A view of every possible window [n, c, 2p+1, 2p+1, h, w]: nothing is copied but the windows that are chosen.
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)
    return windows[torch.arange(count, device=images.device), :, offsets[0], offsets[1]]


def random_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror each image of [n, c, h, w] left to right with probability 1/2."""
    coins = torch.randint(2, (len(images), 1, 1, 1), generator=generator, device=generator.device).to(images.device)
    return torch.where(coins.bool(), images.flip(3), images)


def mix(
    images: Tensor, targets: Tensor, mixup: float, cutmix: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Mix each image of float32 [n, c, h, w], and its target, with a random partner of the batch.

    `mixup` and `cutmix` are the alphas of Beta(alpha, alpha), at least one above 0; with both, each image tosses a
    coin.
    mixup (Zhang et al. 2018, arXiv:1710.09412): lambda * image + (1 - lambda) * partner.
    cutmix (Yun et al. 2019, arXiv:1905.04899): a box of the partner, of area (1 - lambda) before the border clips it,
    at a random place. Either way an image's share in its target is exactly its share of the pixels.
    Departure from both: lambda is drawn for each image, not once a batch.
    """
    assert mixup > 0.0 or cutmix > 0.0
    count, _, height, width = images.shape
    partners = torch.randperm(count, generator=generator, device=generator.device).to(images.device)
    if mixup and cutmix:
        coins = torch.randint(2, (count,), generator=generator, device=generator.device).bool().to(images.device)
    else:
        coins = torch.full((count,), bool(cutmix), device=images.device)
    weights = torch.empty(count, 1, height, width, device=images.device)
    if mixup:
        weights[:] = _draw_beta(mixup, count, generator).to(images.device).view(-1, 1, 1, 1)
    if cutmix:
        shares = _draw_beta(cutmix, count, generator)
        outside = _outside_of_boxes(shares, height, width, generator).to(images.device)
        weights = torch.where(coins.view(-1, 1, 1, 1), outside, weights)
    kept = weights.mean((1, 2, 3)).view(-1, 1)
    mixed = weights * images + (1.0 - weights) * images[partners]
    return mixed.clamp_(0.0, 255.0), kept * targets + (1.0 - kept) * targets[partners]


def _outside_of_boxes(shares: Tensor, height: int, width: int, generator: torch.Generator) -> Tensor:
    """[n, 1, h, w]: 0 inside a random box that covers about 1 - shares [n] of the image, 1 outside."""
    count = len(shares)
    centres = torch.rand(2, count, generator=generator, device=generator.device).to(shares.device)
    side = (1.0 - shares).sqrt()
    inside = []
    for centre, length in zip(centres, (height, width), strict=True):
        size = (side * length).floor()
        start = ((centre * length).floor() - (size / 2.0).floor()).view(-1, 1)
        places = torch.arange(length, device=shares.device)
        inside.append((places >= start) & (places < start + size.view(-1, 1)))
    box = inside[0][:, None, :, None] & inside[1][:, None, None, :]
    return (~box).to(torch.float32)


def _draw_beta(alpha: float, count: int, generator: torch.Generator) -> Tensor:
    """float32 [count] from Beta(alpha, alpha)."""
    # torch.distributions takes no generator; numpy's does, and is seeded here by the one that was given.
    seed = int(torch.randint(2**63 - 1, (1,), generator=generator, device=generator.device))
    values = np.random.default_rng(seed).beta(alpha, alpha, size=count)
    return torch.from_numpy(values.astype(np.float32))
