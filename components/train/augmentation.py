"""Random augmentation of training images: names and amounts of the transforms, and their random parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from components.shared.errors import RefusedError
from components.shared.runtime.stage_interface import nearest
from components.train import transforms


@dataclass(frozen=True)
class Transform:
    """A transform: default amount, maximum amount, probability, and description."""

    amount: float
    limit: float
    probability: float
    description: str
    scaled: bool = True
    """Whether the strength scales the amount; the probability of mirroring does not depend on it."""


TRANSFORMS = {
    "rotate": Transform(15, 180, 0.8, "rotated by up to {:g}°"),
    "shift": Transform(0.1, 0.5, 0.8, "shifted by up to {percent} of the image size"),
    "zoom": Transform(0.15, 1, 0.8, "zoomed by up to {percent}"),
    "shear": Transform(5, 45, 0.5, "sheared by up to {:g}°"),
    "aspect": Transform(0.2, 1, 0.8, "stretched in width or height by up to {percent}"),
    "brightness": Transform(0.1, 0.5, 0.8, "brightness changed by up to {percent} of white"),
    "contrast": Transform(0.25, 0.9, 0.8, "contrast changed by up to {percent}"),
    "gamma": Transform(0.3, 2, 0.5, "gamma changed by up to {percent}"),
    "curve": Transform(1, 3, 0.8, "gray values mapped through a random curve (strength {:g})"),
    "coarse": Transform(0.7, 0.95, 0.6, "resolution reduced by up to {percent}"),
    "sharpen": Transform(2, 10, 0.3, "edges sharpened by a factor of up to {:g}"),
    "noise": Transform(0.03, 0.5, 0.3, "noise of up to {percent} of white"),
    "blur": Transform(1, 4, 0.2, "blurred by up to {:g} px"),
    "erase": Transform(0.2, 0.5, 0.5, "rectangles erased, up to {percent} of the area"),
    "border": Transform(0.2, 0.45, 0.6, "borders erased, up to {percent} on each side"),
    "griddrop": Transform(0.25, 0.5, 0.3, "a grid of squares erased, up to {percent} of the area"),
    "clahe": Transform(0.5, 1, 0.3, "local contrast equalised by up to {percent} (CLAHE)"),
    "elastic": Transform(0.02, 0.1, 0.5, "deformed elastically by up to {percent} of the image size"),
    "hflip": Transform(0.5, 1, 1, "mirrored left to right with a probability of {percent}", scaled=False),
    "vflip": Transform(0.5, 1, 1, "mirrored top to bottom with a probability of {percent}", scaled=False),
}

PRESETS = {
    "radiograph": ("rotate", "shift", "zoom", "shear", "brightness", "contrast", "gamma", "noise", "blur", "erase"),
    "scanners": ("brightness", "contrast", "gamma", "curve", "coarse", "sharpen", "noise", "blur"),
}
"""Named lists of transforms. `radiograph` is safe for chest images: it does not mirror them, because the position of
the heart, the stomach and the side markers matters, does not deform anatomy, and erases no regular patterns. `scanners`
varies what differs between devices and their post-processing, so that a network does not learn to recognise them."""
UNMOVED = 0.15
"""Share of images without geometric transforms: those blur slightly, and the network must see sharp images too."""
COARSE_LEVELS = 6
"""Number of reduced resolutions; all images of a batch with the same one are resized together."""


@dataclass(frozen=True)
class Augmentation:
    """Transforms with their maximum amounts; a call transforms each image of a batch differently."""

    amounts: Mapping[str, float]

    @staticmethod
    def parse(text: str, strength: float = 1.0) -> Augmentation:
        """Parse a list such as "rotate,erase=0.1" or "radiograph,hflip".

        `strength` multiplies the amounts, each up to its limit; strength 0 and "none" disable augmentation. A later
        amount replaces an earlier one, so "radiograph,blur=0" is that list without blur.
        """
        amounts: dict[str, float] = {}
        for entry in [] if text.strip() == "none" else text.split(","):
            name, equals, amount = (part.strip() for part in entry.partition("="))
            if name in PRESETS and not equals:
                amounts |= {member: TRANSFORMS[member].amount for member in PRESETS[name]}
            elif name in TRANSFORMS:
                amounts[name] = _amount(name, amount) if equals else TRANSFORMS[name].amount
            else:
                raise RefusedError(_unknown(name, has_amount=bool(equals)))
        factors = {name: strength if TRANSFORMS[name].scaled else float(strength > 0) for name in amounts}
        scaled = {name: min(amount * factors[name], TRANSFORMS[name].limit) for name, amount in amounts.items()}
        return Augmentation({name: scaled[name] for name in TRANSFORMS if scaled.get(name)})

    def __str__(self) -> str:
        """Return the list with all amounts, which `parse` accepts."""
        return ",".join(f"{name}={amount:.6g}" for name, amount in self.amounts.items()) or "none"

    def describe(self) -> list[str]:
        """Return a phrase for each transform, for people."""
        return [
            TRANSFORMS[name].description.format(amount, percent=f"{100 * amount:.3g} %")
            for name, amount in self.amounts.items()
        ]

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return the batch with each image transformed; the same generator state gives the same bytes.

        Images are square, [N, C, H, W], float32 in 0..1 before normalisation, on any device. Pass gray images with one
        channel and repeat it afterwards. Use a CPU generator even for images on a GPU: only a few numbers per image are
        drawn, and nothing waits for the GPU.
        """
        if images.dtype != torch.float32:
            raise TypeError(f"The images are {images.dtype}; augmentation needs float32. Convert them after it.")
        if not self.amounts or not len(images):
            return images
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            images = images.clone()  # the transforms below work in place
            for part in (self._equalise, self._mirror, self._move, self._tone, self._spoil, self._cover):
                part(images, generator)
            return images.clamp_(0, 1)

    def _equalise(self, images: Tensor, generator: torch.Generator) -> None:
        share = self._draw("clahe", len(images), generator, low=0)
        _apply(images, share > 0, transforms.equalise, share)

    def _mirror(self, images: Tensor, generator: torch.Generator) -> None:
        for name, axis in (("hflip", 3), ("vflip", 2)):
            if name in self.amounts:
                drawn = _uniform((len(images),), generator)
                _apply(images, drawn < self.amounts[name], partial(torch.flip, dims=(axis,)))

    def _move(self, images: Tensor, generator: torch.Generator) -> None:
        count = len(images)
        names = ("rotate", "shift", "shift", "shear", "zoom", "aspect", "elastic")
        drawn = [self._draw(name, count, generator) for name in names]
        turn, right, down, shear, zoom, aspect, bend = drawn
        shift, radians = torch.stack([right, down], 1), math.pi / 180
        matrix = transforms.affine(turn * radians, shift, _factor(zoom), shear * radians, _factor(aspect).sqrt())
        which = torch.stack(drawn).ne(0).any(0)
        which &= _uniform((count,), generator) >= UNMOVED
        if "elastic" not in self.amounts:
            return _apply(images, which, transforms.warp, matrix)
        field = _uniform((count, 2, 5, 5), generator) * 2 - 1
        return _apply(images, which, transforms.warp, matrix, field * bend.abs()[:, None, None, None])

    def _tone(self, images: Tensor, generator: torch.Generator) -> None:
        bend = self._draw("curve", len(images), generator)
        if "curve" in self.amounts:
            steps = _uniform((len(images), transforms.STEPS), generator) * 2 - 1
            _apply(images, bend != 0, transforms.bend_tones, steps * bend[:, None])
        bright, contrast, gamma = (
            self._draw(name, len(images), generator) for name in ("brightness", "contrast", "gamma")
        )
        power = _factor(gamma)
        which = torch.stack([bright, contrast, gamma]).ne(0).any(0)
        _apply(images, which, transforms.adjust_tone, power, 1 + contrast, bright)

    def _spoil(self, images: Tensor, generator: torch.Generator) -> None:
        step = self.amounts.get("coarse", 0) / COARSE_LEVELS
        lost = (self._draw("coarse", len(images), generator, low=0) / (step or 1)).ceil()
        for size in range(1, COARSE_LEVELS + 1):
            _apply(images, lost == size, partial(transforms.coarsen, share=size * step))
        raised = self._draw("sharpen", len(images), generator, low=0)
        _apply(images, raised > 0, transforms.sharpen, raised)
        width = self._draw("blur", len(images), generator, low=0)
        radius = math.ceil(2 * self.amounts.get("blur", 0))
        _apply(images, width > 0, partial(transforms.blur, radius=radius), width)
        level = self._draw("noise", len(images), generator, low=0)
        if (level > 0).any():
            seed = int(torch.randint(2**31, (1,), generator=generator, device=generator.device))
            noise = torch.Generator(images.device).manual_seed(seed)  # noise is generated on the images' device
            _apply(images, level > 0, partial(transforms.add_noise, generator=noise), level)

    def _cover(self, images: Tensor, generator: torch.Generator) -> None:
        # A grid of tiny squares would hide nothing, so the grid has at least half of its amount.
        covers = (
            ("border", transforms.erase_border, 1),
            ("erase", transforms.erase_rectangles, 0),
            ("griddrop", transforms.erase_grid, 0.5),
        )
        for name, cover, low in covers:
            area = self._draw(name, len(images), generator, low)
            if name in self.amounts:
                _apply(images, area > 0, cover, area, _uniform((len(images), 10), generator))

    def _draw(self, name: str, count: int, generator: torch.Generator, low: float = -1) -> Tensor:
        """Draw the amount of a transform for each image, from `low` to 1 times its maximum; 0 if it is skipped."""
        if name not in self.amounts:
            return torch.zeros(count)
        chance, extent = _uniform((2, count), generator)
        return torch.where(chance < TRANSFORMS[name].probability, (low + (1 - low) * extent) * self.amounts[name], 0.0)


