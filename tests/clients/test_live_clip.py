"""Embeddings, labels, classifiers, sessions, clusterings and jobs of both clients against a real server."""

import asyncio
import io

import numpy
import openai
import pandas
import pytest
import torch
from clip_space.class_proxies import class_proxies
from demo_model.scenes import COLOR_NAMES
from safetensors.torch import load

from covervlm import clients
from covervlm.clients import AsyncClient, Client
from covervlm.server import create_app
from covervlm.server.clip.encoder.encoder import ClipEncoder
from covervlm.server.clip.methods.inmap import fit_vision_proxies
from covervlm.server.clip.methods.onzeta import OnlineZeroShot
from covervlm.server.demo import clip_path
from covervlm.server.settings import Settings
from tests.server.api.clip_app import COLORS, SHAPES, scenes
from tests.server.api.live import live_server
from tests.server.api.scripted import ScriptedEngine

PICTURES = [scene.image for scene in scenes(12)]


@pytest.fixture(scope="module")
def clip_url(tmp_path_factory):
    settings = Settings(data_dir=tmp_path_factory.mktemp("data"), threads=1)
    with live_server(create_app(settings, ScriptedEngine())) as url:
        yield url


@pytest.fixture(scope="module")
def encoder():
    return ClipEncoder(str(clip_path()), device="cpu")


@pytest.fixture(scope="module")
def features(encoder):
    return encoder.embed_pixels([encoder.preprocess(picture) for picture in PICTURES])


@pytest.fixture(scope="module", params=["blocking", "asyncio"])
def ask(request, clip_url):
    """ask(lambda client: client.method(...)): what the method of either kind of client returns."""
    if request.param == "blocking":
        with Client(clip_url, retries=0) as client:

            def ask(use):
                return use(client)

            ask.kind = request.param
            yield ask
    else:
        with asyncio.Runner() as runner:
            client = AsyncClient(clip_url, retries=0)

            def ask(use):
                return runner.run(use(client))

            ask.kind = request.param
            yield ask
            runner.run(client.close())


@pytest.fixture
def fitted(ask):
    """A classifier's name, learned from the pictures with the arguments of `fit`, and deleted in the end."""
    names = []

    def fit(name, **arguments):
        job = ask(lambda client: client.classifiers.fit(name, SHAPES, parameters={"iterations": 50}, **arguments))
        names.append(ask(lambda client: client.jobs.wait(job, timeout=60)))
        return names[-1]

    yield fit
    for name in names:
        ask(lambda client, name=name: client.classifiers.delete(name))


def test_embeddings_are_the_encoders_and_the_openai_packages(ask, clip_url, encoder, features):
    images = ask(lambda client: client.embed_images(PICTURES))
    texts = ask(lambda client: client.embed_texts(["a red star", "a blue ring"]))
    assert numpy.asarray(images) == pytest.approx(features.numpy(), abs=1e-5)
    assert numpy.asarray(texts) == pytest.approx(encoder.embed_texts(["a red star", "a blue ring"]).numpy(), abs=1e-5)
    with openai.OpenAI(base_url=f"{clip_url}/v1", api_key="unused", max_retries=0) as official:
        expected = official.embeddings.create(model=texts.model, input=["a red star", "a blue ring"])
    assert [list(vector) for vector in texts.vectors] == [entry.embedding for entry in expected.data]
    assert (texts.model, texts.prompt_tokens) == (expected.model, expected.usage.prompt_tokens)
    assert images.prompt_tokens == 0


def test_one_text_or_picture_is_a_list_of_one(ask, tmp_path):
    path = tmp_path / "one.png"
    PICTURES[0].save(path)
    [text], [picture] = ask(lambda client: client.embed_texts("a star")), ask(lambda client: client.embed_images(path))
    assert len(text) == len(picture)


def test_labels_are_the_encoders(ask, encoder, features):
    answers = ask(lambda client: client.classify(PICTURES, SHAPES, top=3))
    probabilities = torch.softmax(features @ class_proxies(encoder.embed_texts, SHAPES) / encoder.temperature, dim=1)
    for answer, row in zip(answers, probabilities, strict=True):
        best = row.topk(3)
        assert [label for label, _ in answer.top] == [SHAPES[i] for i in best.indices]
        assert [p for _, p in answer.top] == pytest.approx(best.values.tolist(), abs=1e-4)
        assert (answer.label, answer.confidence) == answer.top[0]
    assert [answer.index for answer in answers] == list(range(12))


