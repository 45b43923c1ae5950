"""The few statistics of the reports: percentiles as numpy's default (linear interpolation) gives them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np


def percentile(values: Iterable[float], p: float) -> float | None:
    """The p-th percentile, rounded to a thousandth; None of nothing.

    >>> percentile([3.0, 1.0, 2.0], 50)
    2.0
    """
    array = np.fromiter(values, np.float64)
    return round(float(np.percentile(array, p)), 3) if len(array) else None


def spread(values: Sequence[float], points: Sequence[int] = (50, 95, 99)) -> dict[str, float | None]:
    """Percentiles by name ("p50") and the maximum ("max").

    >>> spread([1.0, 2.0, 3.0], (50,))
    {'p50': 2.0, 'max': 3.0}
    """
    found = {f"p{p}": percentile(values, p) for p in points}
    found["max"] = round(max(values), 3) if values else None
    return found
