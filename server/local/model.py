"""A model loaded into this process: the server's engine and rules, without HTTP between."""

import asyncio
import atexit
import json
import os
import uuid
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, ClassVar, Literal, Self

from pydantic import ValidationError
from torch import Tensor

from covervlm.clients import ChatAnswer
from covervlm.clients.videos import Media, Medium
from covervlm.server import wiring
from covervlm.server.api.answer import Choice, Conversation
from covervlm.server.api.report import Fingerprint, prune_response
from covervlm.server.api.routes.chat import Completion
from covervlm.server.api.wire.chat_request import ChatCompletionRequest
from covervlm.server.core.answer import TextDelta
from covervlm.server.core.caller import Caller
from covervlm.server.core.generation import GenerationRequest
from covervlm.server.core.pruning_policy import MOST_IMAGES
from covervlm.server.core.tasks import all_or_none
from covervlm.server.engines.embedded.engine import TransformersEngine
from covervlm.server.engines.registry import build_engine
from covervlm.server.local.background import Background
from covervlm.server.local.pictures import Pictures
from covervlm.server.local.request import Message, about, request_body
from covervlm.server.local.results import Selection, Stream
from covervlm.server.settings import MAX_PIXELS, Settings, SettingsError, one_line
from covervlm.server.telemetry.metrics import Metrics
from covervlm.server.telemetry.request_record import RequestRecord


class _LocalSettings(Settings):
    """The options of a server; COVERVLM_* variables and configuration files say nothing here: they are for servers."""

    from_outside: ClassVar[bool] = False


def load(
    model: str | os.PathLike[str] = "demo",
    *,
    device: str = "auto",
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    threads: int | None = None,
    max_running: int = 32,
) -> "Model":
    """The model of a folder or hub id, or the built-in "demo", loaded into this process.

    device: auto, cpu, cuda or cuda:N. dtype: what it computes in; auto is float32 on a CPU and the checkpoint's own on
    a GPU. threads: torch's, which by default decides. max_running: answers that decode at once. Raises SettingsError,
    OSError or ValueError, with one line that says why, for what cannot be loaded, and what torch does for a device that
    is not there.
    """
    limits = {
        "max_image_bytes": 1024**3,
        "max_image_pixels": MAX_PIXELS,
        "max_images": MOST_IMAGES,
        "allowed_media_networks": ("0.0.0.0/0", "::/0"),
    }
    given = {
        "model": os.fspath(model),
        "device": device,
        "dtype": dtype,
        "threads": threads,
        "max_running": max_running,
    }
    try:
        settings = _LocalSettings(engine="transformers", **given, **limits)  # type: ignore[arg-type]
    except ValidationError as error:
        raise SettingsError(one_line(error)) from None
    return Model(settings)


