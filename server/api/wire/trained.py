"""Trained things as their owners see them, without their tensors."""

from typing import Any, Literal, Self

from pydantic import BaseModel

from covervlm.server.store.records import Artifact


class TrainedCard(BaseModel):
    """A version; `about` says how it was made, and its `report`, what it is worth."""

    id: str
    object: str
    name: str
    version: int
    created: int
    bytes: int
    about: dict[str, Any]

    @classmethod
    def of(cls, entry: Artifact, *, brief: bool = False, **more: Any) -> Self:
        """brief: without the report, which may be long. more: fields of the subclass."""
        return cls(
            id=entry.id,
            object=entry.kind,
            name=entry.name or "",
            version=entry.version,
            created=int(entry.created),
            bytes=entry.size,
            about={key: value for key, value in entry.card.items() if not (brief and key == "report")},
            **more,
        )


class Deleted(BaseModel):
    id: str
    deleted: Literal[True] = True
