"""The values of a generation on their way to an engine and back: no HTTP on this side, no tensors on the other."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from PIL.Image import Image

from covervlm.server.core.caller import Caller
from covervlm.server.core.errors import InvalidRequest
from covervlm.server.core.grammar import Grammar

FinishReason = Literal["stop", "length"]


Guide = Literal["last_user", "all_user", "first_user", "none", "agent"]
Recipe = Literal["default", "released"]


@dataclass(frozen=True, eq=False)
class ImagePart:
    """A checked RGB image; `digest` is the SHA-256 of its pixels and size, the key of every cache."""

    image: Image
    digest: str


@dataclass(frozen=True, eq=False)
class VideoPart:
    """A clip as checked RGB frames of one size, `fps` of them to a second; `digest` covers all frames and fps."""

    frames: tuple[Image, ...]
    digest: str
    fps: float = 2.0


@dataclass(frozen=True)
class ToolCall:
    """A function that an assistant's turn has called; `arguments` is JSON."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class Function:
    """What an answer may call; `parameters` is a JSON schema of an object. strict: refuse what cannot be enforced."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict, hash=False)
    strict: bool = False


@dataclass(frozen=True)
class ToolUse:
    """The functions that an answer may call; where it must call one, its grammar sees to that.

    parallel: whether it may call several. named: the caller has chosen the function. format: how calls are
    written and read, a name in `covervlm.server.tools.formats`.
    """

    functions: tuple[Function, ...] = ()
    parallel: bool = True
    named: bool = False
    format: str = "json"


NO_TOOLS = ToolUse()


@dataclass(frozen=True)
class Message:
    """Text, images and videos of one turn in reading order, and what an assistant's turn has called.

    A turn of role "tool" is the result of the call named `tool_call_id`.
    """

    role: Literal["system", "user", "assistant", "tool"]
    content: tuple[str | ImagePart | VideoPart, ...]
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None

    @property
    def text(self) -> str:
        return "\n".join(part for part in self.content if isinstance(part, str))


@dataclass(frozen=True)
class TextPrompt:
    """A prompt that no chat template touches: a text, or its token ids.

    special_tokens: whether the tokenizer adds to a text what it adds to every text, such as a BOS token.
    limit: the most tokens that are read of it, the last ones, or the first where `from_start` is true.
    """

    content: str | tuple[int, ...]
    special_tokens: bool = True
    limit: int | None = None
    from_start: bool = False


Prompt = tuple[Message, ...] | TextPrompt


@dataclass(frozen=True)
class TemplateOptions:
    """What the chat template is told beside the messages; `variables` are those that a model's own template reads.

    special_tokens: whether the tokenizer adds its own even where the template's text begins with them.
    """

    add_generation_prompt: bool = True
    continue_final_message: bool = False
    special_tokens: bool = False
    variables: Mapping[str, Any] = field(default_factory=dict, hash=False)


USUAL = TemplateOptions()


@dataclass(frozen=True)
class PruningPolicy:
    """How many vision tokens to keep of each image, and by which method.

    At most one budget is set; with none, nothing is pruned. A tuple of `keep_tokens` holds one count per image.
    `coverage` asks for the smallest set that reaches this share of the full set's coverage, clipped to
    [min_tokens, max_tokens]. `keep_tokens_per_crop` counts for every crop that an image is cut into. `parameters`: the
    method's own, by name in order. `recipe`: "released" does as the released programs do where ours differ. `question`:
    the guiding words, where they are not the prompt's. `named`: the request names the method itself.
    """

    method: str = "mmtok"
    keep_tokens: int | tuple[int, ...] | None = None
    keep_tokens_per_crop: int | None = None
    keep_ratio: float | None = None
    coverage: float | None = None
    min_tokens: int | None = None
    max_tokens: int | None = None
    parameters: tuple[tuple[str, Any], ...] = ()
    recipe: Recipe = "default"
    guide: Guide = "last_user"
    question: str | None = None
    seed: int | None = None
    return_indices: bool = False
    named: bool = field(default=False, compare=False)

    @property
    def has_budget(self) -> bool:
        budgets = (self.keep_tokens, self.keep_tokens_per_crop, self.keep_ratio, self.coverage)
        return any(budget is not None for budget in budgets)

    @property
    def prunes(self) -> bool:
        return self.method != "none" and self.has_budget


@dataclass(frozen=True)
class SamplingParams:
    """Sampling of one answer, in vLLM's and OpenAI's terms; temperature 0, or next to it, is greedy.

    allowed_token_ids: the only tokens that may be chosen, all if empty. logprob_token_ids: with `logprobs`, the tokens
    whose log probabilities are told at every place in the likeliest ones' stead, the chosen one's beside them.
    """

    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    n: int = 1
    logprobs: bool = False
    top_logprobs: int = 0
    prompt_logprobs: int | None = None
    ignore_eos: bool = False
    min_tokens: int = 0
    stop_token_ids: tuple[int, ...] = ()
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    bad_words: tuple[str, ...] = ()
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)
    allowed_token_ids: tuple[int, ...] = ()
    logprob_token_ids: tuple[int, ...] = ()
    grammar: Grammar | None = None

    @property
    def greedy(self) -> bool:
        """As in vLLM: logits divided by a smaller temperature would not be finite."""
        return self.temperature < 1e-5

    @property
    def is_plain_argmax(self) -> bool:
        """Greedy, and no logit is changed: the next token is the likeliest one of those that a grammar allows."""
        penalties = self.repetition_penalty != 1 or self.presence_penalty or self.frequency_penalty
        changed = penalties or self.min_tokens or self.bad_words or self.logit_bias or self.allowed_token_ids
        return self.greedy and not changed


@dataclass(frozen=True)
class GenerationRequest:
    """One completion to run; images are inside the messages, in reading order.

    `template` is for prompts of messages. `hint` is an agent's answer, whose words guide the selection beside the
    question's where `guide` is "agent". `caller` is whom the request's turn counts for: owners are served in turn.
    `tools` are described in the prompt.
    """

    request_id: str
    prompt: Prompt
    sampling: SamplingParams = SamplingParams()
    pruning: PruningPolicy = PruningPolicy()
    template: TemplateOptions = USUAL
    hint: str = ""
    caller: Caller = field(default_factory=Caller)
    tools: ToolUse = NO_TOOLS

    @property
    def messages(self) -> tuple[Message, ...]:
        """Empty where the prompt is a text."""
        return () if isinstance(self.prompt, TextPrompt) else self.prompt

    @property
    def text(self) -> str:
        """All that the prompt says, empty where it is token ids."""
        if isinstance(self.prompt, TextPrompt):
            return self.prompt.content if isinstance(self.prompt.content, str) else ""
        return "\n".join(message.text for message in self.prompt)

    @property
    def selection_seed(self) -> int:
        """The seed of a random selection: the policy's, else the sampling's, else 0."""
        seeds = (self.pruning.seed, self.sampling.seed)
        return next((seed for seed in seeds if seed is not None), 0)

    @property
    def prompt_param(self) -> str:
        """The field of the request that an error about the prompt is about."""
        return "prompt" if isinstance(self.prompt, TextPrompt) else "messages"

    @property
    def images(self) -> tuple[ImagePart | VideoPart, ...]:
        """Images and videos in reading order; a video counts as one image with one budget."""
        return tuple(p for message in self.messages for p in message.content if not isinstance(p, str))

    def token_limit(self, prompt_tokens: int, context: int) -> int:
        """The most tokens that may be generated; InvalidRequest where a context of so many tokens is too short."""
        asked, left = self.sampling.max_tokens, context - prompt_tokens
        if left < 1:
            raise InvalidRequest(
                f"This model's context is {context} tokens, but the prompt needs {prompt_tokens}. "
                "Shorten it, or keep fewer vision tokens of its images (vision_pruning.keep_tokens).",
                param=self.prompt_param,
                code="context_length_exceeded",
            )
        if asked is not None and asked > left:
            raise InvalidRequest(
                f"This model's context is {context} tokens, of which the prompt needs {prompt_tokens}. "
                f"'max_tokens' is {asked}, and may be {left} at most. Lower it, or leave it out.",
                param="max_tokens",
                code="context_length_exceeded",
            )
        return asked or left


@dataclass(frozen=True)
class ImageReport:
    """What pruning did to one image. `indices` count into the unpruned tokens, `grid` is (rows, columns).

    `box` is the area that the grid covers: (left, top, right, bottom) in pixels of the image, smaller than the image
    where the model crops it and larger where it pads. The three are there where `return_indices` asks for them.
    """

    total: int
    kept: int
    method: str
    coverage: float | None = None
    milliseconds: float = 0.0
    indices: tuple[int, ...] | None = None
    grid: tuple[int, int] | None = None
    box: tuple[float, float, float, float] | None = None


@dataclass(frozen=True)
class PromptReport:
    """Known once the prompt is prefilled: the language model's true prompt length, pruning, seconds per stage.

    Stages: `preprocess`, `queue` (waiting for a slot), `tower`, `selection`, `prefill`. cached_tokens: those
    that the prompt begins with as an earlier one did, and that were not read again. token_ids: the whole prompt, with a
    placeholder for every vision token that was kept. logprobs: one entry for each of them, the first one's NaN, where
    `prompt_logprobs` asks for them.
    """

    prompt_tokens: int
    images: tuple[ImageReport, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    cached_images: int = 0
    cached_tokens: int = 0
    token_ids: Sequence[int] = ()
    logprobs: Sequence["TokenLogprob"] = ()

    @property
    def method(self) -> str:
        """What pruned the images; "none" where all of them, if any, were left whole."""
        return next((image.method for image in self.images if image.method != "none"), "none")


@dataclass(frozen=True)
class AgentReport:
    """What the first pass of guide "agent" said and cost.

    `answer` is empty where it failed; `error` then says why, as "timeout" or "failed".
    """

    answer: str = ""
    error: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class TokenLogprob:
    """One token with its log probability; `top` holds the likeliest tokens in its place, best first.

    rank: 1 for the likeliest, 0 where it was not counted. special: the token has a name, but makes no text.
    """

    token: str
    bytes: tuple[int, ...]
    logprob: float
    top: tuple["TokenLogprob", ...] = ()
    id: int = field(default=-1, compare=False)
    rank: int = field(default=0, compare=False)
    special: bool = field(default=False, compare=False)


@dataclass(frozen=True)
class GenerationChunk:
    """The next piece of choice `index`: text of whole characters only, possibly empty.

    The first chunk of a request carries `prompt`. The last of each choice carries `finish_reason`.
    `tokens` is the number of tokens that this chunk stands for; they sum to the completion's token count. `token_ids`
    are their ids, of the token that ended the answer as well. `stop_string` is the one of the request's that ended it.
    """

    index: int = 0
    text: str = ""
    tokens: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    prompt: PromptReport | None = None
    token_ids: tuple[int, ...] = ()
    stop_string: str | None = None


@dataclass(frozen=True)
class PromptTokens:
    """A prompt's tokens as the model would read them, and the tokenizer's names for them."""

    ids: tuple[int, ...]
    names: tuple[str, ...]
