"""How much is measured: FULL on a GPU; TINY in Triton's interpreter, where only errors count."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """A LLaVA by its sizes: of the language model, then of the CLIP tower. tiles: LLaVA-NeXT, which cuts images."""

    name: str
    width: int
    mlp: int
    layers: int
    heads: int
    vocabulary: int = 32064
    tower_width: int = 1024
    tower_mlp: int = 4096
    tower_layers: int = 24
    tower_heads: int = 16
    side: int = 336
    tiles: bool = False


@dataclass(frozen=True)
class Serving:
    """A model under load. budgets: vision tokens kept, None for all. at_once: requests together."""

    shape: Shape
    budgets: tuple[int | None, ...]
    at_once: tuple[int, ...]


@dataclass(frozen=True)
class Sizes:
    """kernel_tests: files and pytest's -k. dtypes: n, k, d of the sweep. selections: images, n, k. repetitions: of what
    a median is taken. questions: to the demo model. servings: by the part that runs it. answer: tokens of an answer.
    """

    kernel_tests: tuple[str, ...]
    dtypes: tuple[int, int, int]
    selections: tuple[tuple[int, int, int], ...]
    widths: tuple[int, ...]
    repetitions: int
    questions: int
    kept: int
    servings: dict[str, Serving]
    answer: int


_7B = {"width": 4096, "mlp": 11008, "layers": 32, "heads": 32}
_13B = {"width": 5120, "mlp": 13824, "layers": 40, "heads": 40}
_TINY = Shape("tiny", 32, 48, 2, 2, 512, 32, 48, 3, 2, side=56)
_TINY_NEXT = Shape("tiny NeXT", 32, 48, 2, 2, 512, 32, 48, 3, 2, side=56, tiles=True)

FULL = Sizes(
    kernel_tests=(
        "tests/kernels/test_coverage_affinity.py",
        "tests/kernels/test_golden_kernels.py",
        "tests/kernels/test_greedy_max_coverage.py",
        *("-k", "triton or torch or programs"),
    ),
    dtypes=(576, 64, 1024),
    selections=((1, 576, 32), (1, 576, 64), (5, 576, 32), (1, 2880, 160)),
    widths=(1024, 4096),
    repetitions=50,
    questions=16,
    kept=64,
    servings={
        "7b": Serving(Shape("LLaVA-1.5-7B", **_7B), (None, 192, 64), (1, 8, 32)),
        "13b": Serving(Shape("LLaVA-1.5-13B", **_13B), (None, 192, 64), (1, 8, 32)),
        "next-13b": Serving(Shape("LLaVA-NeXT-13B", **_13B, tiles=True), (None, 160), (1, 4, 8)),
    },
    answer=16,
)
TINY = Sizes(
    kernel_tests=("tests/kernels/test_coverage_affinity.py", "-k", "rows_sum_to_their_weights"),
    dtypes=(40, 6, 16),
    selections=((1, 40, 6), (2, 40, 6)),
    widths=(16,),
    repetitions=2,
    questions=2,
    kept=8,
    servings={
        "7b": Serving(_TINY, (None, 6, 3), (1, 2)),
        "next-13b": Serving(_TINY_NEXT, (None, 10), (1, 2)),
    },
    answer=3,
)
