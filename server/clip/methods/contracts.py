"""What a CLIP method is: its parameters as a frozen dataclass, and one of four contracts. Torch in, torch out."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, ClassVar, Generic, Protocol, TypeVar, get_type_hints

import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor
from torch.nn.functional import cosine_similarity, linear, normalize, relu

from covervlm.server.clip.methods.kmeans import choose_clusters, kmeans


class Diverged(ArithmeticError):
    """The parameters do not suit the data: what was learned is not finite."""

    def __init__(self) -> None:
        super().__init__("learning diverged; lower the learning rates or raise the temperatures")


class Progress(Protocol):
    """Receives the share of the work done, in (0, 1], and figures worth showing; what it raises ends the work."""

    def __call__(self, share: float, /, **figures: float) -> None: ...


def silent(share: float, /, **figures: float) -> None:
    """Progress that nobody watches."""


@dataclass(frozen=True)
class Method:
    """Fields are parameters, annotated with their bounds: `tau: Annotated[float, Gt(0), Le(10)] = 0.01`.

    From them come the schema of the API, the checks here, and the documentation. ValueError outside the bounds.
    """

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self), include_extras=True)
        for name in (field.name for field in fields(self)):
            value = getattr(self, name)
            for bound in getattr(hints[name], "__metadata__", ()):
                match bound:
                    case Gt(gt=limit):
                        holds, word = value > limit, "above"
                    case Ge(ge=limit):
                        holds, word = value >= limit, "at least"
                    case Lt(lt=limit):
                        holds, word = value < limit, "below"
                    case Le(le=limit):
                        holds, word = value <= limit, "at most"
                    case _:
                        continue
                if not holds:
                    raise ValueError(f"{name} must be {word} {limit}, not {value}")


# Fit: from examples to a head.


@dataclass(frozen=True, eq=False)
class Examples:
    """What a head is learned from. ValueError where sizes or values do not fit.

    features: (n, d) with rows of unit length. text: (d, K), K >= 2, a unit column for each class. labels: (n,) int64
    numbers of classes, not all of which need examples. groups: (n,) int64, by which errors are to be alike.
    second_views: (n, d), another view of each image, such as a random crop.
    """

    features: Tensor
    text: Tensor | None = None
    labels: Tensor | None = None
    groups: Tensor | None = None
    second_views: Tensor | None = None

    def __post_init__(self) -> None:
        check_rows(self.features)
        if self.text is not None:
            check_text(self.text)
            if self.features.shape[1] != len(self.text):
                raise ValueError(f"features have {self.features.shape[1]} dimensions, text proxies {len(self.text)}")
        for name in ("labels", "groups"):
            numbers = getattr(self, name)
            if numbers is None:
                continue
            if numbers.shape != self.features.shape[:1]:
                raise ValueError(f"{len(self.features)} images need as many {name}")
            if numbers.is_floating_point() or int(numbers.min()) < 0:
                raise ValueError(f"{name} must be whole numbers from 0")
        if self.labels is not None and int(self.labels.max()) >= self.classes:
            raise ValueError(f"a label is {int(self.labels.max())}, but there are {self.classes} classes")
        if self.second_views is not None:
            check_rows(self.second_views)
            if self.second_views.shape != self.features.shape:
                raise ValueError("there must be as many second views as images, of as many dimensions")

    @property
    def classes(self) -> int:
        """How many classes a head distinguishes: those with text, else those up to the highest label."""
        if self.text is not None:
            return self.text.shape[1]
        return 0 if self.labels is None else int(self.labels.max()) + 1


@dataclass(frozen=True, eq=False)
class Head:
    """A linear classifier: softmax(features @ proxies / temperature). proxies: (d, K)."""

    proxies: Tensor
    temperature: float

    def logits(self, features: Tensor) -> Tensor:
        """(n, K) from features (n, d)."""
        return features @ self.proxies / self.temperature


@dataclass(frozen=True, eq=False)
class Network:
    """A classifier of layers with ReLU between them. weights: (out, in) of each layer, biases: (out,)."""

    weights: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]

    def logits(self, features: Tensor) -> Tensor:
        """(n, K) from features (n, d)."""
        *hidden, last = zip(self.weights, self.biases, strict=True)
        for weight, bias in hidden:
            features = relu(linear(features, weight, bias))
        return linear(features, *last)


@dataclass(frozen=True, eq=False)
class Projection:
    """Another space for search. matrix: (d', d)."""

    matrix: Tensor

    def embed(self, features: Tensor) -> Tensor:
        """(n, d') unit rows from features (n, d)."""
        return normalize(features @ self.matrix.T, dim=1)


Learned = TypeVar("Learned", bound=Head | Network | Projection, covariant=True)


@dataclass(frozen=True)
class Fit(Method, ABC, Generic[Learned]):
    """Learns a Head, a Network or a Projection. `needs` names the examples' fields without which it cannot.

    tuned: values that are worth trying of parameters that suit some data only. balanced: whether classes weigh alike,
    however many examples they have.
    """

    needs: ClassVar[tuple[str, ...]] = ("text",)
    tuned: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    balanced: ClassVar[bool] = False

    @abstractmethod
    def learn(self, examples: Examples, *, seed: int, progress: Progress) -> Learned:
        """What is learned, in the dtype and on the device of the features. The same seed gives the same."""

    def fit(self, examples: Examples, *, seed: int = 0, progress: Progress = silent) -> Learned:
        """What was learned. ValueError where the examples lack what the method needs; Diverged."""
        for name in self.needs:
            if getattr(examples, name) is None:
                raise ValueError(f"{name} is needed to learn by this method")
        learned = self.learn(examples, seed=seed, progress=progress)
        if not all(bool(tensor.isfinite().all()) for tensor in _tensors(learned)):
            raise Diverged
        return learned


def _tensors(learned: Head | Network | Projection) -> Iterator[Tensor]:
    for field in fields(learned):
        value = getattr(learned, field.name)
        yield from (part for part in (value if isinstance(value, tuple) else (value,)) if isinstance(part, Tensor))


# Stream: images that are answered and learned from one by one.


class Prediction(Protocol):
    """The answer to one image: its place in the stream, from 0, and the distribution over the classes, (K,)."""

    @property
    def index(self) -> int: ...

    @property
    def combined(self) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class Moved:
    """What became of a stream's classes or groups since its start, (K,) each.

    drift: one less the cosine of what is learned of them and their text; 0 for no move, 1 for a right angle. sizes: how
    many images each holds, where the method counts them.
    """

    drift: Tensor
    sizes: Tensor | None = None

    @classmethod
    def of(cls, now: Tensor, start: Tensor, sizes: Tensor | None = None) -> "Moved":
        """now, start: (d, K)."""
        return cls((1 - cosine_similarity(now, start, dim=0)).clamp_min(0), sizes)


class RunningStream(Protocol):
    """One stream, used by one thread at a time. States are values of the method's `state` class."""

    @property
    def observed(self) -> int:
        """How many images were learned from."""

    def observe(self, feature: Tensor) -> Prediction:
        """Answer one unit-length image (d,), then learn from it. ValueError, and no update, where it does not fit."""

    def observe_all(self, features: Tensor) -> Sequence[Prediction]:
        """The same for images (n, d) that came together, in their order."""

    def moved(self) -> Moved:
        """How far what is learned has moved from the text, and how large the groups are."""

    def snapshot(self) -> Any:
        """A copy of the state, which later images do not touch."""

    def check(self, state: Any) -> None:
        """ValueError where `state` belongs to other classes or is damaged."""

    def restore(self, state: Any) -> None:
        """Go on from `state`; ValueError, and no change, where it does not fit."""


@dataclass(frozen=True)
class Stream(Method, ABC):
    """Opens streams. `state`: a dataclass of tensors and whole numbers, `observed` among them, that can be stored."""

    state: ClassVar[type]

    @abstractmethod
    def open(self, text: Tensor, horizon: int) -> RunningStream:
        """A new stream, expected to be `horizon` images long, over the classes or groups that `text` (d, K) starts."""


# Group: images that belong together by an aspect.


class WordEncoder(Protocol):
    """A prompt with one free word. `encode` takes (b, d_w) embeddings to (b, d) unit vectors and is differentiable."""

    def encode(self, word: Tensor) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class Pictures:
    """Images to group and the words for an aspect of theirs. ValueError where sizes or values do not fit.

    hidden: (n, d_v) vision features before `projection` (d, d_v). prompt: encodes a word in its sentence. concept:
    (d_w,) embedding of the aspect's name. references: (m, d_w), m >= 2, embeddings of the aspect's possible values.
    """

    hidden: Tensor
    projection: Tensor
    prompt: WordEncoder
    concept: Tensor
    references: Tensor

    def __post_init__(self) -> None:
        check_rows(self.hidden)
        if self.projection.ndim != 2 or self.projection.shape[1] != self.hidden.shape[1]:
            raise ValueError("the projection does not fit the features' dimensions")
        if self.references.ndim != 2 or len(self.references) < 2:
            raise ValueError("at least two reference words are needed")
        if self.concept.shape != self.references.shape[1:]:
            raise ValueError("concept and reference words have different dimensions")

    @cached_property
    def images(self) -> Tensor:
        """(n, d) image embeddings of unit length."""
        return normalize(self.hidden @ self.projection.T, dim=1)

    def nearest_words(self, images: Tensor | None = None) -> Tensor:
        """(n,) int64: the reference word whose prompt lies closest to each of the images, or of other points (n, d)."""
        with torch.no_grad():
            return ((self.images if images is None else images) @ self.prompt.encode(self.references).T).argmax(dim=1)


@dataclass(frozen=True, eq=False)
class Placed:
    """Images as points (n, p) that lie together where the aspect is the same, and each one's reference word, (n,)."""

    points: Tensor
    words: Tensor


@dataclass(frozen=True, eq=False)
class Groups(Placed):
    """labels: (n,) int64 numbers of groups, by falling size."""

    labels: Tensor


@dataclass(frozen=True)
class Group(Method, ABC):
    """Groups images by placing them, or by a `group` of its own. `seeded_by_words`: k-means starts from the words."""

    seeded_by_words: ClassVar[bool] = True

    @abstractmethod
    def place(self, pictures: Pictures, *, seed: int, progress: Progress) -> Placed:
        """The points that k-means groups, in the features' dtype. The same seed gives the same points."""

    def group(self, pictures: Pictures, count: int | None, *, seed: int = 0, progress: Progress = silent) -> Groups:
        """`count` groups, or as many as silhouettes suggest. ValueError for more groups than images; Diverged."""
        placed = self.place(pictures, seed=seed, progress=progress)
        if not bool(placed.points.isfinite().all()):
            raise Diverged

        def tick() -> None:
            progress(1.0)

        count = count or choose_clusters(placed.points, seed=seed, tick=tick)
        # Learned points lie by word already; k-means from random starts may find another aspect's groups in them.
        start = placed.words if self.seeded_by_words else None
        return Groups(placed.points, placed.words, kmeans(placed.points, count, groups=start, seed=seed, tick=tick))


# Explain: why a head answers as it does.


@dataclass(frozen=True)
class Explain(Method, ABC):
    """Explains a head's answer to one image."""

    @abstractmethod
    def explain(self, head: Head | Network, feature: Tensor) -> Mapping[str, Tensor]:
        """Evidence by name, e.g. `contributions` (K, d) of the feature's (d,) coordinates to each class's score."""


def check_rows(features: Tensor) -> None:
    """ValueError unless these are features (n, d) of at least one image, without NaN or infinity."""
    if features.ndim != 2:
        raise ValueError("features must be (images, dimensions)")
    if not len(features):
        raise ValueError("at least one image is needed")
    if not bool(features.isfinite().all()):
        raise ValueError("features must be finite numbers")


def check_text(text: Tensor) -> None:
    """ValueError unless this is (d, K), K >= 2, without NaN or infinity."""
    if text.ndim != 2 or text.shape[1] < 2:
        raise ValueError("text proxies must be (dimensions, classes) with at least two classes")
    if not bool(text.isfinite().all()):
        raise ValueError("text proxies must be finite numbers")
