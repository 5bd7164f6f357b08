"""Answers as Parquet files with a row for each picture, written in threads."""

import asyncio
import io
from typing import TYPE_CHECKING, Any

from fastapi import Request, Response

from covervlm.server.api.openapi import FILE
from covervlm.server.clip.points import lacking, write_points
from covervlm.server.core.errors import Conflict, ResourceError
from covervlm.server.store.records import JobRecord

if TYPE_CHECKING:
    from covervlm.server.clip.classifiers import Answer

PARQUET = "application/vnd.apache.parquet"
POINTS_ANSWER: dict[int | str, dict[str, Any]] = {200: {"content": {PARQUET: FILE}}}


class NoParquet(ResourceError):
    """The server cannot write it. Not a 5xx, which clients would retry."""

    status = 406


class NoPoints(ResourceError):
    """There never will be any of this job."""

    status = 404


async def wants_points(request: Request) -> bool:
    """Whether the answer is asked for as Parquet. Raises NoParquet where the server cannot write that."""
    wanted = PARQUET in request.headers.get("accept", "").lower()
    if wanted:
        await _check_parquet()
    return wanted


async def points_of_job(job: JobRecord) -> Response:
    """Label and place of each image of a clustering, in the request's order.

    Raises NoPoints for jobs of other kinds and for those that did not succeed, Conflict for unfinished ones, and
    NoParquet where the server cannot write it.
    """
    if job.kind != "clustering":
        raise NoPoints(f"The job '{job.id}' is no clustering, and only these have points.", code="no_points")
    if job.finished is None:
        raise Conflict(f"The job '{job.id}' has not finished; wait for it first.", code="job_unfinished")
    result = job.result
    if result is None:
        raise NoPoints(f"The job '{job.id}' did not succeed ({job.state}), so it has no points.", code="no_points")
    await _check_parquet()

    def write() -> bytes:
        names = [cluster["name"] for cluster in result["clusters"]]
        return _parquet({"label": [names[label] for label in result["labels"]]}, places=result["projection"])

    return _file(await asyncio.to_thread(write), job.id)


async def points_of_labels(answers: "list[Answer]", vectors: Any, abstain_below: float) -> Response:
    """Label, confidence, margin, place and vector of each image, in the request's order; vectors: (n, d)."""

    def write() -> bytes:
        confidence = [answer.top[0][1] for answer in answers]
        columns: dict[str, list[Any]] = {
            "label": [answer.top[0][0] for answer in answers],
            "confidence": confidence,
            "margin": [answer.margin for answer in answers],
            "abstained": [one < abstain_below for one in confidence],
        }
        return _parquet(columns, vectors=vectors)

    return _file(await asyncio.to_thread(write), "labels")


async def _check_parquet() -> None:
    """In a thread, since the first import takes a while."""
    if package := await asyncio.to_thread(lacking):
        raise NoParquet(
            f"The server needs {package} to write Parquet, and lacks it: pip install {package} where it runs.",
            code="no_parquet",
        )


def _parquet(columns: dict[str, list[Any]], **given: Any) -> bytes:
    out = io.BytesIO()
    rows = len(next(iter(columns.values())))
    write_points(out, {"image": range(rows), **columns}, **given)
    return out.getvalue()


def _file(data: bytes, name: str) -> Response:
    return Response(data, media_type=PARQUET, headers={"Content-Disposition": f'attachment; filename="{name}.parquet"'})
