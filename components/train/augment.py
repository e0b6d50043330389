"""The list of random changes that training images go through: its names, its amounts, and the drawing of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from components.shared.errors import RefusedError
from components.shared.runtime.interface import nearest
from components.train import changes


@dataclass(frozen=True)
class Change:
    """One kind of change: its usual amount, the most it may be, how often an image gets it, and how it is told."""

    amount: float
    limit: float
    chance: float
    words: str
    scaled: bool = True
    """Whether a strength scales the amount; how often an image is mirrored is not a matter of strength."""


CHANGES = {
    "rotate": Change(15, 180, 0.8, "turned by up to {:g}°"),
    "shift": Change(0.1, 0.5, 0.8, "moved by up to {percent} of the side"),
    "zoom": Change(0.15, 1, 0.8, "zoomed by up to {percent}"),
    "shear": Change(5, 45, 0.5, "sheared by up to {:g}°"),
    "aspect": Change(0.2, 1, 0.8, "made wider or higher by up to {percent}"),
    "brightness": Change(0.1, 0.5, 0.8, "made brighter or darker by up to {percent} of white"),
    "contrast": Change(0.25, 0.9, 0.8, "contrast more or less by up to {percent}"),
    "gamma": Change(0.3, 2, 0.5, "gamma higher or lower by up to {percent}"),
    "curve": Change(1, 3, 0.8, "gray values bent by a random curve (strength {:g})"),
    "coarse": Change(0.7, 0.95, 0.6, "made coarser, losing up to {percent} of the resolution"),
    "sharpen": Change(2, 10, 0.3, "edges raised by up to {:g} times what they are"),
    "noise": Change(0.03, 0.5, 0.3, "noise of up to {percent} of white"),
    "blur": Change(1, 4, 0.2, "blurred by up to {:g} px"),
    "erase": Change(0.2, 0.5, 0.5, "rectangles erased of up to {percent} of the area"),
    "border": Change(0.2, 0.45, 0.6, "a frame hidden, of up to {percent} on each side"),
    "griddrop": Change(0.25, 0.5, 0.3, "a grid of squares erased of up to {percent} of the area"),
    "clahe": Change(0.5, 1, 0.3, "local contrast equalised by up to {percent} (CLAHE)"),
    "elastic": Change(0.02, 0.1, 0.5, "bent by up to {percent} of the side"),
    "hflip": Change(0.5, 1, 1, "mirrored left to right in {percent} of the cases", scaled=False),
    "vflip": Change(0.5, 1, 1, "mirrored top to bottom in {percent} of the cases", scaled=False),
}

SETS = {
    "radiograph": ("rotate", "shift", "zoom", "shear", "brightness", "contrast", "gamma", "noise", "blur", "erase"),
    "scanners": ("brightness", "contrast", "gamma", "curve", "coarse", "sharpen", "noise", "blur"),
}
"""Lists with a name. `radiograph` is safe for chest images: heart, stomach and side marks tell left from right, so
nothing is mirrored; what bends anatomy or hides a regular part of it is left out too. `scanners` changes what differs
between devices and what is done to their images afterwards, so that a network does not learn to know those by it."""
STILL = 0.15
"""The share of images that are not moved at all: moving makes a little softer, and a network is to know sharp ones."""
SIZES = 6
"""To how many smaller sizes images are brought to lose resolution: a batch goes through each at once."""


@dataclass(frozen=True)
class Augmentation:
    """Changes with the most that each may be; called on a batch, it changes each image in its own way."""

    amounts: Mapping[str, float]

    @staticmethod
    def parse(text: str, strength: float = 1.0) -> Augmentation:
        """The augmentation that a text like "rotate,erase=0.1" or "radiograph,hflip" asks for.

        `strength` multiplies the amounts, each up to its limit; strength 0 and "none" are no change at all. A later
        amount replaces an earlier one, so "radiograph,blur=0" is that list without blur.
        """
        amounts: dict[str, float] = {}
        for entry in [] if text.strip() == "none" else text.split(","):
            name, given, amount = (part.strip() for part in entry.partition("="))
            if name in SETS and not given:
                amounts |= {each: CHANGES[each].amount for each in SETS[name]}
            elif name in CHANGES:
                amounts[name] = _amount(name, amount) if given else CHANGES[name].amount
            else:
                raise RefusedError(_unknown(name, bool(given)))
        factors = {name: strength if CHANGES[name].scaled else float(strength > 0) for name in amounts}
        scaled = {name: min(amount * factors[name], CHANGES[name].limit) for name, amount in amounts.items()}
        return Augmentation({name: scaled[name] for name in CHANGES if scaled.get(name)})

    def __str__(self) -> str:
        """The list with all amounts, as `parse` reads it."""
        return ",".join(f"{name}={amount:.6g}" for name, amount in self.amounts.items()) or "none"

    def words(self) -> list[str]:
        """What is done to an image, a phrase for each change, for people."""
        return [
            CHANGES[name].words.format(amount, percent=f"{100 * amount:.3g} %") for name, amount in self.amounts.items()
        ]

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """The batch with each image changed in its own way; the same state of the generator gives the same bytes.

        Images are float32 in 0..1, before any normalisation, square, [N, C, H, W], on any device, and stay so. Give
        gray images one channel here and repeat it afterwards. A generator of the processor is best, also for images
        on a GPU: what is drawn is a few numbers an image, and nothing waits for the GPU.
        """
        if images.dtype != torch.float32:
            raise TypeError(f"The images are {images.dtype}, and augmentation needs float32. Convert them after it.")
        if not self.amounts or not len(images):
            return images
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            images = images.clone()  # the changes below are made in place
            for part in (self._equalise, self._mirror, self._move, self._tone, self._spoil, self._cover):
                part(images, generator)
            return images.clamp_(0, 1)

    def _equalise(self, images: Tensor, generator: torch.Generator) -> None:
        share = self._draw("clahe", len(images), generator, low=0)
        _apply(images, share > 0, changes.equalised, share)

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
        matrix = changes.affine(turn * radians, shift, _factor(zoom), shear * radians, _factor(aspect).sqrt())
        which = torch.stack(drawn).ne(0).any(0)
        which &= _uniform((count,), generator) >= STILL
        if "elastic" not in self.amounts:
            return _apply(images, which, changes.moved, matrix)
        field = _uniform((count, 2, 5, 5), generator) * 2 - 1
        return _apply(images, which, changes.moved, matrix, field * bend.abs()[:, None, None, None])

    def _tone(self, images: Tensor, generator: torch.Generator) -> None:
        bend = self._draw("curve", len(images), generator)
        if "curve" in self.amounts:
            steps = _uniform((len(images), changes.STEPS), generator) * 2 - 1
            _apply(images, bend != 0, changes.curved, steps * bend[:, None])
        bright, contrast, gamma = (
            self._draw(name, len(images), generator) for name in ("brightness", "contrast", "gamma")
        )
        power = _factor(gamma)
        which = torch.stack([bright, contrast, gamma]).ne(0).any(0)
        _apply(images, which, changes.toned, power, 1 + contrast, bright)

    def _spoil(self, images: Tensor, generator: torch.Generator) -> None:
        step = self.amounts.get("coarse", 0) / SIZES
        lost = (self._draw("coarse", len(images), generator, low=0) / (step or 1)).ceil()
        for size in range(1, SIZES + 1):
            _apply(images, lost == size, partial(changes.coarsened, share=size * step))
        raised = self._draw("sharpen", len(images), generator, low=0)
        _apply(images, raised > 0, changes.sharpened, raised)
        width = self._draw("blur", len(images), generator, low=0)
        radius = math.ceil(2 * self.amounts.get("blur", 0))
        _apply(images, width > 0, partial(changes.blurred, radius=radius), width)
        level = self._draw("noise", len(images), generator, low=0)
        if (level > 0).any():
            seed = int(torch.randint(2**31, (1,), generator=generator, device=generator.device))
            chance = torch.Generator(images.device).manual_seed(seed)  # noise is made where the images are
            _apply(images, level > 0, partial(changes.noisy, generator=chance), level)

    def _cover(self, images: Tensor, generator: torch.Generator) -> None:
        # A grid of specks would hide nothing, so it begins at half of its amount.
        covers = (("border", changes.framed, 1), ("erase", changes.erased, 0), ("griddrop", changes.dropped, 0.5))
        for name, cover, low in covers:
            area = self._draw(name, len(images), generator, low)
            if name in self.amounts:
                _apply(images, area > 0, cover, area, _uniform((len(images), 10), generator))

    def _draw(self, name: str, count: int, generator: torch.Generator, low: float = -1) -> Tensor:
        """How much of a change each image gets, from `low` to 1 times its amount; 0 for those that it passes over."""
        if name not in self.amounts:
            return torch.zeros(count)
        chance, extent = _uniform((2, count), generator)
        return torch.where(chance < CHANGES[name].chance, (low + (1 - low) * extent) * self.amounts[name], 0.0)


def _factor(more: Tensor) -> Tensor:
    """1 more or less by these shares: 1.15 is as likely as 1 / 1.15."""
    return torch.exp(more.sign() * torch.log1p(more.abs()))


def _uniform(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator, device=generator.device).cpu()


def _apply(images: Tensor, which: Tensor, change: Callable[..., Tensor], *draws: Tensor) -> None:
    """Change those images of the batch, in place; each of `draws` has a row an image."""
    if not which.any():
        return
    place = images.device
    if which.all():
        images.copy_(change(images, *(draw.to(place, non_blocking=True) for draw in draws)))
        return
    rows = which.nonzero()[:, 0]
    there = rows.to(place, non_blocking=True)
    some = images.index_select(0, there)
    images.index_copy_(0, there, change(some, *(draw[rows].to(place, non_blocking=True) for draw in draws)))


def _amount(name: str, text: str) -> float:
    limit = CHANGES[name].limit
    try:
        amount = float(text)
    except ValueError:
        amount = math.nan
    if not 0 <= amount <= limit:
        raise RefusedError(
            f"The augmentation {name}={text} has an amount of {text or 'nothing'!r}, and it must be a number from 0 to "
            f"{limit:g}. The usual one is {CHANGES[name].amount:g}."
        )
    return amount


def _unknown(name: str, given: bool) -> str:
    if name in SETS and given:
        return f"The list {name!r} takes no amount. Give its changes one each, like '{name},rotate=5'."
    known = [*CHANGES, *SETS]
    return (
        f"There is no augmentation {name!r}; known are {', '.join(known)}, or 'none' alone.{nearest(name, known)} "
        "Separate the names by commas."
    )
