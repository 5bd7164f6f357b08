"""A checkpoint's place: folders as they are, hub ids only where the hub can be asked or has been."""

import httpx
import pytest

from covervlm.server.demo import model_path
from covervlm.server.models import location
from covervlm.server.models.location import located


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No hub, and an empty cache of it; the list holds what was asked."""
    asked = []

    def head(url, **_):
        asked.append(url)
        raise httpx.ConnectError("Name or service not known")

    monkeypatch.setattr(location.httpx, "head", head)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(location.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(location, "snapshot_download", _in(tmp_path))
    return asked


def _in(folder):
    download = location.snapshot_download
    return lambda model, **options: download(model, cache_dir=folder, **options)


def test_a_folder_with_a_checkpoint_is_taken_without_asking_the_hub(offline):
    assert located(str(model_path())) == str(model_path())
    assert offline == []


@pytest.mark.parametrize("name", ["/no/such/model", "./model", "~/no/such", "a/b/c", "C:\\models\\llava"])
def test_a_path_that_leads_nowhere_is_no_such_folder(offline, name):
    with pytest.raises(ValueError, match=r"no such folder: .*; name one, a model of the hub such as .*, or demo"):
        located(name)
    assert offline == []


def test_a_folder_or_a_file_that_is_no_checkpoint_says_what_to_name(offline, tmp_path):
    with pytest.raises(ValueError, match="holds no config"):
        located(str(tmp_path))
    (tmp_path / "model.gguf").touch()
    with pytest.raises(ValueError, match="is a file; name the folder"):
        located(str(tmp_path / "model.gguf"))


def test_without_the_hub_an_id_ends_at_once_and_says_what_to_do(offline):
    with pytest.raises(ValueError, match=r"no such folder: org/model; nor is it in the hub's cache .* HTTPS_PROXY"):
        located("org/model")
    assert len(offline) == 1


def test_without_the_hub_its_cache_is_loaded_from(offline, tmp_path):
    cached = tmp_path / "models--org--model"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("0" * 40)
    (cached / "snapshots" / ("0" * 40)).mkdir(parents=True)
    assert located("org/model") == str(cached / "snapshots" / ("0" * 40))


def test_where_the_hub_answers_it_is_asked_for_the_model(monkeypatch):
    monkeypatch.setattr(location.httpx, "head", lambda *_, **__: httpx.Response(200))
    monkeypatch.setattr(location.constants, "HF_HUB_OFFLINE", False)
    assert located("org/model") == "org/model"
