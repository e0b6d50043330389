"""The losses give what PyTorch's own give where it has them, and what their formulas say elsewhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from components.train.losses import MAX_CLASS_WEIGHT, Loss, mix_up
from components.train.sampling import draw_order, make_batches, sampling_weights

CHANCE = torch.Generator().manual_seed(0)
LOGITS = torch.randn(12, 3, generator=CHANCE)
LABELS = torch.tensor([0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 2, 2])
ONE_HOT = F.one_hot(LABELS, 3).float()
FINDINGS = (torch.rand(12, 3, generator=CHANCE) < 0.4).float()


def loss(task: str, targets: torch.Tensor, balance: str = "none", gamma: float = 0.0, smoothing: float = 0.0) -> Loss:
    return Loss.of(task, targets.numpy(), balance, gamma, smoothing)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_torchs(smoothing: float) -> None:
    ours = loss("classification", ONE_HOT, smoothing=smoothing)(LOGITS, ONE_HOT)
    torch.testing.assert_close(ours, F.cross_entropy(LOGITS, LABELS, label_smoothing=smoothing))


def test_balanced_cross_entropy_is_the_mean_over_classes() -> None:
    ours = loss("classification", ONE_HOT, "balanced")(LOGITS, ONE_HOT)
    each = F.cross_entropy(LOGITS, LABELS, reduction="none")
    torch.testing.assert_close(ours, torch.stack([each[label == LABELS].mean() for label in range(3)]).mean())


def test_smoothing_leaves_an_image_its_own_weight() -> None:
    balanced = loss("classification", ONE_HOT, "balanced", smoothing=0.1)
    each = F.cross_entropy(LOGITS, LABELS, reduction="none", label_smoothing=0.1)
    torch.testing.assert_close(balanced(LOGITS, ONE_HOT), (balanced.weights[LABELS] * each).mean())


@pytest.mark.parametrize("task", ["classification", "multilabel"])
def test_a_certain_answer_is_wanted_alike_for_rare_and_common(task: str) -> None:
    rare = torch.eye(2)[torch.tensor([1] + [0] * 19)]
    smooth = loss(task, rare, "balanced", smoothing=0.1)
    for image in torch.eye(2):
        best = (image * 0.9 + 0.05).logit() if task == "multilabel" else (image * 0.9 + 0.05).log()
        answer = best[None].requires_grad_()
        torch.autograd.backward(smooth(answer, image[None]))
        torch.testing.assert_close(answer.grad, torch.zeros(1, 2), atol=1e-6, rtol=0)  # nothing else would be better


def test_no_class_weighs_without_limit() -> None:
    rare = torch.zeros(10_000, 2)
    rare[:, 0] = 1
    rare[0] = torch.tensor([0.0, 1.0])
    assert loss("classification", rare, "balanced").weights.tolist() == pytest.approx([0.5, MAX_CLASS_WEIGHT], abs=1e-3)
    assert loss("multilabel", rare, "balanced").weights.tolist() == pytest.approx(
        [1 / MAX_CLASS_WEIGHT, MAX_CLASS_WEIGHT]
    )


def test_focal_loss_is_its_formula() -> None:
    ours = loss("classification", ONE_HOT, gamma=2)(LOGITS, ONE_HOT)
    right = LOGITS.softmax(1)[range(12), LABELS]
    torch.testing.assert_close(ours, (-((1 - right) ** 2) * right.log()).mean())


def test_findings_have_the_binary_loss_each() -> None:
    ours = loss("multilabel", FINDINGS)(LOGITS, FINDINGS)
    torch.testing.assert_close(ours, F.binary_cross_entropy_with_logits(LOGITS, FINDINGS))
    balanced = loss("multilabel", FINDINGS, "balanced")
    shares = FINDINGS.mean(0)
    torch.testing.assert_close(balanced.weights, (1 - shares) / shares)
    theirs = F.binary_cross_entropy_with_logits(LOGITS, FINDINGS, pos_weight=balanced.weights)
    torch.testing.assert_close(balanced(LOGITS, FINDINGS), theirs)
    smooth = loss("multilabel", FINDINGS, smoothing=0.2)(LOGITS, FINDINGS)
    torch.testing.assert_close(smooth, F.binary_cross_entropy_with_logits(LOGITS, FINDINGS * 0.8 + 0.1))


def test_focal_loss_of_findings_is_its_formula() -> None:
    ours = loss("multilabel", FINDINGS, gamma=1.5)(LOGITS, FINDINGS)
    chance = LOGITS.sigmoid()
    right = torch.where(FINDINGS > 0, chance, 1 - chance)
    torch.testing.assert_close(ours, (-((1 - right) ** 1.5) * right.log()).mean())


def test_mixing_mixes_images_and_targets_alike() -> None:
    images = torch.arange(4.0)[:, None, None, None].expand(4, 1, 2, 2)
    laid, targets = mix_up(images, torch.eye(4), 0.75)
    assert laid[:, 0, 0, 0].tolist() == [0.75, 0.75, 1.75, 2.75]
    assert targets[1].tolist() == [0.25, 0.75, 0, 0]


def test_drawing_by_weights_gives_each_class_as_often() -> None:
    targets = np.zeros((10_000, 2), np.float32)
    targets[:, 0] = 1
    targets[:500] = [0, 1]
    places = draw_order(10_000, 1, 1, sampling_weights(targets))
    assert targets[places].mean(axis=0)[1] == pytest.approx(0.5, abs=0.02)
    assert sorted(draw_order(50, 1, 1)) == list(range(50))
    assert list(draw_order(50, 1, 1)) != list(draw_order(50, 1, 2))


@pytest.mark.parametrize(("count", "sizes"), [(8, [4, 4]), (9, [3, 3, 3]), (10, [4, 3, 3]), (1, [1]), (3, [3])])
def test_batches_are_alike_in_size(count: int, sizes: list[int]) -> None:
    assert [len(batch) for batch in make_batches(np.arange(count), 4)] == sizes


def test_no_batch_but_the_only_one_is_a_single_image() -> None:
    assert [len(batch) for batch in make_batches(np.arange(5), 2)] == [3, 2]
    assert [len(batch) for batch in make_batches(np.arange(1), 2)] == [1]
