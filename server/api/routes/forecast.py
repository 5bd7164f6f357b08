"""GET /v1/forecast: requests of this hour and the day after it, for who plans ahead."""

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel

from covervlm.server.api.errors import RESPONSES
from covervlm.server.forecast.forecaster import HOUR, Forecaster
from covervlm.server.forecast.outlook import DAY, NEEDED, WEEK, Hour

SEASONS: dict[int, Literal["day", "week"]] = {DAY: "day", WEEK: "week"}


class ForecastHour(BaseModel):
    """An hour from `start`, in Unix time: the requests expected, and how many 95 of 100 such hours keep to."""

    start: int
    expected: float
    upper: float


class Forecast(BaseModel):
    """`data` is this hour and the next 24, `peak` the highest of them.

    Both are empty until `needed_hours` have been observed. `seasons` are those that the past is long enough to show.
    `bearable` is the number of requests an hour from which on some had to wait, null where that never happened or no
    budget adapts.
    """

    object: Literal["forecast"] = "forecast"
    created: int
    observed_hours: int
    needed_hours: int
    seasons: list[Literal["day", "week"]]
    bearable: float | None
    peak: ForecastHour | None
    data: list[ForecastHour]


def router(forecaster: Forecaster) -> APIRouter:
    routes = APIRouter(tags=["operations"], responses=RESPONSES)

    @routes.get("/v1/forecast")
    async def forecast() -> Forecast:
        """Requests that bring work, in hours of UTC; made anew as each hour begins."""
        outlook = await forecaster.look()
        return Forecast(
            created=outlook.made * HOUR,
            observed_hours=outlook.observed,
            needed_hours=NEEDED,
            seasons=[SEASONS[period] for period in outlook.seasons],
            bearable=outlook.bearable,
            peak=_told(outlook.peak) if outlook.peak is not None else None,
            data=[_told(hour) for hour in outlook.hours],
        )

    return routes


def _told(hour: Hour) -> ForecastHour:
    return ForecastHour(start=hour.start, expected=round(hour.expected, 1), upper=round(hour.upper, 1))