def test_labels_come_as_a_file_with_their_pictures_vectors(ask, features):
    answers = ask(lambda client: client.classify(PICTURES, SHAPES, abstain_below=0.9))
    file = ask(lambda client: client.classify_points(PICTURES, SHAPES, abstain_below=0.9))
    table = pandas.read_parquet(io.BytesIO(file))
    for name in ("label", "confidence", "margin", "abstained"):
        assert table[name].tolist() == [getattr(answer, name) for answer in answers]
    numpy.testing.assert_allclose(numpy.stack(table["vector"]), features, atol=1e-5)


def test_groups_come_as_a_file_with_their_places(ask):
    job = ask(lambda client: client.cluster(PICTURES, "color", words=COLORS, method="clip_kmeans"))
    found = ask(lambda client: client.jobs.wait(job, timeout=60))
    table = pandas.read_parquet(io.BytesIO(ask(lambda client: client.jobs.points(job))))
    assert table["label"].tolist() == found.names
    numpy.testing.assert_allclose(table[["x", "y"]], found.projection, atol=1e-5)


def test_templates_reach_the_server(ask, encoder, features):
    [answer] = ask(lambda client: client.classify(PICTURES[0], SHAPES, templates=["a photo of a {}"]))
    proxies = class_proxies(encoder.embed_texts, SHAPES, ["a photo of a {}"])
    expected = torch.softmax(features[0] @ proxies / encoder.temperature, dim=0)
    assert answer.confidence == pytest.approx(float(expected.max()), abs=1e-4)


def sources_of(features, ask, tmp_path):
    """The same twelve pictures, in every way that `fit` takes them."""
    path = tmp_path / "features.npy"
    numpy.save(path, features.numpy())
    uploads = [ask(lambda client, part=part: client.classifiers.upload_embeddings(part)) for part in features.split(5)]
    assert [(upload.images, upload.dimensions) for upload in uploads] == [
        (part.shape[0], part.shape[1]) for part in features.split(5)
    ]
    return {
        "images": {"images": PICTURES},
        "array": {"embeddings": features.double().numpy()},
        "answer": {"embeddings": ask(lambda client: client.embed_images(PICTURES))},
        "path": {"embeddings": path},
        "bytes": {"embeddings": path.read_bytes()},
        "uploads": {"uploads": [uploads[0], uploads[1].id, uploads[2]]},
    }


def test_classifiers_learn_the_same_from_every_source(ask, fitted, encoder, features, tmp_path):
    expected = fit_vision_proxies(features, class_proxies(encoder.embed_texts, SHAPES), iterations=50)
    for way, arguments in sources_of(features, ask, tmp_path).items():
        name = fitted(f"{ask.kind}-{way}", **arguments)
        assert name == f"{ask.kind}-{way}@1"
        file = ask(lambda client, name=name: client.classifiers.download(name))
        torch.testing.assert_close(load(file)["proxies"], expected, atol=1e-4, rtol=0)


def test_a_classifier_labels_is_looked_at_listed_moved_and_deleted(ask, fitted, encoder, features, tmp_path):
    name = fitted(f"{ask.kind}-kept", images=PICTURES)
    expected = (
        features @ fit_vision_proxies(features, class_proxies(encoder.embed_texts, SHAPES), iterations=50)
    ).argmax(1)
    answers = ask(lambda client: client.classify(PICTURES, classifier=name))
    assert [SHAPES.index(answer.label) for answer in answers] == expected.tolist()
    card = ask(lambda client: client.classifiers.get(name))
    assert (f"{card.name}@{card.version}", card.classes, card.about["images"]) == (name, tuple(SHAPES), 12)
    assert card in ask(lambda client: client.classifiers.list())
    path = tmp_path / "classifier.safetensors"
    path.write_bytes(ask(lambda client: client.classifiers.download(name)))
    copy = ask(lambda client: client.classifiers.upload(f"{ask.kind}-copy", path))
    assert copy.classes == card.classes
    assert ask(lambda client: client.classify(PICTURES, classifier=copy.name)) == answers
    ask(lambda client: client.classifiers.delete(copy.name))
    with pytest.raises(clients.NotFoundError):
        ask(lambda client: client.classifiers.get(copy.name))


def test_a_forgotten_upload_is_gone(ask, features):
    upload = ask(lambda client: client.classifiers.upload_embeddings(features.numpy()))
    ask(lambda client: client.classifiers.delete_embeddings(upload))
    with pytest.raises(clients.NotFoundError):
        ask(lambda client: client.classifiers.delete_embeddings(upload.id))


