"""Matrix products in every number format that a device may have."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gpuhealth.burnin.device import Device


@dataclass(frozen=True)
class Format:
    """What a product is computed in."""

    name: str
    left: torch.dtype
    right: torch.dtype
    output: torch.dtype
    significand: int
    """Bits of an operand's significand with the implied one (int8: without the sign): every integer of magnitude up to
    2**significand is exact, for int8 the positive end excepted."""
    sum_bits: int
    """The accumulator holds every integer of magnitude up to 2**sum_bits, also while it aligns what it adds."""
    multiple_of: int = 1  # sizes that the library takes for it
    processor_size: int = 2048  # on a processor: some formats have no fast kernel there

    @property
    def output_bits(self) -> int:
        """The output holds every integer of magnitude up to 2**output_bits."""
        return 31 if self.output is torch.int32 else 1 - round(math.log2(torch.finfo(self.output).eps))


# Sums of fp16, bf16 and TF32 products: the terms are aligned to the largest and cut off, not below 24 bits (Fasi,
# Higham, Mikaitis, Pranesh: Numerical behavior of NVIDIA tensor cores, PeerJ Computer Science 7:e330, 2021). Of FP8: on
# Hopper about 14 bits are kept (DeepSeek-V3 Technical Report, arXiv 2412.19437, section 3.3.2): 13, so that the
# largest partial sum and the unit both fit.
FORMATS = (
    Format("fp64", torch.float64, torch.float64, torch.float64, 53, 53, processor_size=1024),
    Format("fp32", torch.float32, torch.float32, torch.float32, 24, 24),
    Format("tf32", torch.float32, torch.float32, torch.float32, 11, 24),
    Format("fp16", torch.float16, torch.float16, torch.float16, 11, 24, processor_size=256),
    Format("bf16", torch.bfloat16, torch.bfloat16, torch.bfloat16, 8, 24),
    Format("int8", torch.int8, torch.int8, torch.int32, 7, 31, multiple_of=16),
    Format("fp8_e4m3", torch.float8_e4m3fn, torch.float8_e4m3fn, torch.bfloat16, 4, 13, 16, processor_size=64),
    Format("fp8_e5m2", torch.float8_e5m2, torch.float8_e4m3fn, torch.bfloat16, 3, 13, 16, processor_size=64),
)


@dataclass(frozen=True)
class Shape:
    """Of a product: an m by k matrix times a k by n one."""

    m: int
    k: int
    n: int

    def __str__(self) -> str:
        return f"{self.m}x{self.k}x{self.n}"


def multiply(form: Format, left: Tensor, right: Tensor) -> Tensor:
    """The m by n product as the device's library computes it; `right` is laid out as `by_columns` says."""
    if form.name == "int8":
        return torch._int_mm(left, right)  # noqa: SLF001 - torch has no public name for it
    if form.name.startswith("fp8"):
        one = torch.ones((), device=left.device)
        return torch._scaled_mm(left, right, one, one, out_dtype=form.output)  # noqa: SLF001 - nor for this
    torch.backends.cuda.matmul.allow_tf32 = form.name == "tf32"  # torch >= 2.9 says fp32_precision, and takes both
    return left @ right


def by_columns(form: Format, right: Tensor) -> Tensor:
    """`right` in the layout that its product needs: FP8 is multiplied only by a matrix stored column by column."""
    return right.t().contiguous().t() if form.name.startswith("fp8") else right


def available(form: Format, device: Device) -> str:
    """Empty if the device multiplies in this format, else why not; found out by trying, not by its name."""
    try:
        left = torch.zeros(32, 32, device=device.torch).to(form.left)
        right = by_columns(form, torch.zeros(32, 32, device=device.torch).to(form.right))
        multiply(form, left, right)
        device.synchronize()
    except (RuntimeError, NotImplementedError, ValueError, AttributeError) as error:  # as torch's versions differ
        return str(error).splitlines()[0]
    return ""
