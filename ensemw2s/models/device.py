"""Which device runs a model, in which number format, on how many threads."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ensemw2s.errors import ModelError, ResourceError

if TYPE_CHECKING:
    import torch

#: First CUDA compute capability with bfloat16 matrix units (Ampere).
BF16_CAPABILITY = (8, 0)

_DTYPES = ("float32", "bfloat16", "float16")


def pick_device(device: str = "auto") -> str:
    """``"cuda"`` or ``"cpu"``; auto takes a GPU where torch sees one.

    Raises:
        ResourceError: ``cuda`` is asked for and torch sees none.
        ValueError: the name is none of auto, cpu, cuda.
    """
    import torch

    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device {device!r} is not one of auto, cpu, cuda")
    if device == "cpu":
        return "cpu"
    if torch.cuda.is_available():
        return "cuda"
    if device == "auto":
        return "cpu"
    if torch.version.cuda is None:
        reason = f"torch {torch.__version__} is a build without CUDA: install a CUDA build"
    else:
        reason = "torch sees no GPU: check nvidia-smi and CUDA_VISIBLE_DEVICES"
    raise ResourceError(f"device cuda is asked for, but {reason}, or set runtime.device to auto or cpu")


def resolve_dtype(dtype: str, device: str) -> torch.dtype:
    """The torch dtype behind a configured name.

    Args:
        dtype: auto, float32, bfloat16 or float16. auto is bfloat16 on a CUDA device of compute capability 8.0
            or later, else float32 (bfloat16 is slow on processors without matrix units for it).
        device: ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        ModelError: the name is none of these.
    """
    import torch

    if dtype == "auto":
        fast = device.startswith("cuda") and torch.cuda.get_device_capability(device) >= BF16_CAPABILITY
        return torch.bfloat16 if fast else torch.float32
    if dtype not in _DTYPES:
        raise ModelError(f"dtype {dtype!r} is not one of auto, {', '.join(_DTYPES)}")
    resolved: torch.dtype = getattr(torch, dtype)
    return resolved


def kind_of_device(device: str) -> str:
    """What decides the dtype that auto stands for: cpu, cuda, or that a GPU has no bfloat16."""
    import torch

    kind = device.partition(":")[0]
    return (
        f"{kind} without bfloat16"
        if kind == "cuda" and resolve_dtype("auto", device) != torch.bfloat16
        else kind
    )


def set_threads(n: int) -> int:
    """Set the threads of one torch operation to n, and return n.

    The number is worth recording: it decides how float sums are split, so results agree to the last bit only
    between processes that use the same number.
    """
    import torch

    if n < 1:
        raise ValueError(f"the number of threads is {n}, at least 1 is needed")
    torch.set_num_threads(n)
    return n


@contextmanager
def trainable_attention() -> Iterator[None]:
    """Attention whose gradients can be trusted: cuDNN's is left out, which torch 2.11 and later take first on Hopper GPUs.

    Its backward pass gives NaN where a mask is given, the padded length is 64 beyond a multiple of 128 and a row's scores are very
    small (pytorch/pytorch issue 196678); pretrained models have such heads, so that a training failed after a few dozen steps.
    """
    import torch

    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def describe_device(device: str) -> str:
    """The device in words, for tables of costs: a GPU's name, or the processor's and the threads used."""
    import torch

    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{_processor_name()}, {threads} thread{'s' if threads > 1 else ''}"


def _processor_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name" and value.strip():
                return value.strip()
    return platform.processor() or platform.machine() or "CPU"
