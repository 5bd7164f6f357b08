"""Clusters by a named aspect, over HTTP, with reference words from the request or from the served model."""

import pytest

from covervlm.server.clip.prompt_choice import wordings
from covervlm.server.core.errors import EngineOverloaded
from covervlm.server.core.generation import GenerationChunk
from tests.server.api.clip_app import COLORS, SHAPES, clip_client, error, finished, noise, scenes, urls
from tests.server.api.scripted import ScriptedEngine


@pytest.fixture(scope="module")
def engine():
    return ScriptedEngine()


@pytest.fixture(scope="module")
def client(tmp_path_factory, engine):
    with clip_client(tmp_path_factory.mktemp("data"), engine) as client:
        yield client


def run(client, **body) -> dict:
    answer = client.post("/v1/clusterings", json=body)
    assert answer.status_code == 202, answer.text
    return finished(client, answer.json()["id"])


def agreement(labels: list[int], truth: list[str]) -> float:
    """Rand index."""
    pairs = [(i, j) for i in range(len(labels)) for j in range(i)]
    return sum((labels[i] == labels[j]) == (truth[i] == truth[j]) for i, j in pairs) / len(pairs)


def test_without_a_prompt_the_wording_is_chosen_and_serves_both_aspects(client):
    pictures = scenes(24)
    for aspect, words in (("shape", SHAPES), ("color", COLORS)):
        result = run(client, images=urls(24), aspect=aspect, words=words, clusters=8)["result"]
        truth = [getattr(scene.objects[0], aspect) for scene in pictures]
        assert agreement(result["labels"], truth) > 0.85
        assert result["prompt"] in wordings(aspect, "")


def test_the_bare_word_groups_by_the_text_that_is_nothing_but_the_word(client):
    answer = client.post("/v1/classify", json={"images": urls(12), "classes": COLORS, "templates": ["{}"]}).json()
    nearest = [one["label"] for one in answer["data"]]
    body = {"images": urls(12), "aspect": "color", "words": COLORS, "clusters": len(set(nearest)), "prompt": "*"}
    result = run(client, **body)["result"]
    assert result["prompt"] == "*"
    assert agreement(result["labels"], nearest) == 1


@pytest.mark.parametrize("method", ["multi_map", "multi_sub"])
def test_the_aspect_decides_what_the_clusters_show(client, method):
    pictures = scenes(24)
    body = {"images": urls(24), "method": method, "clusters": 8}
    for aspect, words, prompt in (("shape", SHAPES, "a photo of a *"), ("color", COLORS, "a photo of something *")):
        state = run(client, **body, aspect=aspect, words=words, prompt=prompt)
        assert state["state"] == "succeeded", state
        result = state["result"]
        truth = [getattr(scene.objects[0], aspect) for scene in pictures]
        assert agreement(result["labels"], truth) > 0.85
        assert sum(cluster["size"] for cluster in result["clusters"]) == 24
        names = [cluster["name"].split(" (")[0] for cluster in result["clusters"]]
        assert set(names) <= set(words)
        assert len({cluster["name"] for cluster in result["clusters"]}) == 8
        assert (result["aspect"], result["method"], result["prompt"]) == (aspect, method, prompt)
        assert result["words"] == words
        assert result["words_from"] == "request"
        assert [len(point) for point in result["projection"]] == [2] * 24


def test_without_a_number_the_silhouette_chooses(client):
    result = run(client, images=urls(12), aspect="color", words=COLORS, method="clip_kmeans")["result"]
    assert 2 <= len(result["clusters"]) <= 12
    assert -1 <= result["silhouette"] <= 1
    assert result["prompt"] in wordings("color", "")


@pytest.mark.parametrize("method", ["multi_map", "multi_sub", "clip_kmeans"])
@pytest.mark.parametrize("clusters", [None, 2, 5])
def test_equal_pictures_are_in_one_cluster(client, method, clusters):
    body = {"aspect": "color", "words": ["red", "blue"], "method": method, "clusters": clusters}
    alike = run(client, images=urls(1) * 6, **body)
    assert alike["state"] == "succeeded", alike
    result = alike["result"]
    assert (result["labels"], result["silhouette"]) == ([0] * 6, None)
    assert result["projection"] == [[0.0, 0.0]] * 6
    assert "All images are equal" in result["warnings"][0]
    two = run(client, images=[*urls(1) * 2, *urls(1, first=7) * 3], **body)["result"]
    assert (two["labels"], two["silhouette"]) == ([1, 1, 0, 0, 0], 1.0)
    assert "Only 2 of the 5 images are different" in two["warnings"][0]


def test_fewer_clusters_than_asked_for_are_remarked_on(client):
    body = {"aspect": "color", "words": ["red", "blue"], "method": "clip_kmeans"}
    few = run(client, images=[*urls(2), *urls(2)], clusters=3, **body)["result"]
    assert len(few["clusters"]) == 2
    assert few["warnings"][1].startswith("3 clusters were asked for, and there are 2")
    assert run(client, images=urls(4), clusters=3, **body)["result"]["warnings"] == []


def test_words_are_asked_from_the_served_model_and_shown(client, engine):
    engine.script = lambda request: [
        GenerationChunk(text="Red, green,\n- blue, YELLOW."),
        GenerationChunk(finish_reason="stop"),
    ]
    result = run(client, images=urls(8), aspect="color", subject="fruit", clusters=3)["result"]
    assert result["words"] == ["red", "green", "blue", "yellow"]
    assert result["words_from"] == "model"
    assert result["prompt"] in wordings("color", "fruit")
    question = engine.requests[-1].messages[0].text
    assert "color of fruit" in question
    assert engine.requests[-1].images == ()


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ("Sure! The colors are: red, green", "unusable_words"),
        ("red", "unusable_words"),
        ("", "unusable_words"),
        ("red, 7, green", "unusable_words"),
        (EngineOverloaded("full", retry_after=1), "no_words"),
    ],
)
def test_an_answer_that_is_no_list_of_words_fails_the_job_and_says_what_to_do(client, engine, answer, code):
    engine.script = lambda request: [answer if isinstance(answer, Exception) else GenerationChunk(text=answer)]
    state = run(client, images=urls(4), aspect="color")
    assert state["state"] == "failed"
    assert state["error"]["code"] == code
    assert "'words'" in state["error"]["message"]


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"images": [noise(1)]}, "images"),
        ({"images": []}, "images"),
        ({"words": ["red"]}, "words"),
        ({"words": ["red", "Red "]}, None),
        ({"aspect": ""}, "aspect"),
        ({"clusters": 1}, "clusters"),
        ({"clusters": 5}, None),
        ({"method": "magic"}, "method"),
        ({"prompt": "no place"}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": "**"}, "prompt"),
        ({"prompt": "word " * 50 + "*"}, "prompt"),
        ({"aspect": "   "}, "aspect"),
        ({"aspect": "color of *"}, "aspect"),
        ({"aspect": "color " * 16}, "aspect"),
        ({"subject": "*"}, "subject"),
        ({"subject": "fruit " * 16}, "subject"),
        ({"method": "multi_sub", "parameters": {"epochs": 3}}, "parameters.epochs"),
        ({"parameters": {"epochs": 0}}, "parameters.epochs"),
    ],
)
def test_requests_that_cannot_be_clustered_start_no_job(client, change, param):
    before = len(client.get("/v1/jobs").json()["data"])
    body = {"images": [noise(1), noise(2)], "aspect": "color", "words": COLORS} | change
    assert error(client.post("/v1/clusterings", json=body), 400)["param"] == param
    assert len(client.get("/v1/jobs").json()["data"]) == before
