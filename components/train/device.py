"""Device, threads and arithmetic of a training."""

from __future__ import annotations

import shutil

import torch

from components.shared import environment
from components.shared.errors import UnavailableError
from components.shared.runtime.threads import count_threads

PHYSICAL_CORES = torch.get_num_threads()
"""PyTorch's default; a second thread on a core gains nothing."""
COMPILED_FROM_STEPS = 2000
"""Number of training steps on a GPU from which compiling, which takes a minute, pays off."""


def choose_device(requested: str) -> torch.device:
    """Return the requested device (auto, cpu or cuda), and set PyTorch up for reproducible results."""
    environment.set_default("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it, sums on a GPU can differ between runs
    available = torch.cuda.is_available()
    if requested == "cuda" and not available:
        build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
        raise UnavailableError(
            f"device is 'cuda', but PyTorch (built for {build}) finds no GPU on this machine. Request one from the "
            "cluster (accelerators in the cluster file), check the node's driver and device plug-in, or set device to "
            "auto or cpu."
        )
    device = torch.device("cuda" if available and requested != "cpu" else "cpu")
    # Some GPU operations have no deterministic form: a warning is better than no training.
    torch.use_deterministic_algorithms(True, warn_only=device.type == "cuda")
    return device


def use_threads(threads: int) -> None:
    """Set the number of PyTorch's CPU threads; 0 uses all that this process may use.

    It stays the same for a whole training: sums are split among the threads, so it changes their last digits.
    """
    torch.set_num_threads(threads or min(PHYSICAL_CORES, count_threads()))


def choose_precision(device: torch.device, requested: str) -> str:
    """Return the arithmetic: float32, bf16 or fp16; auto is bf16 on a GPU that supports it, otherwise float32."""
    if requested == "fp16" and device.type != "cuda":
        raise UnavailableError(
            "precision is fp16, which gains nothing on a CPU. Set train_options.precision to bf16 or auto, or device "
            "to cuda."
        )
    if requested == "auto":
        supported = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return "bf16" if supported else "float32"
    return requested


def should_compile(requested: str, device: torch.device, steps: int) -> bool:
    """Return whether to compile the network; auto compiles for a long training on a GPU if there is a compiler."""
    if requested == "auto":
        return (
            device.type == "cuda" and steps >= COMPILED_FROM_STEPS and bool(shutil.which("cc") or shutil.which("gcc"))
        )
    if requested == "yes" and not (shutil.which("c++") or shutil.which("g++")):
        raise UnavailableError(
            "compiled is yes, but PyTorch finds no C++ compiler. Add one to the image of train, or set "
            "train_options.compiled to auto."
        )
    return requested == "yes"
