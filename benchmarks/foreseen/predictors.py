"""Forecasts of the next day from the hours before it: ours, and what it is measured against."""

import warnings
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from covervlm.server.forecast.history import HOURS, Hours
from covervlm.server.forecast.outlook import look_ahead

Series = NDArray[np.float64]
DAY, WEEK = 24, 168


def decomposition(past: Series) -> tuple[Series, Series]:
    """(24,) expected and (24,) upper, as the server would tell from the weeks that it keeps."""
    known = past[-HOURS:]
    hours = look_ahead(Hours(0, known, np.full(len(known), np.nan))).hours[:DAY]
    return np.array([hour.expected for hour in hours]), np.array([hour.upper for hour in hours])


def seasonal_naive(past: Series) -> Series:
    """The same hours of last week."""
    return past[-WEEK : len(past) - WEEK + DAY]


def arima(first_past: Series) -> Callable[[Series], Series] | None:
    """ARIMA(2,1,2) on the raw series, its parameters from `first_past`, its state from all hours before the day.

    None where statsmodels is not installed.
    """
    try:
        from statsmodels.tsa.arima.model import ARIMA
    except ImportError:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fitted = ARIMA(first_past, order=(2, 1, 2)).fit()
    return lambda past: np.maximum(fitted.apply(past).forecast(DAY), 0)
