"""The parameters of train."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Any

from components.shared.contracts import Between, OneOf

UNRECORDED = ("device", "draw_images", "compiled", "threads", "checkpoint_seconds")
"""Parameters that a model's bundle does not record: where and how fast it was trained, and pictures of it."""


@dataclass(frozen=True)
class TrainParameters:
    """How a network is built and trained."""

    architecture: str = "small"
    """the network's name: small, resnet18, resnet50, efficientnet_b0, efficientnet_b4, densenet121, vit or
    convnext_tiny"""
    image_size: Annotated[int, Between(48, 1024)] = 96
    """side of the square the network sees, in pixels"""
    epochs: Annotated[int, Between(1, 1000)] = 24
    """passes over the training images"""
    batch_size: Annotated[int, Between(2, 4096)] = 16
    """images a step"""
    learning_rate: Annotated[float, Between(1e-7, 1)] = 2e-3
    """the highest rate, from which it falls in half a cosine wave"""
    device: Annotated[str, OneOf(("auto", "cpu", "cuda"))] = "auto"
    """a GPU where there is one, the processor, or a GPU and nothing else"""
    weights: str = ""
    """the digest of weights in the store to begin with, as resolve gives it; nothing begins at random"""
    channels: Annotated[int, Between(1, 3)] = 1
    """gray images are given to the network this many times; colour images need 3"""
    fit: Annotated[str, OneOf(("pad", "stretch"))] = "pad"
    """how an image becomes square: padded, or stretched"""
    crop: Annotated[float, Between(0, 0.4)] = 0.0
    """share of the height and width cut off on each side before that; marks and shutters lie there"""
    shades: Annotated[str, OneOf(("given", "local"))] = "given"
    """gray values as they are given, or local: each against those around it, so that exposure tells nothing"""
    hidden: Annotated[int, Between(1, 4096)] = 512
    """width of the layer between features and classes"""
    dropout: Annotated[float, Between(0, 0.9)] = 0.2
    """share of the head's inputs that are left out at random"""
    augment: Annotated[float, Between(0, 3)] = 1.0
    """how strongly training images are varied; 0 is not at all"""
    augmentations: str = "radiograph"
    """how: names with commas between, such as "radiograph,blur=0"; hflip and vflip are unsafe for most body parts,
    whose sides differ"""
    draw_images: bool = True
    """whether a sheet of a few training images, as they are and as they were varied, goes into the bundle, the
    report, TensorBoard and MLflow"""
    mixup: Annotated[float, Between(0, 2)] = 0.0
    """how much images are laid over one another; 0 is not at all"""
    loss: Annotated[str, OneOf(("cross_entropy", "focal"))] = "cross_entropy"
    """cross entropy, or focal loss, in which images that are already right count less"""
    focal_gamma: Annotated[float, Between(0, 10)] = 2.0
    """how much less"""
    label_smoothing: Annotated[float, Between(0, 0.5)] = 0.0
    """share of certainty taken from the labels"""
    class_weights: Annotated[str, OneOf(("balanced", "none"))] = "balanced"
    """whether rare classes weigh more in the loss"""
    sampling: Annotated[str, OneOf(("each_once", "balanced"))] = "each_once"
    """whether each image comes once an epoch, or rare classes come as often as the others"""
    weight_decay: Annotated[float, Between(0, 1)] = 2e-2
    """AdamW's pull of the weights towards zero; norms and biases are left alone"""
    warmup: Annotated[float, Between(0, 0.9)] = 0.25
    """share of the steps in which the rate rises"""
    clip: Annotated[float, Between(0, 1000)] = 5.0
    """the longest step of the gradient; 0 is any"""
    accumulate: Annotated[int, Between(1, 1024)] = 1
    """batches that are added up for one move of the weights"""
    average: Annotated[float, Between(0, 0.99999)] = 0.0
    """how slowly an average follows the weights, which is judged and kept in their place; 0 is no average"""
    frozen_epochs: Annotated[int, Between(0, 1000)] = 0
    """epochs in which only the head learns"""
    unfreezing: Annotated[str, OneOf(("at_once", "gradual"))] = "gradual"
    """whether the body's stages then join one an epoch, from the last, or all at once"""
    backbone_rate: Annotated[float, Between(0, 1)] = 1.0
    """the body's share of the learning rate"""
    patience: Annotated[int, Between(0, 1000)] = 0
    """epochs without a better one after which training ends; 0 goes to the end"""
    keep: Annotated[str, OneOf(("best", "last"))] = "best"
    """the weights of the epoch that did best on validation, or of the last"""
    precision: Annotated[str, OneOf(("auto", "float32", "bf16", "fp16"))] = "auto"
    """of the arithmetic; auto is bf16 on a GPU that has it, and float32 elsewhere"""
    compiled: Annotated[str, OneOf(("auto", "yes", "no"))] = "auto"
    """whether PyTorch compiles the network first; auto does where a GPU gains by it"""
    threads: Annotated[int, Between(0, 256)] = 0
    """CPU threads; 0 uses every CPU that affinity and quota allow"""
    checkpoint_seconds: Annotated[float, Between(0, 86400)] = 0.0
    """how often the state is kept; 0 is as often as costs a fiftieth of the time"""
    seed: Annotated[int, Between(0, 2147483647)] = 7
    """of the first weights, the order of images and their variation"""

    def recorded(self) -> dict[str, Any]:
        """Return the parameters that a model's bundle records."""
        return {name: value for name, value in asdict(self).items() if name not in UNRECORDED}
