"""Ask the model in this process: each scene is encoded once, answers to many questions are scored in batches.

An answer is right if every token of the right answer, its end included, is the likeliest one given those before it.
That holds exactly when greedy decoding writes it, and needs one forward pass instead of one per token.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from demo_model.questions import KINDS
from torch import Tensor

from covervlm.pruners import Objective, PruneInput, Pruner
from covervlm.server.core.generation import ImagePart, Message
from covervlm.server.demo import clip_path
from covervlm.server.engines.embedded.int8_weights import quantize
from covervlm.server.models.base import ImageTokens
from covervlm.server.models.checkpoint import Checkpoint, load_adapter
from covervlm.server.selection.clip_relevance import ClipRelevance
from evaluation.question_sets import Item, scene_of
from evaluation.records import UNPRUNED, Cell
from evaluation.variants import measured

BATCH_TOKENS = 4096
"""Prompt tokens of one forward pass."""


@dataclass(frozen=True, eq=False)
class Scored:
    """A prompt with the right answer behind it: embeddings (T, d), the answer's ids, and whose it is."""

    item: Item
    cell: Cell
    embeddings: Tensor
    answer: Tensor


class InProcess:
    """The benchmark's questions asked through the same adapter and pruning methods that the server uses."""

    def __init__(self, model_path: Path | str, methods: Sequence[str], quantization: str = "none") -> None:
        self.adapter = load_adapter(Checkpoint(model_path))
        if quantization == "int8":
            quantize(self.adapter)
        self.pruners = {name: measured(name, **self.adapter.architecture.pruner_params) for name in methods}
        self.clip = ClipRelevance(str(clip_path()), self.adapter)

    @torch.inference_mode()
    def ask(self, wanted: Iterable[tuple[Item, Sequence[Cell]]]) -> Iterator[tuple[str, Cell, bool, str | None]]:
        """Yield (question key, cell, correct, None) for every cell wanted of every item, in any order.

        Items about one scene should follow each other: only the last scene's tokens are kept.
        """
        waiting: dict[int, list[Scored]] = defaultdict(list)
        looked_at: tuple[str, int] | None = None
        for item, cells in wanted:
            if (item.set, item.seed) != looked_at:
                looked_at = (item.set, item.seed)
                image = self._look(item)
            for scored in self._prompts(item, cells, image):
                batch = waiting[scored.cell.keep]
                batch.append(scored)
                if len(batch) * len(scored.embeddings) >= BATCH_TOKENS:
                    yield from self.score(waiting.pop(scored.cell.keep))
        for batch in waiting.values():
            yield from self.score(batch)

    def _look(self, item: Item) -> ImageTokens:
        cls_attention = any(pruner.uses_cls_attention for pruner in self.pruners.values())
        inputs = self.adapter.preprocess(scene_of(item.set, item.seed).image)
        return self.adapter.encode([inputs], cls_attention=cls_attention)[0]

    def _prompts(self, item: Item, cells: Sequence[Cell], image: ImageTokens) -> Iterator[Scored]:
        """The item's prompt with the right answer, for every cell."""
        message = Message("user", (ImagePart(scene_of(item.set, item.seed).image, item.key), item.question))
        prompt = self.adapter.tokenize([message])
        tokenizer = self.adapter.chat.tokenizer
        answer = tokenizer(f" {item.answer}", add_special_tokens=False).input_ids
        answer_ids = torch.tensor([*answer, tokenizer.eos_token_id])
        for cell, positions in self._keep(item, cells, image):
            embeddings, _ = self.adapter.assemble(prompt, [image], [positions])
            embeddings = torch.cat([embeddings, self.adapter.embeddings(answer_ids)])
            yield Scored(item, cell, embeddings, answer_ids)

    def _keep(self, item: Item, cells: Sequence[Cell], image: ImageTokens) -> Iterator[tuple[Cell, Tensor | None]]:
        """The kept positions of every cell; None for the unpruned image."""
        (part,) = image.layout.parts
        cosines = None
        if any(self.pruners[cell.method].uses_clip for cell in cells if cell.method != UNPRUNED):
            cosines = self.clip.cosines(image.features, self.clip.text(item.question))
        with_question = PruneInput(
            tokens=image.tokens,
            features=image.features,
            text=self.adapter.question_embeddings(item.question),
            grid=part.grid,
            cls_attention=image.cls_attention,
            clip_cosines=cosines,
            seed=question_seed(item),
        )
        budgets: dict[str, list[int]] = defaultdict(list)
        for cell in cells:
            if cell.method == UNPRUNED:
                yield cell, None
            else:
                budgets[cell.method].append(cell.keep)
        for method, counts in budgets.items():
            pruner = self.pruners[method]
            seen = with_question if pruner.uses_text else replace(with_question, text=None)
            for count, positions in selections(pruner, seen, counts).items():
                yield Cell(method, count), positions

    def score(self, batch: list[Scored]) -> Iterator[tuple[str, Cell, bool, str | None]]:
        """What `ask` yields, for prompts that are read together."""
        longest = max(len(scored.embeddings) for scored in batch)
        # Padded on the right, where a causal model cannot see it.
        padded = torch.stack([F.pad(s.embeddings, (0, 0, 0, longest - len(s.embeddings))) for s in batch])
        states = self.adapter.language_model(inputs_embeds=padded, use_cache=False).last_hidden_state
        for scored, row in zip(batch, states, strict=True):
            end = len(scored.embeddings) - 1
            logits = self.adapter.lm_head(row[end - len(scored.answer) : end])
            yield scored.item.key, scored.cell, bool((logits.argmax(-1) == scored.answer).all()), None


def selections(pruner: Pruner, seen: PruneInput, counts: Sequence[int]) -> dict[int, Tensor]:
    """What `pruner.select` keeps for each count, from one run of the method where its picks are nested."""
    objective = Objective([seen], tau_text=pruner.tau_text, tau_vision=pruner.tau_vision, alpha=pruner.alpha)
    if not pruner.nested:
        return {count: pruner.pick([seen], [count], objective)[0].sort().values for count in counts}
    order = pruner.pick([seen], [max(counts)], objective)[0]
    return {count: order[:count].sort().values for count in counts}


def question_seed(item: Item) -> int:
    """The seed of methods that choose at random: different for every question, the same over HTTP and in process."""
    return item.seed * len(KINDS) + KINDS.index(item.kind)
