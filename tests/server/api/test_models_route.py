import pytest
from openai.types import Model
from starlette.testclient import TestClient

from covervlm.server import create_app
from covervlm.server.settings import Settings
from tests.server.api.scripted import ScriptedEngine


def names(**settings):
    client = TestClient(create_app(Settings(**{"clip_model": "none", **settings}), ScriptedEngine()))
    return [card["id"] for card in client.get("/v1/models").json()["data"]]


def test_the_list_holds_the_model_and_its_budget_aliases_in_openais_schema(client):
    body = client.get("/v1/models").json()
    assert body["object"] == "list"
    cards = [Model.model_validate(card, strict=True) for card in body["data"]]
    assert [card.id for card in cards] == ["demo", "demo:192", "demo:64", "demo:16", "demo-clip"]
    assert {(card.object, card.owned_by) for card in cards} == {("model", "covervlm")}
    chat, embedding = body["data"][:4], body["data"][4]
    assert [card["keep_tokens"] for card in chat] == [None, 192, 64, 16]
    assert {card["method"] for card in chat} == {"mmtok"}
    assert (embedding["method"], embedding["keep_tokens"]) == (None, None)
    assert {(card["root"], card["max_model_len"], card["vision_tokens"]) for card in chat} == {("demo", 4096, 576)}
    assert (embedding["root"], embedding["max_model_len"], embedding["vision_tokens"]) == ("demo-clip", None, None)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"budget_aliases": ()}, ["demo"]),
        ({"budget_aliases": (5,), "served_model_name": "shapes"}, ["shapes", "shapes:5"]),
        ({"model": "llava-hf/llava-1.5-7b-hf", "budget_aliases": ()}, ["llava-hf/llava-1.5-7b-hf"]),
    ],
)
def test_names_follow_the_settings(settings, expected):
    assert names(**settings) == expected


def test_a_local_checkpoint_is_called_by_its_folder_and_not_its_path(tmp_path):
    folder = tmp_path / "my-llava"
    folder.mkdir()
    assert names(model=str(folder), budget_aliases=()) == ["my-llava"]


@pytest.mark.parametrize(("name", "budget"), [("demo", None), ("demo:64", 64), ("demo:100", 100), ("demo-clip", None)])
def test_a_model_is_found_by_its_name(client, name, budget):
    card = client.get(f"/v1/models/{name}").json()
    assert (card["id"], card["keep_tokens"]) == (name, budget)


def test_names_may_hold_slashes():
    client = TestClient(create_app(Settings(model="org/model"), ScriptedEngine()))
    assert client.get("/v1/models/org/model:64").json()["id"] == "org/model:64"


def test_an_unknown_model_is_a_404(client):
    response = client.get("/v1/models/gpt-4o")
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"


def test_a_model_that_embeds_is_told_from_one_that_chats(client):
    body = {"model": "demo-clip", "messages": [{"role": "user", "content": "Hello"}]}
    response = client.post("/v1/chat/completions", json=body)
    assert response.status_code == 404
    assert response.json()["error"]["message"].endswith("does not chat; this server chats with 'demo'.")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"keep_tokens": 64}, (64, None, None)),
        ({"keep_ratio": 0.25}, (None, 0.25, None)),
        ({"adaptive_budget": "64:192"}, (None, None, [64, 192])),
        ({}, (None, None, None)),
    ],
)
def test_the_budget_in_force_is_told_and_a_name_outdoes_it(settings, expected):
    client = TestClient(create_app(Settings(clip_model="none", **settings), ScriptedEngine()))
    fields = ("keep_tokens", "keep_ratio", "adaptive_budget")
    assert tuple(client.get("/v1/models/demo").json()[field] for field in fields) == expected
    assert tuple(client.get("/v1/models/demo:5").json()[field] for field in fields) == (5, None, None)


def test_a_slash_behind_the_list_changes_nothing(client):
    assert client.get("/v1/models/").json() == client.get("/v1/models").json()