class Model:
    """A vision-language model in this process, asked by blocking calls from any thread; close it, or use `with`.

    Calls take the fields of a chat completion as keywords (max_tokens, stop, response_format, ...) and those of its
    `vision_pruning` (keep_tokens, keep_ratio, coverage, method, parameters, recipe, guide, return_indices); those whose
    names both have (max_tokens, min_tokens, seed) go to the completion, and into `vision_pruning={...}` for pruning.
    Without a budget nothing is pruned, and unlike over HTTP answers are greedy unless `temperature` says otherwise.

    An image is a path, an http(s) or data URL, the bytes of a file, a PIL image or a numpy array; several are a list,
    and None is none. All calls raise `covervlm.server.core.errors.EngineError`, of which an InvalidRequest names the
    field, and OSError for files that cannot be read.
    """

    def __init__(self, settings: Settings) -> None:
        """Load what the settings name. Raises SettingsError, OSError or ValueError for what cannot be loaded."""
        engine = build_engine(settings)
        assert isinstance(engine, TransformersEngine)
        self._engine = engine
        self._background = Background()
        self._pictures = wiring.build_images(settings, Pictures)
        self._asker = wiring.build_asker(settings, engine)
        prepare = wiring.build_preparation(settings, engine, self._pictures, self._asker, None)
        self._conversation = Conversation(engine, prepare, Metrics(engine, model=settings.model_name))
        self._fingerprint = Fingerprint(engine, settings.model)
        self._at_once = 2 * settings.max_running
        atexit.register(engine.abandon)
        try:
            self._background.run(engine.start())
        except BaseException:
            self.close()
            raise

    @property
    def model(self) -> Any:
        """transformers' model, as in its pipelines: `prepare` makes what its `generate` takes."""
        return self._engine.adapter.model

    @property
    def tokenizer(self) -> Any:
        """transformers' tokenizer, which decodes what `generate` returns."""
        return self._engine.adapter.tokenizer

    def ask(self, image: Media, question: str, **options: Any) -> ChatAnswer:
        """The answer to a question about an image, with what was kept of it."""
        return self.ask_messages(about(image, question), **options)

    def ask_messages(self, messages: Sequence[Message], **options: Any) -> ChatAnswer:
        """The answer to a conversation, whose images are parts as transformers or as OpenAI's API has them."""
        return self._background.run(self._whole(messages, options))

    def ask_batch(self, pairs: Iterable[tuple[Media, str]], **options: Any) -> list[ChatAnswer]:
        """The answers to pairs of image and question, decoded together; the first that fails raises, and ends all."""
        return self._background.run(self._all([about(image, question) for image, question in pairs], options))

    def stream(self, image: Media, question: str, **options: Any) -> Stream:
        """The answer as pieces of text while it is written, of the first where there are several (`n`)."""
        return Stream(self._background.iterate(self._pieces(about(image, question), options)))

    def select(self, image: Medium, question: str, **options: Any) -> Selection:
        """Which vision tokens of an image a question keeps: indices, coverage, and a picture of them."""
        return self._background.run(self._selection(image, question, options))

    def prepare(self, messages: Sequence[Message], **options: Any) -> dict[str, Tensor]:
        """The pruned prompt as transformers' `model.generate(**prepared)` takes it, a batch of one.

        inputs_embeds (1, T, d), attention_mask (1, T), and position_ids (3, 1, T) for M-RoPE. As always with
        embeddings, `generate` then returns new tokens only. Raises InvalidRequest for Qwen3-VL, whose generate
        takes no pruned images.
        """
        embeddings, positions = self._background.run(self._assembled(messages, options))
        return self._engine.adapter.for_generate(embeddings, positions)

    def close(self) -> None:
        """Wait for running answers, then release the model."""
        atexit.unregister(self._engine.abandon)
        if not self._background.closed:
            self._background.run(self._stop())
            self._background.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def _stop(self) -> None:
        await self._pictures.close()
        await self._asker.close()
        await self._engine.stop()

    async def _asked(
        self, messages: Sequence[Message], options: Mapping[str, Any], *, return_indices: bool = False
    ) -> tuple[ChatCompletionRequest, GenerationRequest, RequestRecord]:
        record = RequestRecord(uuid.uuid4().hex, "local")
        with self._pictures.album() as album:
            body = request_body(messages, album, options)
            request = await self._conversation.prepared(body, record, Caller(), return_indices=return_indices)
        return body, request, record

    async def _pieces(
        self, messages: Sequence[Message], options: Mapping[str, Any]
    ) -> AsyncGenerator[str | ChatAnswer, None]:
        """The text of the first choice, and the whole answer last."""
        body, request, record = await self._asked(messages, options)
        answer = self._conversation.answer(body, request, record)
        completion = Completion(body, answer, record, self._fingerprint())
        choices: dict[int, Choice] = {}
        try:
            async for part in answer.parts():
                choices.setdefault(part.index, Choice()).take(part)
                if isinstance(part, TextDelta) and part.text and part.index == 0:
                    yield part.text
        finally:
            await answer.release()
        written = completion.written([choices[index] for index in sorted(choices)])
        yield ChatAnswer.read(json.loads(written))

    async def _whole(self, messages: Sequence[Message], options: Mapping[str, Any]) -> ChatAnswer:
        async with aclosing(self._pieces(messages, options)) as pieces:
            async for piece in pieces:
                if isinstance(piece, ChatAnswer):
                    return piece
        raise AssertionError("the last piece is the answer")

    async def _all(self, chats: Sequence[Sequence[Message]], options: Mapping[str, Any]) -> list[ChatAnswer]:
        places = asyncio.Semaphore(self._at_once)

        async def answered(messages: Sequence[Message]) -> ChatAnswer:
            async with places:
                return await self._whole(messages, options)

        return await all_or_none(map(answered, chats))

    async def _selection(self, image: Medium, question: str, options: Mapping[str, Any]) -> Selection:
        _, request, record = await self._asked(about(image, question), options, return_indices=True)
        report = prune_response(await self._engine.prune(request), record)
        return Selection.of(report.model_dump(exclude_unset=True), image)

    async def _assembled(self, messages: Sequence[Message], options: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        _, request, _ = await self._asked(messages, options)
        return await self._engine.assemble(request)
