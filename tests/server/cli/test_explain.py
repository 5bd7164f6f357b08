"""`covervlm explain` and `covervlm train --projection`: what they print, draw and refuse."""

import shutil

import pytest
from PIL import Image, ImageStat

from covervlm.clients import Client
from tests.server.api.clip_app import scenes

SCENES = [scene for scene in scenes(60) if scene.objects[0].shape in ("star", "circle", "triangle", "square")]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for number, scene in enumerate(SCENES):
        path = folder / scene.objects[0].shape / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        scene.image.save(path)
    return folder


@pytest.fixture(scope="module")
def picture(photos):
    return next((photos / "star").iterdir())


@pytest.fixture
def trained(served, photos, run):
    """A classifier's name, which keeps its examples."""
    options = ("--method", "linear", "--set", "iterations=20", "--keep-examples")
    assert run("train", "--url", served, "why", photos, *options)[0] == 0
    yield "why"
    with Client(served) as client:
        client.classifiers.delete("why")


def test_the_reasons_are_those_of_the_server_and_are_drawn(served, trained, picture, run, report, tmp_path):
    out = tmp_path / "why.png"
    told = report("explain", "--url", served, picture, "--classifier", trained, "--words", "red,star", "-o", out)
    with Client(served) as client:
        expected = client.explain(trained, picture, words=["red", "star"])
    assert (told["label"], told["words"]) == (expected.label, dict(expected.words))
    assert told["difference"] == pytest.approx(expected.difference)
    assert told["neighbours"][0]["id"] == str(picture)
    drawn, plain = Image.open(out), Image.open(picture)
    assert drawn.size == plain.size
    assert sum(ImageStat.Stat(drawn).sum) < sum(ImageStat.Stat(plain.convert("RGB")).sum)
    status, text, _ = run("explain", "--url", served, picture, "--classifier", trained, "--words", "red,star")
    lines = text.splitlines()
    assert status == 0
    assert lines[0].startswith(f"{expected.label} rather than {expected.against}: ahead by ")
    assert f"like {picture}\tstar, similarity 1.000" in lines
    assert lines[-1].endswith("of the decision is not in these words")


def test_what_the_classifier_does_not_know_is_told(served, trained, picture, run, tmp_path):
    status, _, err = run("explain", "--url", served, picture, "--classifier", trained, "--against", "unicorn")
    assert (status, "no class 'unicorn'" in err) == (1, True)
    status, _, err = run("explain", "--url", served, tmp_path / "none.png", "--classifier", trained)
    assert (status, "No such file" in err) == (1, True)


def test_a_projection_is_compared_with_the_embeddings_as_they_are(served, photos, run, report):
    options = ("--projection", "soft_triple", "--set", "epochs=2")
    told = report("train", "--url", served, "space", photos, *options)
    assert told["projection"] == "space@1"
    with Client(served) as client:
        space = client.projections.get("space")
        assert told["report"] == space.report
        assert client.embed_texts("a star", model=space.model).model == "demo-clip/space@1"
        client.projections.delete("space")
    status, text, err = run("train", "--url", served, "space", photos, *options)
    first, header, *rows = text.splitlines()
    assert (status, err) == (0, "")
    assert first == f"space@1: {len(SCENES)} pictures judged that it had not learned from"
    assert header.split() == ["space", "R@1", "95", "%", "interval", "R@2", "R@4", "R@8", "NMI"]
    assert [row.split()[0] for row in rows] == ["soft_triple", "unprojected"]


def test_a_projection_that_nothing_judges_is_told_by_its_name_and_the_reason(served, photos, run, tmp_path):
    for name in sorted(folder.name for folder in photos.iterdir())[:2]:
        shutil.copytree(photos / name, tmp_path / "few" / name)
    status, text, err = run(
        "train", "--url", served, "few", tmp_path / "few", "--projection", "kda", "--set", "epochs=1"
    )
    assert (status, text) == (0, "few@1\n")
    assert err.startswith("Nothing was judged: that takes 4 labels")


def test_what_is_for_classifiers_is_refused_for_projections(served, photos, run):
    for option in (("--out", "x.safetensors"), ("--prior", "star=1"), ("--keep-examples",)):
        status, _, err = run("train", "--url", served, "space", photos, "--projection", "kda", *option)
        assert (status, "are for classifiers" in err) == (2, True)
