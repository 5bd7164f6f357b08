"""Where a checkpoint lies: a folder, the hub, or the hub's cache on this machine; found before anything is loaded."""

from pathlib import Path

import httpx
from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from huggingface_hub.utils import validate_repo_id

_HUB_SECONDS = 5


def located(model: str) -> str:
    """The folder to load, or the hub id where the hub answers. Raises ValueError, which says what to do instead."""
    path = Path(model).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ValueError(f"the folder {model} holds no config.json; name the one that holds it and the weights")
        return str(path)
    if path.is_file():
        raise ValueError(f"{model} is a file; name the folder that holds config.json and the weights")
    advice = f"there is no such folder: {model}"
    try:
        validate_repo_id(model)
    except HFValidationError:
        raise ValueError(f"{advice}; name one, a model of the hub such as llava-hf/llava-1.5-7b-hf, or demo") from None
    if _hub_answers():
        return model
    try:
        return snapshot_download(model, local_files_only=True)
    except LocalEntryNotFoundError:
        raise ValueError(
            f"{advice}; nor is it in the hub's cache {constants.HF_HUB_CACHE}, and {constants.ENDPOINT} cannot be "
            "reached from here: connect this machine, set HTTPS_PROXY, or copy the model here and name its folder"
        ) from None


def _hub_answers() -> bool:
    """Asked once and without retries, because the hub's own client takes half a minute to find out for each file."""
    if constants.HF_HUB_OFFLINE:
        return False
    try:
        httpx.head(constants.ENDPOINT, timeout=_HUB_SECONDS)
    except httpx.HTTPError:
        return False
    return True