def test_a_space_for_search_is_learned_embeds_by_its_name_and_is_deleted(ask, features):
    labels = [str(number % 4) for number in range(12)]
    name = f"{ask.kind}-space"
    views = numpy.stack([features, features.flip(1)], axis=1)
    upload = ask(lambda client: client.classifiers.upload_embeddings(views))
    assert (upload.images, upload.views) == (12, 2)
    ways = (
        {"images": PICTURES, "labels": labels},
        {"embeddings": features.numpy(), "labels": labels, "ids": [f"p{i}" for i in range(12)]},
        {"uploads": [upload], "labels": labels, "method": "coins"},
        {"images": PICTURES, "method": "kda"},
    )
    for number, arguments in enumerate(ways, 1):
        job = ask(
            lambda client, arguments=arguments: client.projections.train(name, parameters={"epochs": 2}, **arguments)
        )
        assert ask(lambda client, job=job: client.jobs.wait(job, timeout=120)) == f"{name}@{number}"
    space = ask(lambda client: client.projections.get(f"{name}@1"))
    assert (space.report["held_out"], space.model) == (12, f"demo-clip/{name}@1")
    embedded = ask(lambda client: client.embed_images(PICTURES[0], model=space.model))
    assert (embedded.model, len(embedded[0])) == (space.model, 64)
    assert [one.version for one in ask(lambda client: client.projections.list()) if one.name == name] == [1, 2, 3, 4]
    assert space.model in [model.id for model in ask(lambda client: client.models())]
    ask(lambda client: client.projections.delete(name))
    with pytest.raises(clients.NotFoundError):
        ask(lambda client: client.embed_images(PICTURES[0], model=space.model))
    with pytest.raises(ValueError, match="12 images"):
        ask(lambda client: client.projections.train(name, labels[:3], PICTURES))


def test_why_a_label_is_told_and_drawn(ask, features):
    name = f"{ask.kind}-why"
    labels = [str(number % 2) for number in range(12)]
    job = ask(
        lambda client: client.classifiers.train(
            name, labels, PICTURES, method="mlp", parameters={"epochs": 3}, keep_examples=True
        )
    )
    ask(lambda client: client.jobs.wait(job, timeout=120))
    why = ask(lambda client: client.explain(name, PICTURES[3], words=["red", "star"], neighbours=2))
    assert sum(why.contributions) + why.constant == pytest.approx(why.difference, abs=1e-4)
    assert ([near.id for near in why.neighbours][:1], len(why.neighbours), why.examples) == (["3"], 2, 12)
    assert (set(why.words), why.region.distance > 0, {why.label, why.against}) == ({"red", "star"}, True, {"0", "1"})
    assert why.overlay(PICTURES[3]).size == PICTURES[3].size
    plain = ask(lambda client: client.explain(name, embedding=features[3], label="1", against="0"))
    assert (plain.words, plain.unexplained, plain.patches, plain.label) == (None, None, None, "1")
    with pytest.raises(ValueError, match="no patches"):
        plain.overlay(PICTURES[3])
    ask(lambda client: client.classifiers.delete(name))


def test_a_stream_tells_its_groups(ask):
    stream = ask(lambda client: client.streams.create(SHAPES, 10))
    assert stream.groups == ()
    groups = ask(lambda client: client.streams.get(stream)).groups
    assert [(group.label, group.size, group.drift) for group in groups] == [(name, None, 0) for name in SHAPES]
    ask(lambda client: client.streams.delete(stream))


def test_a_session_labels_as_onzeta_does_and_a_repeated_key_teaches_nothing(ask, encoder, features):
    stream = OnlineZeroShot(class_proxies(encoder.embed_texts, SHAPES), 10)
    expected = [stream.observe(row).combined for row in features]
    session = ask(lambda client: client.streams.create(SHAPES, 10))
    first = ask(lambda client: client.streams.observe(session, PICTURES[:1], top=8))
    key = f"{ask.kind}-second"
    rest = ask(lambda client: client.streams.observe(session.id, PICTURES[1:], top=8, idempotency_key=key))
    assert ask(lambda client: client.streams.observe(session, PICTURES[1:], top=8, idempotency_key=key)) == rest
    for answer, row in zip(first + rest, expected, strict=True):
        assert answer.top[0] == (SHAPES[int(row.argmax())], pytest.approx(float(row.max()), abs=1e-4))
    assert [answer.index for answer in first + rest] == list(range(12))
    state = ask(lambda client: client.streams.get(session))
    assert (state.observed, state.horizon, state.past_horizon, state.classes) == (12, 10, True, tuple(SHAPES))
    with pytest.raises(clients.ConflictError):
        ask(lambda client: client.streams.observe(session, PICTURES[:1], idempotency_key=key))


