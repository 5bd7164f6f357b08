"""Questions about a scene that have exactly one right answer, in the demo model's vocabulary."""

from dataclasses import dataclass

import numpy as np

from demo_model.scenes import COLOR_NAMES, SHAPES, Scene

NUMBERS = ["zero", "one", "two", "three", "four", "five"]
PLACES = ["top left", "top right", "bottom left", "bottom right", "center"]

TEMPLATES = {
    "color": ["What color is the {s}?", "What is the color of the {s}?", "Which color does the {s} have?"],
    "shape": [
        "What shape is the {c} object?",
        "What is the shape of the {c} object?",
        "Which shape does the {c} object have?",
    ],
    "exist": ["Is there {a} {c} {s} in the image?", "Does the image contain {a} {c} {s}?", "Can you see {a} {c} {s}?"],
    "count": ["How many objects are there?", "How many objects are in the image?", "Count the objects in the image."],
    "where": [
        "Where is the {c} {s}?",
        "Where in the image is the {c} {s}?",
        "In which part of the image is the {c} {s}?",
    ],
    "describe": [
        "Describe the image.",
        "What is in the image?",
        "What do you see in this image?",
        "Describe this image in detail.",
    ],
}
KINDS = list(TEMPLATES)


@dataclass(frozen=True)
class Question:
    """A question with its only right answer; `targets` are the indices of the objects it is about."""

    kind: str
    text: str
    answer: str
    targets: tuple[int, ...]


def article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def caption(scene: Scene) -> str:
    """All objects from left to right: 'a red star, a blue ring and a green square'."""
    names = [f"{article(o.color)} {o.color} {o.shape}" for o in sorted(scene.objects, key=lambda o: o.cx)]
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


def ask(scene: Scene, rng: np.random.Generator) -> list[Question]:
    """Every question that the scene answers without ambiguity, worded by `rng`.

    A colour is asked of a shape that occurs once, a shape of a colour that occurs once, a place only well inside its
    part of the image. There are as many "no" as "yes" answers; where the scene allows it, three in four of the "no"
    ones name a colour and a shape that are both present but never together. Scenes of more than five objects, which
    the model cannot count, get no count and no description.
    """
    objects = scene.objects
    found: list[Question] = []

    def word(kind: str, *, c: str = "", s: str = "") -> str:
        return str(rng.choice(TEMPLATES[kind])).format(a=article(c) if c else "", c=c, s=s)

    shapes, colors = [o.shape for o in objects], [o.color for o in objects]
    for i, o in enumerate(objects):
        if shapes.count(o.shape) == 1:
            found.append(Question("color", word("color", s=o.shape), o.color, (i,)))
        if colors.count(o.color) == 1:
            found.append(Question("shape", word("shape", c=o.color), o.shape, (i,)))
        if o.place:
            found.append(Question("where", word("where", c=o.color, s=o.shape), o.place, (i,)))
    have = {(o.shape, o.color) for o in objects}
    hard = [(s, c) for s in sorted(set(shapes)) for c in sorted(set(colors)) if (s, c) not in have]
    easy = [(s, c) for s in SHAPES for c in COLOR_NAMES if (s, c) not in have and (s, c) not in hard]
    pairs = min(2, len(objects))
    for i in rng.permutation(len(objects))[:pairs]:
        o = objects[i]
        found.append(Question("exist", word("exist", c=o.color, s=o.shape), "yes", (int(i),)))
    for _ in range(pairs):
        pool = hard if hard and (not easy or rng.random() < 0.75) else easy
        s, c = pool.pop(int(rng.integers(len(pool))))
        near = tuple(i for i, o in enumerate(objects) if o.shape == s or o.color == c)
        found.append(Question("exist", word("exist", c=c, s=s), "no", near))
    if len(objects) < len(NUMBERS):
        everything = tuple(range(len(objects)))
        found.append(Question("count", word("count"), NUMBERS[len(objects)], everything))
        found.append(Question("describe", word("describe"), caption(scene), everything))
    return found
