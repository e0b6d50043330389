"""Image transforms for augmentation, on a batch of images [N, C, H, W] with values in 0..1, on any device.

Each takes the batch, which it can overwrite, and an amount for each image; only noise is random here. All of them use
operations that torch has in deterministic form.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

BINS = 256
CLIP = 2.0
"""CLAHE's contrast limit: maximum of a histogram bin, as a multiple of the mean."""
TILES = 8
SMALLEST_TILE = 12
STEPS = 6
"""Number of straight segments of a gray-value curve."""


def affine(turn: Tensor, shift: Tensor, zoom: Tensor, shear: Tensor, aspect: Tensor) -> Tensor:
    """Return matrices [N, 2, 3] for `warp`: aspect, shear, rotation, zoom and shift, in this order.

    Angles are in radians, clockwise; shifts are shares of the image size.
    """
    cosine, sine, slant = torch.cos(turn), torch.sin(turn), torch.tan(shear)
    # grid_sample needs the source of each pixel, which is the inverse, in coordinates from -1 to 1.
    rows = [torch.stack([cosine + slant * sine, sine - slant * cosine], 1), torch.stack([-sine, cosine], 1)]
    inverse = torch.stack(rows, 1) / zoom[:, None, None]
    inverse = inverse * torch.stack([1 / aspect, aspect], 1)[:, :, None]
    return torch.cat([inverse, inverse @ (-2 * shift[:, :, None])], 2)


def warp(images: Tensor, matrix: Tensor, bend: Tensor | None = None) -> Tensor:
    """Transform images by their matrices and, optionally, a coarse displacement field [N, 2, h, w].

    Displacements are shares of the image size. Pixels from outside repeat the edge: black corners would occur in
    training but not in service. If the edge is black, as on film or in padded views, the corners are black too.
    """
    grid = _sampling_grid(matrix, *images.shape[2:])
    if bend is not None:
        smooth = F.interpolate(bend, size=images.shape[2:], mode="bicubic", align_corners=True)
        limit = bend.abs().amax((1, 2, 3), keepdim=True)  # bicubic interpolation overshoots between the points
        grid = grid + 2 * torch.minimum(torch.maximum(smooth, -limit), limit).permute(0, 2, 3, 1)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _sampling_grid(matrix: Tensor, height: int, width: int) -> Tensor:
    """Return the same as torch's affine_grid, several times faster on a CPU: outer sums instead of a product."""
    right, down = (torch.arange(1 - side, side, 2, device=matrix.device) / side for side in (width, height))
    across, along, offset = matrix[:, None].unbind(3)  # [N, 1, 2] each
    # Each point is one complex number, so that both coordinates are computed at once.
    starts = torch.view_as_complex(along * down[:, None] + offset)[:, :, None]
    return torch.view_as_real(starts + torch.view_as_complex(across * right[:, None])[:, None, :])


def adjust_tone(images: Tensor, gamma: Tensor, contrast: Tensor, brightness: Tensor) -> Tensor:
    """Apply gamma, contrast around the mean, and brightness to each image."""
    powered = images.clamp_(0, 1).pow_(_per_image(gamma))
    mean = powered.mean((1, 2, 3), keepdim=True)
    offset = mean * (1 - _per_image(contrast)) + _per_image(brightness)
    return powered.mul_(_per_image(contrast)).add_(offset).clamp_(0, 1)


def bend_tones(images: Tensor, slopes: Tensor) -> Tensor:
    """Map gray values through a rising curve from black to white, with log slopes of its segments [N, STEPS]."""
    heights = torch.softmax(slopes, 1)
    starts = heights.cumsum(1) - heights
    positions = images.clamp_(0, 1).mul_(STEPS)
    segments = positions.long().clamp_max_(STEPS - 1)
    fraction = positions.sub_(segments).flatten(1)
    index = segments.flatten(1)
    mapped = starts.gather(1, index).addcmul_(heights.gather(1, index), fraction)
    return mapped.clamp_(0, 1).view(images.shape)


