"""The parameters of train."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Any

from components.shared.contracts import Between, OneOf

UNRECORDED = ("device", "draw_images", "compiled", "threads", "checkpoint_seconds")
"""Parameters that a model's bundle does not record: they concern hardware, speed and pictures."""


@dataclass(frozen=True)
class TrainParameters:
    """How a network is built and trained."""

    architecture: str = "small"
    """network architecture"""
    image_size: Annotated[int, Between(48, 1024)] = 96
    """height and width of the network's input, in pixels"""
    epochs: Annotated[int, Between(1, 1000)] = 24
    """passes over the training images"""
    batch_size: Annotated[int, Between(2, 4096)] = 16
    """images per training step"""
    learning_rate: Annotated[float, Between(1e-7, 1)] = 2e-3
    """peak learning rate, reached after the warm-up and followed by cosine decay"""
    device: Annotated[str, OneOf(("auto", "cpu", "cuda"))] = "auto"
    """device: auto uses a GPU if there is one, cuda requires one"""
    weights: str = ""
    """digest of the initial weights in the store, from resolve; if empty, weights are random"""
    channels: Annotated[int, Between(1, 3)] = 1
    """input channels of the network; gray images are repeated, colour images need 3"""
    fit: Annotated[str, OneOf(("pad", "stretch"))] = "pad"
    """how images are made square: padded or stretched"""
    crop: Annotated[float, Between(0, 0.4)] = 0.0
    """share of the height and width to cut off on each side first, to remove markers and shutters"""
    shades: Annotated[str, OneOf(("given", "local"))] = "given"
    """gray values: as given, or local, which normalises each by its surroundings to hide differences in exposure"""
    hidden: Annotated[int, Between(1, 4096)] = 512
    """width of the hidden layer in the head"""
    dropout: Annotated[float, Between(0, 0.9)] = 0.2
    """dropout rate in the head"""
    augment: Annotated[float, Between(0, 3)] = 1.0
    """augmentation strength; 0 disables augmentation"""
    augmentations: str = "radiograph"
    """augmentations: names separated by commas, such as "radiograph,blur=0"; hflip and vflip are unsafe for most
    body parts, because left and right differ"""
    draw_images: bool = True
    """whether to show a few training images, original and augmented, in the bundle, the report, TensorBoard and
    MLflow"""
    mixup: Annotated[float, Between(0, 2)] = 0.0
    """mixup strength (alpha); 0 disables mixup"""
    loss: Annotated[str, OneOf(("cross_entropy", "focal"))] = "cross_entropy"
    """loss function: cross entropy, or focal loss, which gives less weight to images that are already right"""
    focal_gamma: Annotated[float, Between(0, 10)] = 2.0
    """gamma of the focal loss"""
    label_smoothing: Annotated[float, Between(0, 0.5)] = 0.0
    """label smoothing"""
    class_weights: Annotated[str, OneOf(("balanced", "none"))] = "balanced"
    """class weights in the loss; balanced gives rare classes more weight"""
    sampling: Annotated[str, OneOf(("each_once", "balanced"))] = "each_once"
    """sampling of training images: each once per epoch, or all classes equally often"""
    weight_decay: Annotated[float, Between(0, 1)] = 2e-2
    """weight decay of AdamW; not applied to norms and biases"""
    warmup: Annotated[float, Between(0, 0.9)] = 0.25
    """share of the steps in which the learning rate rises"""
    clip: Annotated[float, Between(0, 1000)] = 5.0
    """maximum gradient norm; 0 disables clipping"""
    accumulate: Annotated[int, Between(1, 1024)] = 1
    """batches per optimizer step (gradient accumulation)"""
    average: Annotated[float, Between(0, 0.99999)] = 0.0
    """decay of the moving average of the weights, which is validated and saved instead of them; 0 disables it"""
    frozen_epochs: Annotated[int, Between(0, 1000)] = 0
    """epochs in which only the head is trained"""
    unfreezing: Annotated[str, OneOf(("at_once", "gradual"))] = "gradual"
    """how the body is unfrozen after that: one stage per epoch, the last first, or all at once"""
    backbone_rate: Annotated[float, Between(0, 1)] = 1.0
    """learning rate of the body, as a share of learning_rate"""
    patience: Annotated[int, Between(0, 1000)] = 0
    """epochs without improvement after which training stops; 0 disables early stopping"""
    keep: Annotated[str, OneOf(("best", "last"))] = "best"
    """epoch whose weights are saved: the best on validation, or the last"""
    precision: Annotated[str, OneOf(("auto", "float32", "bf16", "fp16"))] = "auto"
    """arithmetic precision; auto is bf16 on a GPU that supports it, and float32 otherwise"""
    compiled: Annotated[str, OneOf(("auto", "yes", "no"))] = "auto"
    """whether to compile the network with PyTorch; auto does so if it pays off on a GPU"""
    threads: Annotated[int, Between(0, 256)] = 0
    """CPU threads; 0 uses all CPUs that affinity and quota allow"""
    checkpoint_seconds: Annotated[float, Between(0, 86400)] = 0.0
    """seconds between checkpoints; 0 saves as often as takes a fiftieth of the time"""
    seed: Annotated[int, Between(0, 2147483647)] = 7
    """random seed of the initial weights, the order of images and augmentation"""

    def recorded(self) -> dict[str, Any]:
        """Return the parameters that a model's bundle records."""
        return {name: value for name, value in asdict(self).items() if name not in UNRECORDED}
