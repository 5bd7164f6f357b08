"""/v1/jobs: the state of long work, as JSON or as events, its points as a file, and its cancellation."""

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from covervlm.server.api.errors import RESPONSES
from covervlm.server.api.exchange import DONE, EventStream, event
from covervlm.server.api.openapi import events_of
from covervlm.server.api.points import POINTS_ANSWER, points_of_job
from covervlm.server.api.wire.listing import listing
from covervlm.server.core.errors import NotFound
from covervlm.server.store.records import JobRecord

if TYPE_CHECKING:
    from covervlm.server.clip.service import ClipService


class JobError(BaseModel):
    code: str
    message: str


class JobStatus(BaseModel):
    """`progress` holds share, eta_seconds and phase, and for a classifier iteration, iterations and gradient_norm.

    `result` is there once the job succeeded, `error` once it failed.
    """

    id: str
    object: Literal["job"] = "job"
    kind: str
    method: str | None
    state: Literal["queued", "running", "succeeded", "failed", "cancelled"]
    created: int
    finished: int | None
    progress: dict[str, Any]
    result: dict[str, Any] | None
    error: JobError | None


class JobList(BaseModel):
    """A page of jobs, without their results; the next one begins after `last_id`."""

    object: Literal["list"] = "list"
    data: list[JobStatus]
    first_id: str | None
    last_id: str | None
    has_more: bool


def status(job: JobRecord) -> JobStatus:
    return JobStatus(
        id=job.id,
        kind=job.kind,
        method=job.method,
        state=job.state,  # type: ignore[arg-type]
        created=int(job.created),
        finished=None if job.finished is None else int(job.finished),
        progress=dict(job.progress),
        result=None if job.result is None else dict(job.result),
        error=None if job.error is None else JobError(**job.error),
    )


def router(service: "ClipService") -> APIRouter:
    routes = APIRouter(tags=["jobs"], responses=RESPONSES)

    @routes.get("/v1/jobs", response_model=JobList)
    async def list_jobs(
        request: Request,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
        after: Annotated[str | None, Query(max_length=100)] = None,
        order: Literal["asc", "desc"] = "asc",
    ) -> Response:
        """A page of this owner's jobs without their results, oldest first or (`desc`) newest first."""
        await service.ready()
        jobs, more = await service.jobs.page(
            request.state.caller.owner, limit=limit, after=after, newest_first=order == "desc"
        )
        first, last = (jobs[0].id, jobs[-1].id) if jobs else (None, None)
        return await listing(lambda: map(status, jobs), JobList(data=[], first_id=first, last_id=last, has_more=more))

    @routes.get("/v1/jobs/{job}")
    async def retrieve_job(job: str, request: Request) -> JobStatus:
        await service.ready()
        return status(_found(await service.jobs.get(request.state.caller.owner, job), job))

    @routes.get("/v1/jobs/{job}/events", response_class=StreamingResponse, responses=events_of(JobStatus))
    async def watch_job(job: str, request: Request) -> EventStream:
        """Server-sent events: the job now and at every change, its final state, then [DONE]."""
        await service.ready()
        _found(await service.jobs.get(request.state.caller.owner, job), job)
        states = service.jobs.watch(request.state.caller.owner, job)

        async def events() -> AsyncIterator[str]:
            async for state in states:
                yield event(status(state).model_dump_json())
            yield DONE

        return EventStream(events(), states.aclose)

    @routes.get("/v1/jobs/{job}/points", response_class=Response, responses=POINTS_ANSWER)
    async def download_points(job: str, request: Request) -> Response:
        """A clustering as a Parquet file: `image` (its index in the request), `label`, `x` and `y`."""
        await service.ready()
        return await points_of_job(_found(await service.jobs.get(request.state.caller.owner, job), job))

    @routes.delete("/v1/jobs/{job}")
    async def cancel_job(job: str, request: Request, forget: bool = False) -> JobStatus:
        """Cancel a job that has not finished; a finished one stays, or with `forget` is deleted with its result."""
        await service.ready()
        if forget:
            return status(_found(await service.jobs.forget(request.state.caller.owner, job), job))
        return status(_found(await service.jobs.cancel(request.state.caller.owner, job), job))

    return routes


def _found(job: JobRecord | None, name: str) -> JobRecord:
    if job is None:
        raise NotFound("job", name)
    return job