def coarsen(images: Tensor, share: float) -> Tensor:
    """Reduce the resolution of images by this share; their size stays."""
    sides = images.shape[2:]
    fewer = [max(2, round(side * (1 - share))) for side in sides]
    small = F.interpolate(images, size=fewer, mode="bilinear", antialias=True)
    return F.interpolate(small, size=sides, mode="bilinear").clamp_(0, 1)


def sharpen(images: Tensor, amount: Tensor) -> Tensor:
    """Sharpen images: add the difference from a blurred copy, times the amount."""
    smooth = blur(images, torch.ones(len(images), device=images.device), 2)
    return images.add_((images - smooth).mul_(_per_image(amount))).clamp_(0, 1)


def blur(images: Tensor, width: Tensor, radius: int) -> Tensor:
    """Apply a Gaussian filter of each image's width in pixels, truncated at the radius; edges are repeated."""
    count, channels, *sides = images.shape
    steps = torch.arange(-radius, radius + 1, device=images.device)
    weights = torch.exp(-0.5 * (steps / width.clamp_min(1e-3)[:, None]) ** 2)
    weights = (weights / weights.sum(1, keepdim=True)).repeat_interleave(channels, 0)[:, None]
    flat = F.pad(images.reshape(1, count * channels, *sides), [radius] * 4, mode="replicate")
    flat = F.conv2d(flat, weights[..., None, :], groups=count * channels)
    return F.conv2d(flat, weights[..., None], groups=count * channels).reshape(images.shape)


def add_noise(images: Tensor, level: Tensor, generator: torch.Generator) -> Tensor:
    """Add Gaussian noise with each image's level, equal in all channels; the generator is on the images' device."""
    shape = (len(images), 1, *images.shape[2:])
    noise = torch.randn(shape, generator=generator, device=images.device)
    return images.add_(noise.mul_(_per_image(level)))


def erase_rectangles(images: Tensor, area: Tensor, draws: Tensor) -> Tensor:
    """Fill one to three rectangles, with a total area of at most `area`, with the mean of the image.

    `draws` [N, 10] are uniform: the number of rectangles, then shape and position of each.
    """
    numbers = torch.arange(3, device=images.device)
    count = 1 + (draws[:, :1] * 3).long().clamp_max(2)
    areas = torch.where(numbers < count, area[:, None] / count, 0)
    shape, down, right = draws[:, 1:10].reshape(-1, 3, 3).unbind(1)
    stretch = torch.exp((shape * 2 - 1) * math.log(2))  # up to four times as long as wide
    height, width = (areas.sqrt() * stretch).clamp_max(1), (areas.sqrt() / stretch).clamp_max(1)
    rows = _interval_mask(images.shape[2], down * (1 - height), height, images.device)
    columns = _interval_mask(images.shape[3], right * (1 - width), width, images.device)
    cover = rows[:, 0, :, None] * columns[:, 0, None, :]
    for number in (1, 2):
        cover.addcmul_(rows[:, number, :, None], columns[:, number, None, :])
    return _fill_with_mean(images, cover.clamp_max_(1))


def erase_border(images: Tensor, most: Tensor, draws: Tensor) -> Tensor:
    """Fill a border with the mean of the image, with a different width on each side, up to a share `most` of its size.

    `draws` [N, 4 or more] are uniform: the widths above, below, left and right.
    """
    above, below, left, right = (draws[:, :4] * most[:, None]).unbind(1)
    rows, columns = (
        _interval_mask(length, start, 1 - start - end, images.device)
        for length, start, end in ((images.shape[2], above, below), (images.shape[3], left, right))
    )
    return _fill_with_mean(images, 1 - rows[:, :, None] * columns[:, None, :])


