"""/v1/jobs: the state of long work, as JSON or as events, and its cancellation."""

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from covervlm.server.api.errors import RESPONSES
from covervlm.server.api.event_stream import DONE, EventStream, event
from covervlm.server.api.openapi import events_of
from covervlm.server.api.owner import owner
from covervlm.server.resources import NotFound
from covervlm.server.store.records import Job

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
    state: Literal["queued", "running", "succeeded", "failed", "cancelled"]
    created: int
    finished: int | None
    progress: dict[str, Any]
    result: dict[str, Any] | None
    error: JobError | None


class JobList(BaseModel):
    object: Literal["list"] = "list"
    data: list[JobStatus]


def status(job: Job) -> JobStatus:
    return JobStatus(
        id=job.id,
        kind=job.kind,
        state=job.state,  # type: ignore[arg-type]
        created=int(job.created),
        finished=None if job.finished is None else int(job.finished),
        progress=dict(job.progress),
        result=None if job.result is None else dict(job.result),
        error=None if job.error is None else JobError(**job.error),
    )


def router(service: "ClipService") -> APIRouter:
    routes = APIRouter(tags=["jobs"], responses=RESPONSES)

    @routes.get("/v1/jobs")
    async def list_jobs(request: Request) -> JobList:
        """All jobs of this owner, oldest first, without their results."""
        await service.ready()
        jobs = service.jobs.list(owner(request))
        return JobList(data=[status(job).model_copy(update={"result": None}) for job in jobs])

    @routes.get("/v1/jobs/{job}")
    async def retrieve_job(job: str, request: Request) -> JobStatus:
        await service.ready()
        return status(_found(service.jobs.get(owner(request), job), job))

    @routes.get("/v1/jobs/{job}/events", response_class=StreamingResponse, responses=events_of(JobStatus))
    async def watch_job(job: str, request: Request) -> EventStream:
        """Server-sent events: the job now and at every change, its final state, then [DONE]."""
        await service.ready()
        _found(service.jobs.get(owner(request), job), job)
        states = service.jobs.watch(owner(request), job)

        async def events() -> AsyncIterator[str]:
            async for state in states:
                yield event(status(state).model_dump_json())
            yield DONE

        return EventStream(events(), states.aclose)

    @routes.delete("/v1/jobs/{job}")
    async def cancel_job(job: str, request: Request, forget: bool = False) -> JobStatus:
        """Cancel a job that has not finished; a finished one stays, or with `forget` is deleted with its result."""
        await service.ready()
        if forget:
            return status(_found(await service.jobs.forget(owner(request), job), job))
        return status(_found(await service.jobs.cancel(owner(request), job), job))

    return routes


def _found(job: Job | None, name: str) -> Job:
    if job is None:
        raise NotFound("job", name)
    return job
