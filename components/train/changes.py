"""What the random changes do to a batch of images [N, C, H, W] with values in 0..1, on whatever device it is.

Each takes the batch, which it may overwrite, and how much for each image; nothing is drawn here but noise. All are
made of operations that torch also has in deterministic form.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

BINS = 256
CLIP = 2.0
"""How many times the mean a bin of a tile's histogram may hold, as CLAHE limits contrast."""
TILES = 8
SMALLEST_TILE = 12
STEPS = 6
"""Of how many straight pieces a curve of gray values is made."""


def affine(turn: Tensor, shift: Tensor, zoom: Tensor, shear: Tensor, aspect: Tensor) -> Tensor:
    """The matrices [N, 2, 3] for `moved`: wider by the aspect and less high, shear, turn, zoom, shift, in this order.

    Angles are in radians, clockwise; shifts in sides.
    """
    cosine, sine, slant = torch.cos(turn), torch.sin(turn), torch.tan(shear)
    # grid_sample asks where each new pixel comes from: the inverse, over a square from -1 to 1.
    rows = [torch.stack([cosine + slant * sine, sine - slant * cosine], 1), torch.stack([-sine, cosine], 1)]
    inverse = torch.stack(rows, 1) / zoom[:, None, None]
    inverse = inverse * torch.stack([1 / aspect, aspect], 1)[:, :, None]
    return torch.cat([inverse, inverse @ (-2 * shift[:, :, None])], 2)


def moved(images: Tensor, matrix: Tensor, bend: Tensor | None = None) -> Tensor:
    """The images through their matrices and, if given, displaced by a coarse field [N, 2, h, w] (in sides).

    What comes from outside is like the pixel at the edge. Black corners would be seen in all of training and nowhere
    in service; where film is black at the edge, or a view is padded, they come out black this way, too.
    """
    grid = _grid(matrix, *images.shape[2:])
    if bend is not None:
        smooth = F.interpolate(bend, size=images.shape[2:], mode="bicubic", align_corners=True)
        limit = bend.abs().amax((1, 2, 3), keepdim=True)  # between its points the smooth field may swing further
        grid = grid + 2 * torch.minimum(torch.maximum(smooth, -limit), limit).permute(0, 2, 3, 1)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _grid(matrix: Tensor, height: int, width: int) -> Tensor:
    """The same as torch's affine_grid, several times as fast on a processor: outer sums instead of a product."""
    right, down = (torch.arange(1 - side, side, 2, device=matrix.device) / side for side in (width, height))
    across, along, offset = matrix[:, None].unbind(3)  # [N, 1, 2] each
    # A place is one complex number here: so both its parts are summed and written at once.
    starts = torch.view_as_complex(along * down[:, None] + offset)[:, :, None]
    return torch.view_as_real(starts + torch.view_as_complex(across * right[:, None])[:, None, :])


def toned(images: Tensor, gamma: Tensor, contrast: Tensor, brightness: Tensor) -> Tensor:
    """Each image to the power of its gamma, spread about its mean by its contrast, and so much brighter."""
    powered = images.clamp_(0, 1).pow_(_wide(gamma))
    mean = powered.mean((1, 2, 3), keepdim=True)
    offset = mean * (1 - _wide(contrast)) + _wide(brightness)
    return powered.mul_(_wide(contrast)).add_(offset).clamp_(0, 1)


def curved(images: Tensor, slopes: Tensor) -> Tensor:
    """Each image through its rising curve from black to white, of pieces [N, STEPS] with these logarithms of slopes."""
    heights = torch.softmax(slopes, 1)
    starts = heights.cumsum(1) - heights
    places = images.clamp_(0, 1).mul_(STEPS)
    pieces = places.long().clamp_max_(STEPS - 1)
    along = places.sub_(pieces).flatten(1)
    which = pieces.flatten(1)
    bent = starts.gather(1, which).addcmul_(heights.gather(1, which), along)
    return bent.clamp_(0, 1).view(images.shape)


