"""Online classifiers over HTTP: order, exactly-once answers, isolation, snapshots, and a restart."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from clip_space.class_proxies import class_proxies
from safetensors.torch import load
from starlette.testclient import TestClient

from covervlm.server import create_app
from covervlm.server.clip.encoder.encoder import ClipEncoder
from covervlm.server.clip.methods.coke import CoKe
from covervlm.server.clip.methods.onzeta import OnlineZeroShot
from covervlm.server.clip.tensors import pack, unpack
from covervlm.server.demo import clip_path
from covervlm.server.settings import Settings
from tests.server.api.clip_app import COLORS, OTHER, SHAPES, clip_client, error, noise, scenes, urls, wait_for
from tests.server.api.scripted import ScriptedEngine

SESSIONS = "/v1/streams"


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    with clip_client(tmp_path_factory.mktemp("data")) as client:
        yield client


@pytest.fixture(scope="module")
def expected():
    """The answers to a stream of twelve pictures, by OnZeta itself."""
    encoder = ClipEncoder(str(clip_path()), device="cpu")
    stream = OnlineZeroShot(class_proxies(encoder.embed_texts, SHAPES), 10)
    rows = encoder.embed_pixels([encoder.preprocess(scene.image) for scene in scenes(12)])
    return [stream.observe(row).combined for row in rows]


def opened(client, **body) -> str:
    answer = client.post(SESSIONS, json={"classes": SHAPES, "horizon": 10} | body)
    assert answer.status_code == 201, answer.text
    return answer.json()["id"]


def observe(client, session: str, images: list[str], key: str | None = None, **kwargs):
    headers = {"Idempotency-Key": key} if key else {}
    return client.post(f"{SESSIONS}/{session}/observe", json={"images": images} | kwargs, headers=headers)


def check(entries: list[dict], expected: list[torch.Tensor]) -> None:
    for entry, row in zip(entries, expected, strict=True):
        assert entry["label"] == SHAPES[int(row.argmax())]
        assert entry["confidence"] == pytest.approx(float(row.max()), abs=1e-4)


def test_a_stream_is_labelled_in_order_as_onzeta_labels_it_also_past_the_horizon(client, expected):
    session = opened(client)
    images = urls(12)
    entries = observe(client, session, images[:1]).json()["data"]
    entries += observe(client, session, images[1:7]).json()["data"]
    last = observe(client, session, images[7:]).json()
    check(entries + last["data"], expected)
    assert [entry["index"] for entry in entries] == list(range(7))
    assert last["observed"] == 12
    state = client.get(f"{SESSIONS}/{session}").json()
    assert (state["observed"], state["horizon"], state["past_horizon"]) == (12, 10, True)


def test_a_repeated_key_gets_the_first_answer_and_teaches_nothing(client, expected):
    session = opened(client)
    images = urls(3)
    first = observe(client, session, images, key="one").json()
    assert observe(client, session, images, key="one").json() == first
    assert client.get(f"{SESSIONS}/{session}").json()["observed"] == 3
    check(observe(client, session, urls(1, first=3), key="two").json()["data"], expected[3:4])
    assert observe(client, session, images, key="one").json() == first
    reused = error(observe(client, session, images[:2], key="one"), 409)
    assert reused["code"] == "idempotency_key_reused"
    assert client.get(f"{SESSIONS}/{session}").json()["observed"] == 4


def test_concurrent_calls_are_serialised_and_repeated_ones_count_once(client):
    session = opened(client, horizon=1000)
    pictures = [noise(i) for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        calls = [pool.submit(observe, client, session, [pictures[i % 8]], key=f"k{i % 8}") for i in range(24)]
        answers = [call.result().json() for call in calls]
    indices = [answer["data"][0]["index"] for answer in answers]
    assert sorted(set(indices)) == list(range(8))
    for i, answer in enumerate(answers):
        assert answer == answers[i % 8]
    assert client.get(f"{SESSIONS}/{session}").json()["observed"] == 8


def test_sessions_learn_apart(client, expected):
    ours, other = opened(client), opened(client)
    observe(client, other, [noise(1), noise(2)])
    check(observe(client, ours, urls(6)).json()["data"], expected[:6])


def test_a_snapshot_takes_a_session_back_and_serves_another(client, expected):
    session, twin = opened(client), opened(client)
    observe(client, session, urls(5), key="before")
    snapshot = client.get(f"{SESSIONS}/{session}/snapshot").content
    assert int(load(snapshot)["observed"]) == 5
    observe(client, session, [noise(3)], key="after")
    for target in (session, twin):
        restored = client.put(f"{SESSIONS}/{target}/snapshot", content=snapshot)
        assert restored.status_code == 200, restored.text
        assert restored.json()["observed"] == 5
        check(observe(client, target, urls(1, first=5), key="after").json()["data"], expected[5:6])


def test_states_that_do_not_fit_are_refused_and_change_nothing(client):
    session, colors = opened(client), opened(client, classes=COLORS)
    observe(client, session, urls(2))
    observe(client, colors, urls(2))
    alien = client.get(f"{SESSIONS}/{colors}/snapshot").content
    own = client.get(f"{SESSIONS}/{session}/snapshot").content
    for data in (alien, b"nonsense", own[:-8], b""):
        error(client.put(f"{SESSIONS}/{session}/snapshot", content=data), 400)
    assert client.get(f"{SESSIONS}/{session}/snapshot").content == own


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"classes": []}, "classes"),
        ({"classes": ["star"]}, "classes"),
        ({"classes": ["star", "star"]}, "classes"),
        ({"horizon": 0}, "horizon"),
        ({"horizon": -5}, "horizon"),
        ({"horizon": 2.5}, "horizon"),
        ({"parameters": {"beta": 2}}, "parameters.beta"),
        ({"parameters": {"tau_text": 0}}, "parameters.tau_text"),
    ],
)
def test_what_makes_no_session_opens_none(client, body, param):
    before = len(client.get(SESSIONS).json()["data"])
    detail = error(client.post(SESSIONS, json={"classes": SHAPES, "horizon": 10} | body), 400)
    assert detail["param"] == param
    assert len(client.get(SESSIONS).json()["data"]) == before


def test_bad_images_teach_nothing(client):
    session = opened(client)
    error(observe(client, session, []), 400)
    detail = error(observe(client, session, [*urls(1), "data:image/png;base64,AAAA"], key="k"), 400)
    assert detail["param"] == "images[1]"
    assert client.get(f"{SESSIONS}/{session}").json()["observed"] == 0
    assert observe(client, session, urls(1), key="k").status_code == 200


def test_a_foreign_session_looks_like_none_at_all(client):
    session = opened(client)
    for name, headers in ((session, OTHER), ("zss_unknown", {})):
        path = f"{SESSIONS}/{name}"
        refusals = [
            client.get(path, headers=headers),
            client.post(f"{path}/observe", json={"images": urls(1)}, headers=headers),
            client.get(f"{path}/snapshot", headers=headers),
            client.put(f"{path}/snapshot", content=b"", headers=headers),
            client.delete(path, headers=headers),
        ]
        for refusal in refusals[:3] + refusals[4:]:
            detail = error(refusal, 404)
            assert detail["code"] == "stream_not_found"
            assert detail["message"] == f"There is no stream '{name}'."
    assert client.get(SESSIONS, headers=OTHER).json()["data"] == []
    assert client.get(f"{SESSIONS}/{session}").status_code == 200


def test_sessions_and_classifiers_belong_to_the_api_key_that_made_them(tmp_path):
    app = create_app(Settings(data_dir=tmp_path, api_key=("first", "second")), ScriptedEngine())
    first, second = ({"Authorization": f"Bearer {key}"} for key in ("first", "second"))
    with TestClient(app) as client:
        body = {"classes": SHAPES, "horizon": 10}
        assert client.post(SESSIONS, json=body).status_code == 401
        session = client.post(SESSIONS, json=body, headers=first).json()["id"]
        path = f"{SESSIONS}/{session}"
        assert client.get(path, headers=first).status_code == 200
        assert error(client.get(path, headers=second), 404)["code"] == "stream_not_found"
        error(client.post(f"{path}/observe", json={"images": urls(1)}, headers=second), 404)
        error(client.delete(path, headers=second), 404)
        assert client.get(SESSIONS, headers=second).json()["data"] == []
        assert client.get(path, headers=first).json()["observed"] == 0
        snapshot = client.get(f"{path}/snapshot", headers=first).content
        error(client.put(f"{path}/snapshot", content=snapshot, headers=second), 404)


def test_a_deleted_session_is_gone(client):
    session = opened(client)
    assert client.delete(f"{SESSIONS}/{session}").json() == {"id": session, "deleted": True}
    error(client.get(f"{SESSIONS}/{session}"), 404)
    error(observe(client, session, urls(1)), 404)


def test_an_orderly_restart_loses_nothing(tmp_path, expected):
    with clip_client(tmp_path) as client:
        session = opened(client)
        first = observe(client, session, urls(4), key="one").json()
    with clip_client(tmp_path) as client:
        state = client.get(f"{SESSIONS}/{session}").json()
        assert (state["observed"], state["snapshot_observed"]) == (4, 4)
        assert observe(client, session, urls(4), key="one").json() == first
        check(observe(client, session, urls(2, first=4)).json()["data"], expected[4:6])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rho", torch.full((len(SHAPES),), 1e30)),
        ("rho", torch.full((len(SHAPES),), -1.0)),
        ("rho", torch.full((len(SHAPES),), torch.nan)),
        ("observed", torch.tensor(torch.inf)),
        ("observed", torch.tensor(torch.nan)),
        ("observed", torch.tensor(2**62)),
        ("observed", torch.tensor(-1)),
        ("observed", torch.ones(3)),
        ("vision_proxies", None),
    ],
)
def test_a_snapshot_that_no_stream_leaves_behind_is_refused(client, name, value):
    session = opened(client)
    tensors, about = unpack(client.get(f"{SESSIONS}/{session}/snapshot").content)
    tensors[name] = torch.zeros_like(tensors[name]) if value is None else value
    told = error(client.put(f"{SESSIONS}/{session}/snapshot", content=pack(tensors, about)), 400)
    assert told["code"] == "invalid_tensors"
    seen = client.post(f"{SESSIONS}/{session}/observe", json={"images": urls(1)})
    assert (seen.status_code, seen.json()["observed"]) == (200, 1)


def test_probabilities_are_numbers_at_the_steepest_learning_rates(client):
    steep = {"learning_rate_rho": 10_000, "learning_rate": 1000, "tau_text": 0.001, "tau_vision": 0.001}
    session = opened(client, parameters=steep)
    for _ in range(3):
        seen = client.post(f"{SESSIONS}/{session}/observe", json={"images": urls(8)}).json()
        assert all(0 <= best["probability"] <= 1 for row in seen["data"] for best in row["top"])


def test_a_snapshot_is_taken_on_its_own_within_about_a_second(client):
    session = opened(client)
    observe(client, session, urls(1))
    wait_for(lambda: client.get(f"{SESSIONS}/{session}").json()["snapshot_observed"] == 1, seconds=20)


def test_group_sizes_and_drift_are_told_as_groups_hold_them(client):
    """By a plain loop over CoKe's own answers: how many each group got, and how far its centre went from the text."""
    encoder = ClipEncoder(str(clip_path()), device="cpu")
    text = class_proxies(encoder.embed_texts, SHAPES)
    rows = encoder.embed_pixels([encoder.preprocess(scene.image) for scene in scenes(12)])
    session = opened(client, method="coke", horizon=50)
    before = client.get(f"{SESSIONS}/{session}").json()["groups"]
    assert [(one["label"], one["size"], one["drift"]) for one in before] == [(name, 0, 0) for name in SHAPES]
    stream = CoKe().open(text, 50)
    labels = [answer.label for answer in stream.observe_all(rows)]
    observe(client, session, urls(12))
    after = client.get(f"{SESSIONS}/{session}").json()["groups"]
    assert [one["size"] for one in after] == [labels.count(number) for number in range(len(SHAPES))]
    centers = stream.snapshot().centers
    for number, one in enumerate(after):
        assert one["drift"] == pytest.approx(1 - float(centers[:, number] @ text[:, number]), abs=1e-3)
    assert "groups" not in client.get(SESSIONS).json()["data"][0]


def test_onzeta_counts_no_sizes_and_tells_its_drift(client):
    session = opened(client)
    observe(client, session, urls(5))
    groups = client.get(f"{SESSIONS}/{session}").json()["groups"]
    state = load(client.get(f"{SESSIONS}/{session}/snapshot").content)
    encoder = ClipEncoder(str(clip_path()), device="cpu")
    text = class_proxies(encoder.embed_texts, SHAPES)
    for number, one in enumerate(groups):
        expected = 1 - float(state["vision_proxies"][:, number] @ text[:, number])
        assert (one["size"], one["drift"]) == (None, pytest.approx(expected, abs=1e-3))


def test_a_snapshot_by_another_method_is_refused_as_such(client):
    streams = [
        client.post(SESSIONS, json={"classes": SHAPES, "horizon": 5, "method": method}).json()["id"]
        for method in ("onzeta", "coke")
    ]
    for own, other in (streams, streams[::-1]):
        snapshot = client.get(f"{SESSIONS}/{other}/snapshot").content
        refused = error(client.put(f"{SESSIONS}/{own}/snapshot", content=snapshot), 400)
        assert "by the method of this one" in refused["message"]
