"""Numbers that go through a LayerNorm and come out as they were, but for a factor that is known beforehand."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

CONSTANT = 2.0**15
"""Size of the constants beside the numbers: the largest power of two that a float16 holds."""

_SHARE = 2.0**-9
"""Length of the numbers beside that of the constants."""


@dataclass(frozen=True)
class Carrier:
    """A place for numbers among the dimensions of a LayerNorm.

    Number x_i stands in two dimensions, as x_i and -x_i. Of the dimensions that are left, half hold a constant c and
    half -c. So the mean over dimensions is zero, whatever the numbers are, and the standard deviation is that of the n
    constants times sqrt(1 + 2 |x|^2 / (n c^2)). [`gain`] makes |x| at most 2**-9 sqrt(n) c, so that the numbers come
    out times the [`factor`] of the constants alone, with a relative error of at most 2**-18. It is that large only for
    the longest numbers that there can be; for those of a tenth of that length it is a hundredth of it, 4e-8.

    Args:
        count: How many numbers.
        width: How many dimensions, H.
        first: The dimension of the first number.
    """

    count: int
    width: int
    first: int = 0

    @property
    def fits(self) -> bool:
        """Whether there are dimensions enough, two constants included."""
        return self.first + 2 * self.count <= self.width and self.width - 2 * self.count >= 2

    def spread(self) -> Tensor:
        """Returns the matrix that puts numbers in their dimensions, in float64. Shape (H, count)."""
        spread = torch.zeros(self.width, self.count, dtype=torch.float64)  # (H, count)
        number = torch.arange(self.count)
        spread[self.first + 2 * number, number] = 1.0
        spread[self.first + 2 * number + 1, number] = -1.0
        return spread

    def read(self) -> Tensor:
        """Returns the matrix that reads them; what is common to all dimensions cancels. Shape (count, H)."""
        return self.spread().T / 2  # (count, H)

    def places(self) -> Tensor:
        """Returns 1 where numbers stand, else 0, in float64. Shape (H,)."""
        return self.spread().abs().sum(dim=1)  # (H,)

    def constants(self) -> Tensor:
        """Returns 1 and -1, equally often, where constants stand, else 0, in float64. Shape (H,)."""
        free = (self.places() == 0).nonzero().flatten()  # (H - 2 count,)
        signs = torch.zeros(self.width, dtype=torch.float64)  # (H,)
        half = len(free) // 2
        signs[free[:half]], signs[free[half : 2 * half]] = 1.0, -1.0
        return signs

    def gain(self, constant: float = CONSTANT) -> float:
        """Returns by what to multiply numbers whose length is at most 1, beside constants of a size."""
        return _SHARE * self._length(constant)

    def factor(self, constant: float = CONSTANT, *, eps: float) -> float:
        """Returns by what a LayerNorm with that `eps` multiplies, beside constants of a size."""
        return 1.0 / math.sqrt(self._length(constant) ** 2 / self.width + eps)

    def _length(self, constant: float) -> float:
        return constant * math.sqrt(float(self.constants().abs().sum()))
