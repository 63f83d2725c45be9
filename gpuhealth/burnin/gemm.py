"""Matrix products (GEMM) in every number format that a device may support."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gpuhealth.burnin.device import Device


@dataclass(frozen=True)
class GemmFormat:
    """The number formats of operands, accumulator and output of a product."""

    name: str
    left: torch.dtype
    right: torch.dtype
    output: torch.dtype
    significand: int
    """Bits of an operand's significand with the implied one (int8: without the sign). Every integer of magnitude up to
    2**significand is exact, except the positive end for int8."""
    sum_bits: int
    """The accumulator holds every integer of magnitude up to 2**sum_bits, also while it aligns the terms."""
    multiple_of: int = 1  # sizes that the library accepts
    processor_size: int = 2048  # matrix size on a processor, which lacks fast kernels for some formats

    @property
    def output_bits(self) -> int:
        """The output holds every integer of magnitude up to 2**output_bits exactly."""
        return 31 if self.output is torch.int32 else 1 - round(math.log2(torch.finfo(self.output).eps))


# Sums of fp16, bf16 and TF32 products: the terms are aligned to the largest and truncated, to no fewer than 24 bits
# (Fasi, Higham, Mikaitis, Pranesh: Numerical behavior of NVIDIA tensor cores, PeerJ Computer Science 7:e330, 2021).
# FP8: Hopper keeps about 14 bits (DeepSeek-V3 Technical Report, arXiv 2412.19437, section 3.3.2): 13 here, so that the
# largest partial sum and the unit both fit.
FORMATS = (
    GemmFormat("fp64", torch.float64, torch.float64, torch.float64, 53, 53, processor_size=1024),
    GemmFormat("fp32", torch.float32, torch.float32, torch.float32, 24, 24),
    GemmFormat("tf32", torch.float32, torch.float32, torch.float32, 11, 24),
    GemmFormat("fp16", torch.float16, torch.float16, torch.float16, 11, 24, processor_size=256),
    GemmFormat("bf16", torch.bfloat16, torch.bfloat16, torch.bfloat16, 8, 24),
    GemmFormat("int8", torch.int8, torch.int8, torch.int32, 7, 31, multiple_of=16),
    GemmFormat("fp8_e4m3", torch.float8_e4m3fn, torch.float8_e4m3fn, torch.bfloat16, 4, 13, 16, processor_size=64),
    GemmFormat("fp8_e5m2", torch.float8_e5m2, torch.float8_e4m3fn, torch.bfloat16, 3, 13, 16, processor_size=64),
)


@dataclass(frozen=True)
class GemmShape:
    """The sizes of a product: an m by k matrix times a k by n matrix."""

    m: int
    k: int
    n: int

    def __str__(self) -> str:
        return f"{self.m}x{self.k}x{self.n}"


def multiply(fmt: GemmFormat, left: Tensor, right: Tensor) -> Tensor:
    """The m by n product as the device's library computes it; `right` must have the layout of `by_columns`."""
    if fmt.name == "int8":
        return torch._int_mm(left, right)  # noqa: SLF001 - torch has no public name for it
    if fmt.name.startswith("fp8"):
        one = torch.ones((), device=left.device)
        return torch._scaled_mm(left, right, one, one, out_dtype=fmt.output)  # noqa: SLF001 - nor for this
    torch.backends.cuda.matmul.allow_tf32 = fmt.name == "tf32"  # torch >= 2.9 prefers fp32_precision, and accepts both
    return left @ right


def by_columns(fmt: GemmFormat, right: Tensor) -> Tensor:
    """`right` in the layout that the product needs: an FP8 product requires a right matrix stored by columns."""
    return right.t().contiguous().t() if fmt.name.startswith("fp8") else right


def unavailable_reason(fmt: GemmFormat, device: Device) -> str:
    """Why the device cannot multiply in this format; empty if it can. Found out by trying, not from its name."""
    try:
        left = torch.zeros(32, 32, device=device.torch).to(fmt.left)
        right = by_columns(fmt, torch.zeros(32, 32, device=device.torch).to(fmt.right))
        multiply(fmt, left, right)
        device.synchronize()
    except (RuntimeError, NotImplementedError, ValueError, AttributeError) as error:  # as torch's versions differ
        return str(error).splitlines()[0]
    return ""
