"""OnZeta on streams of one class out of four: what `docs/clip.md` says of its balanced prior, by the demo model."""

import pytest
from clip_space.class_proxies import class_proxies

from covervlm.server.clip.encoder.encoder import ClipEncoder
from covervlm.server.clip.methods.onzeta import OnZeta
from covervlm.server.demo import clip_path
from tests.server.api.clip_app import scenes

NAMES = ["star", "circle", "triangle", "square"]


@pytest.fixture(scope="module")
def encoder():
    return ClipEncoder(str(clip_path()), device="cpu")


@pytest.fixture(scope="module")
def pictures(encoder):
    """The embeddings of 24 pictures of one thing, for each name."""
    found = {name: [] for name in NAMES}
    for scene in scenes(240):
        mine = found.get(scene.objects[0].shape, [None] * 24)
        if len(mine) < 24:
            mine.append(encoder.preprocess(scene.image))
    return {name: encoder.embed_pixels(pixels) for name, pixels in found.items()}


@pytest.mark.parametrize("name", NAMES)
def test_a_stream_of_one_class_loses_a_third_of_its_labels_unless_the_prior_moves_slowly(encoder, pictures, name):
    text, number = class_proxies(encoder.embed_texts, NAMES), NAMES.index(name)
    rows = pictures[name]

    def right(**parameters):
        stream = OnZeta(**parameters).open(text, len(rows))
        return sum(int(stream.observe(row).combined.argmax()) == number for row in rows)

    assert int(((rows @ text).argmax(dim=1) == number).sum()) >= 23
    assert 15 <= right() <= 17
    assert right(learning_rate_rho=5.0) >= 22
    assert right(learning_rate_rho=0.0) >= 22
    assert right(alpha=0.25) >= 22
    assert right(alpha=0.1) >= 22
    assert right(alpha=0.0) == right(learning_rate_rho=0.0)
