"""Error message for a network and images that do not fit into memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from components.shared.errors import UnavailableError

MESSAGES = ("allocate memory", "out of memory", "STATUS_ALLOC_FAILED")
"""Fragments of the messages of errors that PyTorch and its libraries raise without a class of their own."""


@contextmanager
def explain_out_of_memory(
    device: torch.device, architecture: str, size: int, batch: int, accumulate: int
) -> Iterator[None]:
    """Convert out-of-memory errors to an error with the parameters to change."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        recognised = any(text in str(error) for text in MESSAGES)
        if not (recognised or isinstance(error, torch.OutOfMemoryError | MemoryError)):
            raise
        where = "this machine's memory"
        if device.type == "cuda":
            where = f"the GPU's {torch.cuda.get_device_properties(device).total_memory / 2**30:.0f} GiB"
        smaller = f"Set batch_size to {batch // 2} and train_options.accumulate to {accumulate * 2} (nearly the same), "
        raise UnavailableError(
            f"A batch of {batch} images of {size}×{size} pixels does not fit into {where} with {architecture}. "
            f"{smaller + 'l' if batch >= 4 else 'L'}ower image_size, or set train_options.precision to bf16."
        ) from None