def coarsened(images: Tensor, share: float) -> Tensor:
    """The images without this share of their resolution, in their old size."""
    sides = images.shape[2:]
    fewer = [max(2, round(side * (1 - share))) for side in sides]
    small = F.interpolate(images, size=fewer, mode="bilinear", antialias=True)
    return F.interpolate(small, size=sides, mode="bilinear").clamp_(0, 1)


def sharpened(images: Tensor, amount: Tensor) -> Tensor:
    """Each image with so many times more of what sets its pixels off from those around them."""
    smooth = blurred(images, torch.ones(len(images), device=images.device), 2)
    return images.add_((images - smooth).mul_(_wide(amount))).clamp_(0, 1)


def blurred(images: Tensor, width: Tensor, radius: int) -> Tensor:
    """Each image through a Gauss filter of its width in pixels, cut off at the radius; the edge goes on beyond it."""
    count, channels, *sides = images.shape
    steps = torch.arange(-radius, radius + 1, device=images.device)
    weights = torch.exp(-0.5 * (steps / width.clamp_min(1e-3)[:, None]) ** 2)
    weights = (weights / weights.sum(1, keepdim=True)).repeat_interleave(channels, 0)[:, None]
    flat = F.pad(images.reshape(1, count * channels, *sides), [radius] * 4, mode="replicate")
    flat = F.conv2d(flat, weights[..., None, :], groups=count * channels)
    return F.conv2d(flat, weights[..., None], groups=count * channels).reshape(images.shape)


def noisy(images: Tensor, level: Tensor, generator: torch.Generator) -> Tensor:
    """Each image with normal noise of its level, the same in all its channels, drawn from a generator beside them."""
    shape = (len(images), 1, *images.shape[2:])
    noise = torch.randn(shape, generator=generator, device=images.device)
    return images.add_(noise.mul_(_wide(level)))


def erased(images: Tensor, area: Tensor, draws: Tensor) -> Tensor:
    """Each image with one to three rectangles of together at most its area filled with its mean.

    `draws` [N, 10] are uniform: how many rectangles, then the shape and place of each.
    """
    places = torch.arange(3, device=images.device)
    count = 1 + (draws[:, :1] * 3).long().clamp_max(2)
    each = torch.where(places < count, area[:, None] / count, 0)
    shape, down, right = draws[:, 1:10].reshape(-1, 3, 3).unbind(1)
    stretch = torch.exp((shape * 2 - 1) * math.log(2))  # up to four times as long as wide
    height, width = (each.sqrt() * stretch).clamp_max(1), (each.sqrt() / stretch).clamp_max(1)
    rows = _between(images.shape[2], down * (1 - height), height, images.device)
    columns = _between(images.shape[3], right * (1 - width), width, images.device)
    cover = rows[:, 0, :, None] * columns[:, 0, None, :]
    for place in (1, 2):
        cover.addcmul_(rows[:, place, :, None], columns[:, place, None, :])
    return _filled(images, cover.clamp_max_(1))


def framed(images: Tensor, most: Tensor, draws: Tensor) -> Tensor:
    """Each image with a frame filled with its mean: on each side of another width, up to its most (in sides).

    `draws` [N, 4 or more] are uniform: the widths above, below, left and right.
    """
    above, below, left, right = (draws[:, :4] * most[:, None]).unbind(1)
    rows, columns = (
        _between(length, start, 1 - start - end, images.device)
        for length, start, end in ((images.shape[2], above, below), (images.shape[3], left, right))
    )
    return _filled(images, 1 - rows[:, :, None] * columns[:, None, :])


