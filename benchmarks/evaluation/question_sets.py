"""The questions of the accuracy benchmark: fixed lists over scenes that no training and no tuning has touched."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from demo_model.hard_scenes import make_hard_scene
from demo_model.questions import ask
from demo_model.scenes import Scene, make_scene
from demo_model.splits import FIRST_SEED

SETS: dict[str, Callable[[int], Scene]] = {"standard": make_scene, "hard": make_hard_scene}
SPLITS = {
    "evaluation": {"standard": "quality", "hard": "quality_hard"},
    "tuning": {"standard": "tuning", "hard": "tuning_hard"},
}
DEFAULT_KINDS = ("color", "shape", "exist", "where")


@dataclass(frozen=True)
class Item:
    """One question about one scene; at most one of each kind is asked about a scene."""

    set: str
    seed: int
    kind: str
    question: str
    answer: str

    @property
    def key(self) -> str:
        return f"{self.set}/{self.seed}/{self.kind}"


@cache
def scene_of(set_name: str, seed: int) -> Scene:
    return SETS[set_name](seed)


def question_set(
    set_name: str, count: int, kinds: Sequence[str] = DEFAULT_KINDS, *, split: str = "evaluation"
) -> list[Item]:
    """`count` questions, equally many of each kind (the first kinds get one more if the count does not divide).

    Which question is asked about a scene does not depend on `count`, so for each kind a longer list starts with the
    shorter one. About scenes of even seed the yes/no question has the answer yes, about those of odd seed no.
    Raises ValueError for kinds that the set's scenes cannot answer.
    """
    wanted = {kind: count // len(kinds) + (i < count % len(kinds)) for i, kind in enumerate(kinds)}
    if set_name == "hard" and not set(kinds) <= set(DEFAULT_KINDS):
        raise ValueError(f"hard scenes answer questions of kind {', '.join(DEFAULT_KINDS)} only")
    items: list[Item] = []
    seed = FIRST_SEED[SPLITS[split][set_name]]
    while any(wanted.values()):
        # Only laid out: a scene is painted when its image is first used.
        found = ask(SETS[set_name](seed), np.random.default_rng(seed))
        for kind in kinds:
            fitting = [q for q in found if q.kind == kind]
            if kind == "exist":
                fitting = [q for q in fitting if q.answer == ("no" if seed % 2 else "yes")]
            if wanted[kind] and fitting:
                chosen = fitting[seed % len(fitting)]
                items.append(Item(set_name, seed, kind, chosen.text, chosen.answer))
                wanted[kind] -= 1
        seed += 1
    return items
