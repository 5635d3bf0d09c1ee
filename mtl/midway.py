"""Thresholds between values."""

import numpy as np
import numpy.typing as npt


def midway(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Returns thresholds, (N - 1,), that part each two neighbours of rising, distinct values, (N,).

    The upper value of two is at its threshold or above, the lower one below it.
    """
    middles = (values[:-1] + values[1:]) / 2  # (N - 1,)
    return np.where(middles > values[:-1], middles, values[1:])  # Between two neighbours in float64 there is nothing.
