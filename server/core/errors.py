"""What can go wrong with a request; every message is written for the caller of the API."""


class EngineError(Exception):
    """Base of what an engine refuses or fails with; the message is written for the caller of the API."""


class InvalidRequest(EngineError):
    """The request can never be served as it stands; `param` names the offending field, `code` classifies it."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class EngineOverloaded(EngineError):
    """No room in the waiting queue; worth another try after `retry_after` seconds."""

    def __init__(self, message: str, *, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class EngineUnavailable(EngineError):
    """The engine is not started, is stopping, or has failed for good."""


class RateLimited(EngineError):
    """The caller's own limit is reached; worth another try after `retry_after` seconds."""

    def __init__(self, message: str, *, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class ResourceError(EngineError):
    """Base of the refusals below; `status` is HTTP's, `code` classifies it, `param` names the offending field."""

    status = 400

    def __init__(self, message: str, *, code: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.param = param


class NotFound(ResourceError):
    """There is no such thing, or it belongs to another owner, which looks the same."""

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


class StorageUnavailable(ResourceError):
    """The data folder cannot be read or written at the moment; nothing was changed."""

    status = 503

    def __init__(self) -> None:
        super().__init__(
            "The server cannot use its data folder at the moment; its log says why. Requests that store nothing still "
            "work; send this one again later.",
            code="storage_unavailable",
        )


class Damaged(ResourceError):
    """What the server stored cannot be read again."""

    status = 500

    def __init__(self, kind: str, name: str) -> None:
        super().__init__(
            f"The stored file of the {kind} '{name[:200]}' is damaged or lost. Delete it, or ask the operator to "
            "restore a backup.",
            code="storage_damaged",
        )


class StorageFull(ResourceError):
    """The disk of the data folder has no room; nothing was changed."""

    status = 507

    def __init__(self) -> None:
        super().__init__(
            "The server has no room left to keep this; what it keeps already stays usable. Delete something you do "
            "not need, or ask the operator for room.",
            code="storage_full",
        )
