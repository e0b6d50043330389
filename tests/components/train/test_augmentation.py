"""Each change does what its name says and no more, within its limits, and the same again from the same state."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from components.train import transforms
from components.train.augmentation import PRESETS, TRANSFORMS, UNMOVED, Augmentation

EVERYTHING = ",".join(TRANSFORMS)


@pytest.fixture(autouse=True)
def _deterministic() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


def chance(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def scans(count: int = 8, side: int = 64, channels: int = 1) -> Tensor:
    """Smooth gray images with some grain, none of them black or white anywhere."""
    coarse = torch.rand(count, channels, 6, 6, generator=chance(5))
    smooth = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bilinear", align_corners=False)
    return 0.25 + 0.45 * smooth + 0.05 * torch.rand(smooth.shape, generator=chance(6))


def spot(x: float, y: float, side: int = 65) -> Tensor:
    """A black image with a white spot around a place given from -0.5 to 0.5, from the middle to right and down."""
    across = (torch.arange(side) + 0.5) / side - 0.5
    return torch.exp(-((across[None, :] - x) ** 2 + (across[:, None] - y) ** 2) / 0.001)[None, None]


def centre(images: Tensor) -> tuple[Tensor, Tensor]:
    """Where the light of each image is, to the right and down of the middle, in sides."""
    side = images.shape[-1]
    across = (torch.arange(side) + 0.5) / side - 0.5
    light = images.sum(1)
    total = light.sum((1, 2))
    return (light * across).sum((1, 2)) / total, (light * across[:, None]).sum((1, 2)) / total


def one(
    image: Tensor,
    turn: float = 0,
    right: float = 0,
    down: float = 0,
    zoom: float = 1,
    shear: float = 0,
    aspect: float = 1,
) -> tuple[float, float]:
    """Where the spot of an image goes."""
    drawn = (torch.tensor([each]).float() for each in (turn, (right, down), zoom, shear, aspect))
    x, y = centre(transforms.warp(image, transforms.affine(*drawn)))
    return float(x), float(y)


def test_a_turn_takes_a_mark_clockwise_by_its_angle() -> None:
    assert one(spot(0.25, 0), turn=math.radians(30)) == pytest.approx((0.25 * 0.8660, 0.125), abs=2e-3)
    assert one(spot(0.25, 0), turn=math.radians(-90)) == pytest.approx((0, -0.25), abs=2e-3)


def test_shift_zoom_and_shear_take_a_mark_where_they_say() -> None:
    assert one(spot(0.1, 0.1), right=0.2, down=-0.05) == pytest.approx((0.3, 0.05), abs=2e-3)
    assert one(spot(0.1, -0.2), zoom=1.5) == pytest.approx((0.15, -0.3), abs=2e-3)
    assert one(spot(0.0, 0.2), shear=math.radians(20)) == pytest.approx(
        (0.2 * math.tan(math.radians(20)), 0.2), abs=2e-3
    )
    assert one(spot(0.2, 0.2), aspect=1.25) == pytest.approx((0.25, 0.16), abs=2e-3)
    # First sheared, then turned, then enlarged, then shifted.
    x, y = 0.1 * 1.2, 0.0
    assert one(spot(0.1, 0), turn=math.pi / 2, zoom=1.2, right=0.1) == pytest.approx((0.1 - y, x), abs=2e-3)


def test_no_move_leaves_the_image_and_what_comes_from_outside_is_like_the_edge() -> None:
    images = scans(2)
    still = transforms.affine(torch.zeros(2), torch.zeros(2, 2), torch.ones(2), torch.zeros(2), torch.ones(2))
    torch.testing.assert_close(transforms.warp(images, still), images, atol=1e-4, rtol=0)
    right = torch.tensor([[0.25, 0.0]] * 2)
    aside = transforms.affine(torch.zeros(2), right, torch.ones(2), torch.zeros(2), torch.ones(2))
    after = transforms.warp(images, aside)
    torch.testing.assert_close(after[..., :15], images[..., :1].expand(-1, -1, -1, 15), atol=1e-4, rtol=0)
    torch.testing.assert_close(after[..., 16:], images[..., :-16], atol=1e-4, rtol=0)


def test_some_images_are_not_moved_at_all() -> None:
    marks = spot(0.2, 0.1).repeat(400, 1, 1, 1)
    moved = Augmentation.parse("rotate,shift,zoom,shear")(marks, chance())
    still = (moved == marks).flatten(1).all(1).float().mean()
    assert float(still) == pytest.approx(UNMOVED, abs=0.06)


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_drawn_moves_keep_their_limits(strength: float) -> None:
    count, degrees, share = 200, 15 * strength, 0.1 * strength
    marks = spot(0.3, 0).repeat(count, 1, 1, 1)
    x, y = centre(Augmentation.parse("rotate=15", strength)(marks, chance()))
    angles = torch.rad2deg(torch.atan2(y, x))
    assert angles.abs().max() <= degrees + 0.3
    assert angles.min() < -0.8 * degrees
    assert angles.max() > 0.8 * degrees
    assert 0.2 * count < (angles.abs() < 1e-3).sum() < 0.45 * count  # one in five is not turned, and some not moved
    x, y = centre(Augmentation.parse("shift=0.1", strength)(spot(0, 0).repeat(count, 1, 1, 1), chance()))
    for moved in (x, y):
        assert moved.abs().max() <= share + 1e-3
        assert moved.min() < -0.8 * share
        assert moved.max() > 0.8 * share
    x, _ = centre(Augmentation.parse("zoom=0.2", strength)(marks, chance()))
    zooms = x / centre(marks)[0]
    assert 1 / (1 + 0.2 * strength) - 0.01 <= zooms.min() < 0.95
    assert 1.05 < zooms.max() <= 1 + 0.2 * strength + 0.01
    leaning = spot(0, 0.3).repeat(count, 1, 1, 1)
    x, y = centre(Augmentation.parse("aspect=0.3", strength)(spot(0.2, 0.2).repeat(count, 1, 1, 1), chance()))
    torch.testing.assert_close(x * y, torch.full_like(x, 0.04), atol=1e-3, rtol=0)
    assert (x / y).max() <= 1 + 0.3 * strength + 0.01
    assert (x / y).min() >= 1 / (1 + 0.3 * strength) - 0.01
    x, y = centre(Augmentation.parse("shear=10", strength)(leaning, chance()))
    assert torch.rad2deg(torch.atan(x / y)).abs().max() <= 10 * strength + 0.3
    assert x.min() < -0.005
    assert x.max() > 0.005


def test_tones_do_what_they_say() -> None:
    images = scans(3)
    still = torch.ones(3)
    brighter = transforms.adjust_tone(images.clone(), still, still, torch.tensor([0.1, -0.1, 0.0]))
    moved = (brighter - images).mean((1, 2, 3))
    torch.testing.assert_close(moved, torch.tensor([0.1, -0.1, 0.0]), atol=1e-6, rtol=0)
    flatter = transforms.adjust_tone(images.clone(), still, torch.tensor([0.5, 1.2, 1.0]), torch.zeros(3))
    torch.testing.assert_close(flatter.std((1, 2, 3)) / images.std((1, 2, 3)), torch.tensor([0.5, 1.2, 1.0]))
    torch.testing.assert_close(flatter.mean((1, 2, 3)), images.mean((1, 2, 3)))
    torch.testing.assert_close(transforms.adjust_tone(images.clone(), still * 2, still, torch.zeros(3)), images**2)


@pytest.mark.parametrize(
    ("text", "low", "high"),
    [("brightness=0.1", -0.1, 0.1), ("contrast=0.25", 0.75, 1.25), ("gamma=0.3", 1 / 1.3, 1.3)],
)
def test_drawn_tones_keep_their_limits(text: str, low: float, high: float) -> None:
    images = scans(1).repeat(200, 1, 1, 1)
    after = Augmentation.parse(text)(images, chance())
    found = {
        "brightness": (after - images).mean((1, 2, 3)),
        "contrast": after.std((1, 2, 3)) / images.std((1, 2, 3)),
        "gamma": (after.log() / images.log()).mean((1, 2, 3)),
    }[text.partition("=")[0]]
    width = high - low
    assert low - 1e-4 <= found.min() < low + 0.1 * width
    assert high - 0.1 * width < found.max() <= high + 1e-4


def test_curves_rise_from_black_to_white_by_their_slopes() -> None:
    ramp = torch.linspace(0, 1, 61).repeat(3, 1, 1, 1)
    slopes = torch.zeros(3, transforms.STEPS)
    slopes[1, 0], slopes[2, 5] = math.log(2), -1.0
    straight, steep, flat = transforms.bend_tones(ramp.clone(), slopes)
    torch.testing.assert_close(straight, ramp[0])
    torch.testing.assert_close(steep[0, 0, 10], torch.tensor(2 / 7))  # a sixth of the grays, and twice as steep
    assert flat[0, 0, 50] > 5 / 6
    drawn = Augmentation.parse("curve=2")(
        torch.linspace(0, 1, 64 * 64).view(1, 1, 64, 64).repeat(50, 1, 1, 1), chance()
    )
    rising = drawn.flatten(1)
    assert (rising.diff(dim=1) >= 0).all()
    assert (rising[:, 0].abs() < 1e-6).all()
    assert (rising[:, -1] > 1 - 1e-6).all()
    moved = (rising - torch.linspace(0, 1, 64 * 64)).abs().amax(1)
    assert 5 <= (moved == 0).sum() <= 20  # one in five is left alone
    assert moved.max() > 0.2


def test_coarse_images_lose_what_is_fine_and_keep_what_is_not() -> None:
    images = scans(1, side=96).repeat(300, 1, 1, 1)
    after = Augmentation.parse("coarse=0.8")(images, chance())
    grain = (after[..., 1:] - after[..., :-1]).abs().mean((1, 2, 3))
    changed = (after != images).flatten(1).any(1)
    assert 0.5 < changed.float().mean() < 0.7
    assert len(set(grain[changed].tolist())) == 6  # the sizes that there are
    assert (grain[changed] < grain[~changed].min()).all()
    assert (after - images).mean((1, 2, 3)).abs().max() < 0.005
    mean = torch.nn.functional.avg_pool2d(after - images, 32)
    assert mean.abs().max() < 0.03


def test_sharpened_images_have_the_same_edges_only_higher() -> None:
    flat, edge = torch.full((1, 1, 32, 32), 0.5), torch.full((1, 1, 32, 32), 0.4)
    edge[..., 16:] = 0.6
    once, twice, still = transforms.sharpen(torch.cat([edge, edge, flat]), torch.tensor([0.5, 1.0, 2.0]))
    torch.testing.assert_close(still, flat[0])
    for after, height in ((once, 0.2), (twice, 0.2)):
        torch.testing.assert_close(after[..., :8], edge[0, ..., :8])
        assert float(after[0, 0, 16] - after[0, 0, 15]) > height
    assert float(twice.max()) - 0.6 == pytest.approx(2 * (float(once.max()) - 0.6), rel=1e-4)


def test_blur_takes_grain_and_keeps_the_mean() -> None:
    images = torch.rand(4, 3, 48, 48, generator=chance(2))
    soft = transforms.blur(images, torch.tensor([0.5, 1.0, 2.0, 1e-6]), radius=4)
    grain = (soft[..., 1:] - soft[..., :-1]).abs().mean((1, 2, 3))
    assert grain[3] > grain[0] > grain[1] > grain[2] > 0
    torch.testing.assert_close(soft[3], images[3])
    assert (soft.mean((1, 2, 3)) - images.mean((1, 2, 3))).abs().max() < 0.01
    point = torch.zeros(1, 1, 21, 21)
    point[..., 10, 10] = 1
    spread = transforms.blur(point, torch.tensor([1.5]), radius=6)[0, 0]
    across = torch.arange(21) - 10.0
    assert float((spread.sum(0) * across**2).sum()) == pytest.approx(1.5**2, rel=0.01)
    torch.testing.assert_close(spread, spread.T)
    assert transforms.blur(torch.rand(2, 1, 5, 5), torch.tensor([1.0, 2.0]), radius=8).shape == (2, 1, 5, 5)


def test_noise_has_its_level_and_is_the_same_in_all_channels() -> None:
    images = torch.full((200, 3, 32, 32), 0.5)
    noise = Augmentation.parse("noise=0.05")(images, chance()) - images
    levels = noise.std((1, 2, 3))
    assert 0.045 < levels.max() < 0.055
    assert 0.6 * 200 < (levels == 0).sum() < 0.8 * 200
    assert torch.equal(noise[:, 0], noise[:, 2])
    assert noise.mean().abs() < 1e-3


@pytest.mark.parametrize("name", ["erase", "griddrop"])
def test_covering_leaves_the_rest_untouched(name: str) -> None:
    images = scans(200, side=48, channels=3)
    after = Augmentation.parse(f"{name}=0.3")(images, chance())
    changed = (after != images).any(1)
    shares = changed.float().mean((1, 2))
    few = {"erase": 0.5, "griddrop": 0.7}[name]
    assert (few - 0.15) * 200 < (shares == 0).sum() < (few + 0.15) * 200
    assert 0.2 < shares.max() < {"erase": 0.35, "griddrop": 0.45}[name]  # whole pixels, whole squares
    filled = after.movedim(1, -1)[changed]
    means = images.mean((2, 3))[:, None, None, :].expand(-1, 48, 48, -1)[changed]
    assert torch.equal(filled, means)


def test_a_hidden_frame_leaves_the_middle_untouched() -> None:
    images = scans(200)
    after = Augmentation.parse("border=0.25")(images, chance())
    changed = (after != images)[:, 0]
    assert not changed[:, 16:48, 16:48].any()
    assert 0.5 < changed.flatten(1).any(1).float().mean() < 0.7
    widths = changed[:, 32].float().sum(1)
    assert len(widths.unique(sorted=False)) > 10  # type: ignore[no-untyped-call]
    for edge in (changed[:, 0, :], changed[:, -1, :], changed[:, :, 0], changed[:, :, -1]):
        assert 0.4 < edge.all(1).float().mean() < 0.7  # a little less often than a frame: some are too thin
    above, rest = transforms.erase_border(
        images[:2].clone(), torch.tensor([0.5, 0.0]), torch.tensor([[1.0, 0, 0, 0]] * 2)
    )
    torch.testing.assert_close(above[:, :32], images[0].mean().expand(1, 32, 64))
    assert torch.equal(above[:, 32:], images[0, :, 32:])
    assert torch.equal(rest, images[1])


def test_an_erased_patch_is_a_rectangle() -> None:
    draws = torch.zeros(1, 10)
    draws[0, 1], draws[0, 4], draws[0, 7] = 0.5, 0.5, 0.25  # one, as long as wide, half-way down, at a quarter
    gone = transforms.erase_rectangles(scans(1), torch.tensor([0.25]), draws) != scans(1)
    rows, columns = gone[0, 0].any(1).nonzero()[:, 0], gone[0, 0].any(0).nonzero()[:, 0]
    assert (int(rows.min()), int(rows.max())) == (16, 47)
    assert (int(columns.min()), int(columns.max())) == (8, 39)
    assert gone.sum() == 32 * 32


def test_local_equalisation_raises_local_contrast_and_keeps_order_and_range() -> None:
    images = scans(4, side=96) * 0.4 + 0.3
    after = transforms.equalise(images.clone(), torch.ones(4))
    assert after.min() >= 0
    assert after.max() <= 1

    def local(batch: Tensor) -> Tensor:
        return batch.unfold(2, 12, 12).unfold(3, 12, 12).std((-1, -2)).mean((1, 2, 3))

    assert (local(after) > 1.5 * local(images)).all()
    # At the middle of a tile its table alone decides: a brighter pixel there stays at least as bright.
    one_tile = torch.rand(1, 1, 16, 16, generator=chance(3))
    before, mapped = one_tile.flatten(), transforms.equalise(one_tile.clone(), torch.ones(1)).flatten()
    assert (mapped[before.argsort()].diff() >= -1e-6).all()
    half = transforms.equalise(images.clone(), torch.full((4,), 0.5))
    torch.testing.assert_close(half, (images + after) / 2, atol=1e-5, rtol=0)
    assert torch.equal(transforms.equalise(images.clone(), torch.zeros(4)), images)


def test_local_equalisation_of_a_flat_image_makes_no_grain_and_colours_keep_their_hue() -> None:
    flat = transforms.equalise(torch.full((1, 1, 64, 64), 0.4), torch.ones(1))
    assert flat.max() - flat.min() < 1 / 255  # tiles of 12 and of 13 pixels
    assert (flat - 0.4).abs().max() < 0.02
    colours = scans(1, channels=3) * 0.3
    after = transforms.equalise(colours.clone(), torch.ones(1))
    free = (after < 1).all(1, keepdim=True).expand_as(after)
    ratio = after / colours
    assert (ratio - ratio.mean(1, keepdim=True)).abs()[free].max() < 1e-4


def test_bending_moves_places_within_its_limit() -> None:
    marks = spot(0, 0).repeat(200, 1, 1, 1)
    x, y = centre(Augmentation.parse("elastic=0.05")(marks, chance()))
    assert 0.02 < x.abs().max() <= 0.055
    assert 0.02 < y.abs().max() <= 0.055
    lines = scans(1).repeat(200, 1, 1, 1)
    still = (Augmentation.parse("elastic")(lines, chance()) == lines).all(-1).all(-1).all(-1)
    assert 0.35 * 200 < still.sum() < 0.65 * 200


@pytest.mark.parametrize(("name", "axis"), [("hflip", 3), ("vflip", 2)])
def test_images_are_mirrored_only_when_asked(name: str, axis: int) -> None:
    images = scans(1).repeat(200, 1, 1, 1)
    after = Augmentation.parse(f"{name}=0.3", 2)(images, chance())
    mirrored = (after == images.flip(axis)).flatten(1).all(1)
    same = (after == images).flatten(1).all(1)
    assert (mirrored | same).all()
    assert 0.2 * 200 < mirrored.sum() < 0.4 * 200
    assert torch.equal(Augmentation.parse(f"{name}=1")(images, chance()), images.flip(axis))


def test_the_list_for_radiographs_keeps_left_left_and_up_up() -> None:
    assert set(PRESETS["radiograph"]).isdisjoint({"hflip", "vflip", "griddrop", "clahe", "elastic"})
    plan = Augmentation.parse("radiograph,erase=0", 1)
    for x, y in ((0.25, 0.0), (0.0, 0.25)):
        marks = plan(spot(x, y).repeat(200, 1, 1, 1), chance())
        brightest = marks.flatten(1).argmax(1)
        right, down = brightest % 65 - 32, brightest // 65 - 32
        assert ((right if x else down) > 0).all()


def test_the_list_for_scanners_moves_and_hides_nothing() -> None:
    marks = Augmentation.parse("scanners", 1)(spot(0.25, -0.25).repeat(200, 1, 1, 1), chance())
    brightest = marks.flatten(1).argmax(1)
    middle = torch.tensor([brightest.float().median() % 65, brightest.float().median() // 65])
    assert (middle - torch.tensor([48.0, 16.0])).abs().max() <= 1


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 3])
def test_the_same_state_gives_the_same_bytes_and_another_gives_others(channels: int) -> None:
    images = scans(9, channels=channels)
    kept = images.clone()
    plan = Augmentation.parse(EVERYTHING)
    first, again, other = (plan(images, chance(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert all(not torch.equal(one, two) for one, two in zip(first, other, strict=True))
    assert torch.equal(images, kept)  # the batch handed in is left as it is
    generator = chance(1)
    plan(images, generator)
    assert not torch.equal(plan(images, generator), first)
    alike = plan(images[:1].repeat(9, 1, 1, 1), chance())
    assert all(not torch.equal(alike[0], each) for each in alike[1:])


def test_the_state_of_the_process_plays_no_part() -> None:
    images, plan = scans(), Augmentation.parse(EVERYTHING)
    torch.manual_seed(1)
    first, state = plan(images, chance()), torch.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(plan(images, chance()), first)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("fill", [0.0, 1.0, 0.5])
@pytest.mark.parametrize("side", [16, 49])
def test_values_stay_in_range_at_any_strength(fill: float, side: int) -> None:
    flat = torch.full((24, 1, side, side), fill)
    for images in (flat, torch.rand(24, 1, side, side, generator=chance(4)).round()):
        after = Augmentation.parse(EVERYTHING, 3)(images, chance())
        assert after.dtype == torch.float32
        assert after.shape == images.shape
        assert torch.isfinite(after).all()
        assert after.min() >= 0
        assert after.max() <= 1


def test_bfloat16_around_it_does_not_reach_it() -> None:
    images, plan = scans(), Augmentation.parse(EVERYTHING)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = plan(images, chance())
    assert torch.equal(inside, plan(images, chance()))
    with pytest.raises(TypeError, match=r"images are torch.bfloat16; augmentation needs float32"):
        plan(images.bfloat16(), chance())


@pytest.mark.parametrize(("text", "strength"), [("none", 1.0), ("radiograph", 0.0), ("rotate=0", 1), ("hflip", 0)])
def test_nothing_is_nothing(text: str, strength: float) -> None:
    images, generator = scans(), chance()
    plan = Augmentation.parse(text, strength)
    assert plan(images, generator) is images
    assert torch.equal(generator.get_state(), chance().get_state())
    assert str(plan) == "none"
    assert plan.describe() == []


def test_lists_are_read_and_written() -> None:
    assert list(Augmentation.parse("radiograph").amounts) == [
        name for name in TRANSFORMS if name in PRESETS["radiograph"]
    ]
    assert Augmentation.parse(" rotate = 10 , erase ").amounts == {"rotate": 10, "erase": 0.2}
    assert Augmentation.parse("radiograph,rotate=5,hflip").amounts["rotate"] == 5
    assert "blur" not in Augmentation.parse("radiograph,blur=0").amounts
    halved = Augmentation.parse("erase=0.3,rotate,hflip=0.4", 0.5)
    assert halved.amounts == {"rotate": 7.5, "erase": 0.15, "hflip": 0.4}
    assert str(halved) == "rotate=7.5,erase=0.15,hflip=0.4"
    assert Augmentation.parse(str(halved)) == halved
    assert Augmentation.parse("erase=0.3", 3).amounts == {"erase": TRANSFORMS["erase"].limit}
    assert halved.describe() == [
        "rotated by up to 7.5°",
        "rectangles erased, up to 15 % of the area",
        "mirrored left to right with a probability of 40 %",
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rotaet", "no augmentation 'rotaet'; allowed are rotate, .* Did you mean 'rotate'"),
        ("rotate,none", "no augmentation 'none'; allowed are .*, or 'none' alone"),
        ("", "no augmentation ''; allowed are "),
        ("rotate,,erase", "no augmentation ''; allowed are "),
        ("radiograf", "Did you mean 'radiograph'"),
        ("radiograph=2", "The list 'radiograph' takes no amount. .*'radiograph,rotate=5'"),
        ("rotate=200", "rotate=200 has an amount of '200'; it must be a number from 0 to 180. The default is 15"),
        ("erase=-0.1", "erase=-0.1 has an amount of '-0.1'; it must be a number from 0 to 0.5"),
        ("noise=much", "noise=much has an amount of 'much'"),
        ("noise=nan", "noise=nan has an amount of 'nan'"),
        ("noise=", "noise= has an amount of 'nothing'"),
    ],
)
def test_what_is_wrong_in_a_list_is_said(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Augmentation.parse(text)
