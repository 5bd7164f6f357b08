"""What can be wrong with a request about something that the server keeps; messages are for the caller of the API."""

from covervlm.server.engines.base import EngineError


class ResourceError(EngineError):
    """Base of the refusals below; `status` is HTTP's, `code` classifies it, `param` names the offending field."""

    status = 400

    def __init__(self, message: str, *, code: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.param = param


class NotFound(ResourceError):
    """There is no such thing, or it is somebody else's, which looks the same."""

    status = 404

    def __init__(self, kind: str, name: str) -> None:
        super().__init__(f"There is no {kind} '{name[:200]}'.", code=f"{kind.replace(' ', '_')}_not_found")


class Conflict(ResourceError):
    """The request contradicts what is there already."""

    status = 409


class QuotaExceeded(ResourceError):
    """The owner keeps as much as is allowed; deleting something makes room."""

    status = 429

    def __init__(self, message: str) -> None:
        super().__init__(message, code="quota_exceeded")


class StorageFull(ResourceError):
    """The disk of the data folder has no room; nothing was changed."""

    status = 507

    def __init__(self) -> None:
        super().__init__(
            "The server has no room left to keep this; what it keeps already stays usable. Delete something you do "
            "not need, or ask the operator for room.",
            code="storage_full",
        )