def test_a_snapshot_takes_a_session_back(ask, tmp_path):
    session = ask(lambda client: client.streams.create(SHAPES, 10, parameters={"beta": 0.5}))
    assert session.parameters["beta"] == 0.5
    ask(lambda client: client.streams.observe(session, PICTURES[:3]))
    path = tmp_path / "session.safetensors"
    path.write_bytes(ask(lambda client: client.streams.snapshot(session)))
    ask(lambda client: client.streams.observe(session, PICTURES[3:]))
    assert ask(lambda client: client.streams.restore(session, path)).observed == 3
    assert session.id in [other.id for other in ask(lambda client: client.streams.list())]
    ask(lambda client: client.streams.delete(session))
    with pytest.raises(clients.NotFoundError):
        ask(lambda client: client.streams.get(session))


def test_clusters_show_the_aspect_that_is_named(ask):
    job = ask(
        lambda client: client.cluster(
            PICTURES, "color", words=COLORS, clusters=3, subject="shape", prompt="a photo of something *", seed=4
        )
    )
    assert (job.kind, job.result) == ("clustering", None)
    result = ask(lambda client: client.jobs.wait(job, timeout=60))
    assert (len(result.labels), len(result.projection), len(result.clusters)) == (12, 12, 3)
    assert [cluster.size for cluster in result.clusters] == [result.labels.count(i) for i in range(3)]
    assert result.names == [result.clusters[label].name for label in result.labels]
    assert set(name.split(" (")[0] for name in result.names) <= set(COLOR_NAMES)
    assert (result.aspect, result.words, result.words_from) == ("color", tuple(COLORS), "request")
    assert (result.raw["subject"], result.raw["seed"], result.raw["method"]) == ("shape", 4, "multi_map")
    assert ask(lambda client: client.jobs.get(job)).outcome() == result


def test_a_job_is_watched_to_its_end(ask):
    job = ask(lambda client: client.cluster(PICTURES, "shape", words=SHAPES, method="clip_kmeans"))
    if ask.kind == "blocking":
        states = ask(lambda client: list(client.jobs.watch(job)))
    else:

        async def collected(client):
            return [state async for state in client.jobs.watch(job)]

        states = ask(collected)
    assert states[-1].state == "succeeded"
    assert states[-1].share == 1
    assert all(state.finished is None for state in states[:-1])
    assert job.id in [other.id for other in ask(lambda client: client.jobs.list())]
    assert ask(lambda client: client.jobs.forget(job)) == states[-1]
    with pytest.raises(clients.NotFoundError):
        ask(lambda client: client.jobs.get(job))


def test_a_cancelled_job_has_no_result(ask, features):
    many = features.repeat(50, 1).numpy()
    parameters = {"iterations": 100_000, "tolerance": 0}
    job = ask(
        lambda client: client.classifiers.fit(
            f"{ask.kind}-never", SHAPES, embeddings=many, parameters=parameters, templates=["a {}"]
        )
    )
    ask(lambda client: client.jobs.cancel(job))
    with pytest.raises(clients.JobFailedError) as caught:
        ask(lambda client: client.jobs.wait(job.id, timeout=60))
    assert (caught.value.job, caught.value.state) == (job.id, "cancelled")


def test_refusals_name_the_field(ask):
    with pytest.raises(clients.BadRequestError) as caught:
        ask(lambda client: client.classify(PICTURES, SHAPES, classifier="both"))
    assert "either" in str(caught.value)
    with pytest.raises(clients.BadRequestError) as caught:
        ask(lambda client: client.embed_images([PICTURES[0], b"no image"]))
    assert caught.value.param == "input[1].image_url.url"
    with pytest.raises(clients.NotFoundError):
        ask(lambda client: client.embed_texts("a star", model="other"))


def test_a_file_written_without_numpy_is_numpys(ask):
    from covervlm.clients.embeddings import matrix_file

    embeddings = ask(lambda client: client.embed_images(PICTURES))
    read = numpy.load(io.BytesIO(matrix_file(embeddings)), allow_pickle=False)
    assert read.dtype == numpy.dtype("<f4")
    assert numpy.array_equal(read, numpy.asarray(embeddings))
