"""What to do when a network and its images do not fit into memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from components.shared.errors import UnavailableError

WORDS = ("allocate memory", "out of memory", "STATUS_ALLOC_FAILED")
"""What PyTorch and its libraries say of it where they raise no error of its own."""


@contextmanager
def careful(device: torch.device, architecture: str, size: int, batch: int, accumulate: int) -> Iterator[None]:
    """Turn a device's or the machine's want of memory into a sentence that says what to change."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not (isinstance(error, torch.OutOfMemoryError | MemoryError) or any(words in str(error) for words in WORDS)):
            raise
        where = "this machine's memory"
        if device.type == "cuda":
            where = f"the GPU's {torch.cuda.get_device_properties(device).total_memory / 2**30:.0f} GiB"
        halved = f"Set batch_size to {batch // 2} and train_options.accumulate to {accumulate * 2} (almost the same), "
        raise UnavailableError(
            f"{batch} images of {size} pixels a side at once are too much for {where} with {architecture}. "
            f"{halved + 'l' if batch >= 4 else 'L'}ower image_size, or set train_options.precision to bf16."
        ) from None