def erase_grid(images: Tensor, area: Tensor, draws: Tensor) -> Tensor:
    """Fill a grid of squares, with a total area of about `area`, with the mean of the image.

    `draws` [N, 3 or more] are uniform: the number of squares in a row (3 to 8), and the offsets of the grid.
    """
    period = 1 / (3 + (draws[:, :1] * 6).long().clamp_max(5))
    side = area.sqrt()[:, None]
    masks = []
    for length, offset in zip(images.shape[2:], (draws[:, 1:2], draws[:, 2:3]), strict=True):
        centres = (torch.arange(length, device=images.device) + 0.5) / length
        masks.append(((centres / period + offset) % 1 < side).float())
    return _fill_with_mean(images, masks[0][:, :, None] * masks[1][:, None, :])


def equalise(images: Tensor, share: Tensor) -> Tensor:
    """Blend each image with its contrast-limited adaptive histogram equalisation (CLAHE), by its share.

    The clipped, cumulative histogram of each tile maps gray levels at the centre of the tile; between centres, the four
    nearest tiles are interpolated. Colours keep their hue: all channels are scaled by the same factor.
    """
    gray = images.mean(1)
    count, height, width = gray.shape
    tiles = max(1, min(TILES, min(height, width) // SMALLEST_TILE))
    levels = (gray * (BINS - 1)).round_().clamp_(0, BINS - 1).long()
    tables = _gray_level_tables(levels, tiles)
    starts = torch.arange(count, device=images.device)[:, None, None] * tiles * tiles
    (up, below, v), (left, right, h) = (_neighbouring_tiles(side, tiles, images.device) for side in (height, width))

    def mapped(row: Tensor, column: Tensor) -> Tensor:
        return tables[(starts + row[:, None] * tiles + column) * BINS + levels]

    upper = torch.lerp(mapped(up, left), mapped(up, right), h)
    lower = torch.lerp(mapped(below, left), mapped(below, right), h)
    equal = torch.lerp(upper, lower, v[:, None])
    factor = torch.lerp(torch.ones_like(gray), equal / gray.clamp_min(1 / (2 * BINS)), share[:, None, None])
    return (images * factor[:, None]).clamp_(0, 1)


def _gray_level_tables(levels: Tensor, tiles: int) -> Tensor:
    """Return the mapping of gray levels in each tile of each image, flat: [N × tiles × tiles × BINS]."""
    count, height, width = levels.shape
    rows, columns = (torch.arange(side, device=levels.device) * tiles // side for side in (height, width))
    images = torch.arange(count, device=levels.device)[:, None, None]
    tile = (images * tiles + rows[:, None]) * tiles + columns
    total = count * tiles * tiles * BINS
    histogram = torch.bincount((tile * BINS + levels).flatten(), minlength=total).view(-1, BINS)
    pixels = histogram.sum(1, keepdim=True)
    clipped = torch.minimum(histogram, (pixels.double() * CLIP / BINS).ceil().long())
    excess = (pixels - clipped.sum(1, keepdim=True)).double() / BINS
    # Integer sums do not depend on the order or the device.
    below = clipped.cumsum(1) + excess * torch.arange(1, BINS + 1, device=levels.device)
    return (below / pixels).float().flatten()


def _neighbouring_tiles(length: int, tiles: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return for each pixel along an axis the tiles with the centres before and after it, and the fraction between."""
    position = (torch.arange(length, device=device) + 0.5) * tiles / length - 0.5
    first = position.floor().clamp(0, tiles - 1)
    return first.long(), (position.floor() + 1).clamp(0, tiles - 1).long(), (position - first).clamp(0, 1)


def _interval_mask(length: int, start: Tensor, extent: Tensor, device: torch.device) -> Tensor:
    """Return 1 for pixels whose centre is in the interval, given in shares of the length, and 0 for the others."""
    centres = (torch.arange(length, device=device) + 0.5) / length
    return ((centres >= start[..., None]) & (centres < (start + extent)[..., None])).float()


def _fill_with_mean(images: Tensor, cover: Tensor) -> Tensor:
    """Fill images with their mean where the cover [N, H, W] is 1, and leave them unchanged where it is 0."""
    return images.lerp_(images.mean((2, 3), keepdim=True), cover[:, None])


def _per_image(values: Tensor) -> Tensor:
    return values[:, None, None, None]
