"""Where the network is trained: a GPU or the processor."""

from __future__ import annotations

import os

import torch


def choose(asked: str) -> torch.device:
    """The device that was asked for (auto, cpu or cuda), ready for work that can be repeated to the bit."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it the GPU's sums may differ between runs
    there = torch.cuda.is_available()
    if asked == "cuda" and not there:
        build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
        raise RuntimeError(
            "Training was asked for on a GPU (device is 'cuda'), and this machine shows none to PyTorch (made for "
            f"{build}). Ask the cluster for one (accelerators in the cluster file), check the node's driver and device "
            "plug-in, or set device to auto or cpu."
        )
    return torch.device("cuda" if there and asked != "cpu" else "cpu")