def dropped(images: Tensor, area: Tensor, draws: Tensor) -> Tensor:
    """Each image with a grid of squares of together about its area filled with its mean.

    `draws` [N, 2 or more] are uniform: how many squares stand in a row (3 to 8), and where the first one begins.
    """
    period = 1 / (3 + (draws[:, :1] * 6).long().clamp_max(5))
    side = area.sqrt()[:, None]
    masks = []
    for length, offset in zip(images.shape[2:], (draws[:, 1:2], draws[:, 2:3]), strict=True):
        centres = (torch.arange(length, device=images.device) + 0.5) / length
        masks.append(((centres / period + offset) % 1 < side).float())
    return _filled(images, masks[0][:, :, None] * masks[1][:, None, :])


def equalised(images: Tensor, share: Tensor) -> Tensor:
    """Each image mixed with its contrast-limited local equalisation (CLAHE), of which it takes its share.

    The histogram of each tile, clipped and summed up, says what becomes of a gray level at the tile's middle; between
    middles the four nearest tiles are mixed. Colours keep their hue: all channels are scaled as their mean is.
    """
    gray = images.mean(1)
    count, height, width = gray.shape
    tiles = max(1, min(TILES, min(height, width) // SMALLEST_TILE))
    levels = (gray * (BINS - 1)).round_().clamp_(0, BINS - 1).long()
    tables = _tables(levels, tiles)
    starts = torch.arange(count, device=images.device)[:, None, None] * tiles * tiles
    (up, below, v), (left, right, h) = (_neighbours(side, tiles, images.device) for side in (height, width))

    def said(row: Tensor, column: Tensor) -> Tensor:
        return tables[(starts + row[:, None] * tiles + column) * BINS + levels]

    upper = torch.lerp(said(up, left), said(up, right), h)
    lower = torch.lerp(said(below, left), said(below, right), h)
    equal = torch.lerp(upper, lower, v[:, None])
    factor = torch.lerp(torch.ones_like(gray), equal / gray.clamp_min(1 / (2 * BINS)), share[:, None, None])
    return (images * factor[:, None]).clamp_(0, 1)


def _tables(levels: Tensor, tiles: int) -> Tensor:
    """What becomes of each gray level in each tile of each image, flat: [N × tiles × tiles × BINS]."""
    count, height, width = levels.shape
    rows, columns = (torch.arange(side, device=levels.device) * tiles // side for side in (height, width))
    images = torch.arange(count, device=levels.device)[:, None, None]
    tile = (images * tiles + rows[:, None]) * tiles + columns
    total = count * tiles * tiles * BINS
    histogram = torch.bincount((tile * BINS + levels).flatten(), minlength=total).view(-1, BINS)
    pixels = histogram.sum(1, keepdim=True)
    clipped = torch.minimum(histogram, (pixels.double() * CLIP / BINS).ceil().long())
    excess = (pixels - clipped.sum(1, keepdim=True)).double() / BINS
    # Sums of whole numbers are the same in any order, on any device.
    below = clipped.cumsum(1) + excess * torch.arange(1, BINS + 1, device=levels.device)
    return (below / pixels).float().flatten()


def _neighbours(length: int, tiles: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """For each pixel along a side: the tile whose middle is before it, the one after it, and how near it is to that."""
    place = (torch.arange(length, device=device) + 0.5) * tiles / length - 0.5
    first = place.floor().clamp(0, tiles - 1)
    return first.long(), (place.floor() + 1).clamp(0, tiles - 1).long(), (place - first).clamp(0, 1)


def _between(length: int, start: Tensor, extent: Tensor, device: torch.device) -> Tensor:
    """1 for those of so many pixels that have their middle in the interval, given in sides, and 0 for the others."""
    centres = (torch.arange(length, device=device) + 0.5) / length
    return ((centres >= start[..., None]) & (centres < (start + extent)[..., None])).float()


def _filled(images: Tensor, cover: Tensor) -> Tensor:
    """The images with their mean where the cover [N, H, W] is 1, and to the bit as they were where it is 0."""
    return images.lerp_(images.mean((2, 3), keepdim=True), cover[:, None])


def _wide(values: Tensor) -> Tensor:
    return values[:, None, None, None]
