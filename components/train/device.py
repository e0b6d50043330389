"""Where the network is trained: a GPU or the processor."""

from __future__ import annotations

import shutil

import torch

from components.shared import environment
from components.shared.errors import UnavailableError
from components.shared.runtime.threads import count_threads

CORES = torch.get_num_threads()
"""PyTorch's own default. It counts physical cores, since a second thread on a core does not pay."""
LONG = 2000
"""Steps from which the minute that compiling takes is won back on a GPU."""


def choose(asked: str) -> torch.device:
    """The device that was asked for (auto, cpu or cuda), ready for work that can be repeated to the bit."""
    environment.set_default("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it the GPU's sums may differ between runs
    there = torch.cuda.is_available()
    if asked == "cuda" and not there:
        build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
        raise UnavailableError(
            "Training was asked for on a GPU (device is 'cuda'), and this machine shows none to PyTorch (made for "
            f"{build}). Ask the cluster for one (accelerators in the cluster file), check the node's driver and device "
            "plug-in, or set device to auto or cpu."
        )
    device = torch.device("cuda" if there and asked != "cpu" else "cpu")
    # Some of a GPU's sums have no other form: there a warning's worth of difference is better than no training.
    torch.use_deterministic_algorithms(True, warn_only=device.type == "cuda")
    return device


def use_threads(asked: int) -> None:
    """Set how many CPU threads PyTorch uses; 0 is as many as this process may use.

    The number stays the same for a whole training: sums are split among the threads, so it changes their last digits.
    """
    torch.set_num_threads(asked or min(CORES, count_threads()))


def precision_on(device: torch.device, asked: str) -> str:
    """The arithmetic that was asked for: float32, bf16 or fp16; auto is bf16 where a GPU has it, float32 elsewhere."""
    if asked == "fp16" and device.type != "cuda":
        raise UnavailableError(
            "precision is fp16, and training is on the processor, where it gains nothing. Set train_options.precision "
            "to bf16 or auto, or device to cuda."
        )
    if asked == "auto":
        has = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return "bf16" if has else "float32"
    return asked


def compiles(asked: str, device: torch.device, steps: int) -> bool:
    """Whether the network is compiled before it learns; auto compiles for a GPU, a long course, and with a compiler."""
    if asked == "auto":
        return device.type == "cuda" and steps >= LONG and bool(shutil.which("cc") or shutil.which("gcc"))
    if asked == "yes" and not (shutil.which("c++") or shutil.which("g++")):
        raise UnavailableError(
            "compiled is yes, and no C++ compiler is here for PyTorch to use. Put one into the image of train, or set "
            "train_options.compiled to auto."
        )
    return asked == "yes"
