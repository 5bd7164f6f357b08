"""The demo model's scenes: the same pixels for ever, and no question with two answers."""

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
from demo_model.drawing import COLORS, SIZE, draw_mask
from demo_model.hard_scenes import MIN_VISIBLE, make_hard_scene
from demo_model.labels import patch_labels
from demo_model.questions import NUMBERS, PLACES, ask
from demo_model.scenes import SHAPES, make_scene
from demo_model.splits import FIRST_SEED

REFERENCE = json.loads(Path(__file__).with_name("scene_hashes.json").read_text())
TESTS = FIRST_SEED["tests"]


@pytest.mark.parametrize("expected", REFERENCE, ids=lambda entry: str(entry["seed"]))
def test_a_seed_gives_the_pixels_and_questions_that_the_shipped_model_was_trained_on(expected):
    scene = make_scene(expected["seed"], expected["objects"])
    pixels = np.asarray(scene.image)
    assert pixels.shape == (336, 336, 3)
    assert hashlib.sha256(pixels.tobytes()).hexdigest() == expected["pixels"]
    asked = [(q.kind, q.text, q.answer) for q in ask(scene, np.random.default_rng(expected["seed"]))]
    assert hashlib.sha256(json.dumps(asked).encode()).hexdigest() == expected["questions"]


@pytest.mark.parametrize("make", [make_scene, make_hard_scene])
def test_scenes_of_one_seed_are_equal_and_of_two_seeds_differ(make):
    first, again, other = (np.asarray(make(seed).image) for seed in (TESTS, TESTS, TESTS + 1))
    assert (first == again).all()
    assert (first != other).mean() > 0.5


def test_splits_do_not_overlap():
    starts = sorted(FIRST_SEED.values())
    assert len(set(starts)) == len(starts)
    assert min(np.diff(starts)) >= 500_000  # the largest split that anything draws has 17,377 scenes


# ---- an independent reading of the questions: words of the question against the list of objects, no templates


def place_of(cx: float, cy: float) -> str | None:
    dx, dy = cx - SIZE / 2, cy - SIZE / 2
    if max(abs(dx), abs(dy)) < 0.11 * SIZE:
        return "center"
    if abs(dx) < 0.1 * SIZE or abs(dy) < 0.1 * SIZE:
        return None
    return f"{'bottom' if dy > 0 else 'top'} {'right' if dx > 0 else 'left'}"


def answers(question: str, objects: list) -> set[str]:
    """Every answer that some reading of the question allows; exactly one if the question is unambiguous."""
    words = re.findall(r"\w+", question.lower())
    shapes = [word for word in words if word in SHAPES]
    colors = [word for word in words if word in COLORS]
    matching = [o for o in objects if o.shape in (shapes or SHAPES) and o.color in (colors or COLORS)]
    if words[0] in ("is", "does", "can"):
        return {"yes" if matching else "no"}
    if "where" in words or "part" in words:
        return {str(place_of(o.cx, o.cy)) for o in matching}
    if "many" in words or "count" in words:
        return {NUMBERS[len(objects)]}
    if "color" in words:
        return {o.color for o in matching}
    assert "shape" in words, question
    return {o.shape for o in matching}


@pytest.mark.parametrize("make", [make_scene, make_hard_scene])
def test_every_question_has_exactly_one_answer_that_can_be_read_off_the_objects(make):
    kinds = set()
    for seed in range(TESTS, TESTS + 60):
        scene = make(seed)
        for q in ask(scene, np.random.default_rng(seed)):
            if q.kind == "describe":
                continue
            kinds.add(q.kind)
            assert answers(q.text, scene.objects) == {q.answer}, (seed, q.text)
            assert set(q.targets) <= set(range(len(scene.objects)))
    assert kinds >= {"color", "shape", "exist", "where"}


def test_answers_stay_in_the_models_vocabulary_and_hard_scenes_are_not_counted():
    allowed = {*SHAPES, *COLORS, *PLACES, *NUMBERS, "yes", "no"}
    for seed in range(TESTS, TESTS + 40):
        hard = ask(make_hard_scene(seed), np.random.default_rng(seed))
        assert {q.answer for q in hard} <= allowed
        assert {q.kind for q in hard} <= {"color", "shape", "exist", "where"}
        easy = ask(make_scene(seed), np.random.default_rng(seed))
        assert {q.answer for q in easy if q.kind != "describe"} <= allowed


@pytest.mark.parametrize("make", [make_scene, make_hard_scene])
def test_yes_and_no_are_asked_equally_often(make):
    for seed in range(TESTS, TESTS + 30):
        said = [q.answer for q in ask(make(seed), np.random.default_rng(seed)) if q.kind == "exist"]
        assert said.count("yes") == said.count("no") > 0


def test_hard_scenes_are_crowded_overlap_and_leave_every_object_mostly_visible():
    overlapping, textured = 0, 0
    for seed in range(TESTS, TESTS + 40):
        scene = make_hard_scene(seed)
        assert 8 <= len(scene.objects) <= 12
        assert len({(o.shape, o.color) for o in scene.objects}) == len(scene.objects)
        covered = np.zeros((SIZE, SIZE))
        for o in reversed(scene.objects):
            mask = draw_mask(o.shape, o.cx, o.cy, o.size, o.angle).full()
            share = (mask * (1 - covered)).sum() / mask.sum()
            assert share >= MIN_VISIBLE - 0.01
            overlapping += share < 0.999
            textured += o.texture is not None
            covered = np.maximum(covered, mask)
    assert overlapping > 20
    assert textured > 100


def test_patch_labels_name_the_object_that_one_sees_there():
    scene = make_scene(TESTS + 3)
    labels = patch_labels(scene)
    pixels = np.asarray(scene.image, np.float32).reshape(24, 14, 24, 14, 3).mean((1, 3)).reshape(576, 3)
    for i, thing in enumerate(scene.objects):
        filled = (labels.owner == i) & (scene.visible[i].reshape(-1) > 0.99)
        if filled.any():
            shown = pixels[filled].mean(0)
            nearest = min(COLORS, key=lambda name: np.abs(np.array(COLORS[name]) - shown).sum())
            assert nearest == thing.color
    assert labels.core.sum() == len(scene.objects)
    mirrored = labels.mirrored()
    assert (mirrored.owner.reshape(24, 24) == labels.owner.reshape(24, 24)[:, ::-1]).all()
    assert (mirrored.mirrored().center == labels.center).all()
