"""What shadows say of answers is what transformers' own model says of them, computed apart from the server."""

from collections import Counter
from dataclasses import replace

import pytest
import torch

from covervlm.pruners import PruneInput, get_pruner
from covervlm.server.core.agreement import AnswerScores, agreement
from covervlm.server.core.caller import InFlight
from covervlm.server.models.processor import visual_words
from covervlm.server.shadow.shadows import ShadowConfig, Shadows
from tests.server.engines.gated import until

KEEP = 16
QUESTIONS = ["What color is the star?", "Describe the image.", "How many objects are there?", "Where is the square?"]


class Seen:
    """An observer that adds everything up."""

    def __init__(self):
        self.compared_answers = []
        self.outcomes = Counter()

    def compared(self, method, budget, seen):
        self.outcomes["compared"] += 1
        self.compared_answers.append((method, budget, seen))

    def dropped(self, why, count):
        self.outcomes[why] += count


@torch.inference_mode()
def read(plain, image, question, answer, keep):
    """transformers' model reads prompt and answer in one pass: log probabilities (N, V) in the answer's places."""
    model, tokenizer = plain.model, plain.processor.tokenizer
    pixels = plain.processor.image_processor(image, return_tensors="pt").pixel_values
    features = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-2][0, 1:]
    tokens, embed = model.model.multi_modal_projector(features), model.get_input_embeddings()
    if keep is not None:
        words = tokenizer("".join(f" {w}" for w in visual_words(question)), add_special_tokens=False).input_ids
        [kept] = get_pruner("mmtok").select([PruneInput(tokens, features, embed(torch.tensor(words)))], keep)
        tokens = tokens[kept]
    before = tokenizer("USER: ").input_ids
    after = tokenizer(f"\n{question} ASSISTANT:", add_special_tokens=False).input_ids
    sequence = torch.cat([embed(torch.tensor(before)), tokens, embed(torch.tensor([*after, *answer]))])
    hidden = model.model.language_model(inputs_embeds=sequence[None], use_cache=False).last_hidden_state
    return model.lm_head(hidden[0, -len(answer) - 1 : -1]).log_softmax(-1)


async def served(shadows, engine, request):
    """The answer's tokens, read as a route reads them."""
    return [token async for chunk in shadows.watch(request, engine.generate(request)) for token in chunk.token_ids]


async def test_agreement_divergence_and_likelihoods_equal_the_offline_figures(engine, plain, ask, scene):
    seen = Seen()
    shadows = Shadows(engine, InFlight(2**30), seen, ShadowConfig(1.0, budgets={str(KEEP)}))
    answers = {}
    for number, question in enumerate(QUESTIONS * 2):
        request = ask(scene(number), question, pruning={"keep_tokens": KEEP}, max_tokens=12)
        answers[number] = await served(shadows, engine, request)
    await until(lambda: engine.stats().running == 0)
    before = engine.stats()
    shadows.start()
    await until(lambda: seen.outcomes.total() == len(answers))
    await shadows.stop()
    assert seen.outcomes == {"compared": len(answers)}
    assert engine.stats() == before
    differing = 0
    for number, (method, budget, found) in enumerate(seen.compared_answers):
        answer, question = answers[number], (QUESTIONS * 2)[number]
        unpruned = read(plain, scene(number), question, answer, None)
        agrees = [a == b for a, b in zip(answer, unpruned.argmax(-1).tolist(), strict=True)]
        assert (method, budget) == ("mmtok", str(KEEP))
        assert (found.tokens, found.agreeing, found.exact) == (len(answer), sum(agrees), all(agrees))
        assert found.first_divergence == (agrees.index(False) if False in agrees else None)
        places = range(len(answer)), answer
        assert found.reference_nats == pytest.approx(-float(unpruned[places].sum()), rel=1e-3, abs=1e-3)
        pruned = read(plain, scene(number), question, answer, KEEP)
        assert found.served_nats == pytest.approx(-float(pruned[places].sum()), rel=1e-3, abs=1e-3)
        differing += not all(agrees)
    assert differing, "a comparison that finds no difference proves nothing"


async def test_a_random_selection_is_read_again_with_the_seed_that_made_it(engine, ask, scene):
    seen = Seen()
    shadows = Shadows(engine, InFlight(2**30), seen, ShadowConfig(1.0))
    policy = {"keep_tokens": 576 - 1, "method": "random"}
    request = ask(scene(3), QUESTIONS[1], pruning=policy, temperature=1.5, seed=11, max_tokens=20)
    answer = await served(shadows, engine, request)
    scores = [
        await engine.score(replace(request, pruning=replace(request.pruning, seed=seed)), answer)
        for seed in (11, 11, 12)
    ]
    found = await shadows._compare(await shadows._waiting.pop())
    assert found.tokens == len(answer)
    assert scores[0] == scores[1] != scores[2]
    assert found.served_nats == pytest.approx(scores[0].nats, rel=1e-4)


def test_drawn_tokens_count_by_what_both_models_would_have_chosen():
    answer = [5, 6, 7]
    one = AnswerScores([-3.0, -0.1, -2.0], [1, 6, 2], [-0.1, -0.1, -0.5])
    other = AnswerScores([-2.0, -0.7, -0.6], [1, 9, 7], [-0.3, -0.6, -0.6])
    found = agreement(answer, one, other, likeliest_only=False)
    assert (found.tokens, found.agreeing, found.first_divergence, found.exact) == (3, 1, 1, False)
    assert found.lost_per_token == pytest.approx((3.3 - 5.1) / 3)
    greedy = agreement(answer, one, other, likeliest_only=True)
    assert (greedy.agreeing, greedy.first_divergence) == (1, 0)


def test_what_is_impossible_is_finite_and_what_is_not_a_number_is_refused():
    fine, never = AnswerScores([-0.5], [1], [-0.5]), AnswerScores([float("-inf")], [2], [-0.1])
    assert agreement([1], fine, never, likeliest_only=True).lost_per_token == pytest.approx(99.5)
    with pytest.raises(ValueError, match="not finite"):
        agreement([1], fine, AnswerScores([float("nan")], [2], [float("nan")]), likeliest_only=True)