def _factor(more: Tensor) -> Tensor:
    """Return factors symmetric around 1: 0.15 gives 1.15, -0.15 gives 1 / 1.15."""
    return torch.exp(more.sign() * torch.log1p(more.abs()))


def _uniform(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator, device=generator.device).cpu()


def _apply(images: Tensor, selected: Tensor, transform: Callable[..., Tensor], *draws: Tensor) -> None:
    """Transform the selected images of the batch in place; each of `draws` has a row for each image."""
    if not selected.any():
        return
    device = images.device
    if selected.all():
        images.copy_(transform(images, *(draw.to(device, non_blocking=True) for draw in draws)))
        return
    rows = selected.nonzero()[:, 0]
    index = rows.to(device, non_blocking=True)
    some = images.index_select(0, index)
    images.index_copy_(0, index, transform(some, *(draw[rows].to(device, non_blocking=True) for draw in draws)))


def _amount(name: str, text: str) -> float:
    limit = TRANSFORMS[name].limit
    try:
        amount = float(text)
    except ValueError:
        amount = math.nan
    if not 0 <= amount <= limit:
        raise RefusedError(
            f"The augmentation {name}={text} has an amount of {text or 'nothing'!r}; it must be a number from 0 to "
            f"{limit:g}. The default is {TRANSFORMS[name].amount:g}."
        )
    return amount


def _unknown(name: str, has_amount: bool) -> str:
    if name in PRESETS and has_amount:
        return f"The list {name!r} takes no amount. Set the amounts of single transforms, like '{name},rotate=5'."
    known = [*TRANSFORMS, *PRESETS]
    return (
        f"There is no augmentation {name!r}; allowed are {', '.join(known)}, or 'none' alone.{nearest(name, known)} "
        "Separate the names by commas."
    )
