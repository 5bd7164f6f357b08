"""POST /tokenize and /detokenize: the model's tokens, in vLLM's form."""

from fastapi import APIRouter, Request

from covervlm.server.api.body import BodyRoute
from covervlm.server.api.errors import RESPONSES
from covervlm.server.api.preparation import Preparation
from covervlm.server.api.wire.token_requests import (
    DetokenizedText,
    DetokenizeRequest,
    TokenizeChatRequest,
    TokenizeRequest,
    Tokens,
)
from covervlm.server.core.engine import Engine
from covervlm.server.core.generation import TextPrompt


def router(engine: Engine, prepare: Preparation) -> APIRouter:
    routes = APIRouter(tags=["tokens"], responses=RESPONSES, route_class=BodyRoute)

    @routes.post("/tokenize")
    async def tokenize(body: TokenizeRequest, request: Request) -> Tokens:
        """The tokens of a text, or of a chat as the model would read it: of its images, those that would be kept."""
        record, caller = request.state.record, request.state.caller
        if isinstance(body, TokenizeChatRequest):
            prompt = await prepare(body, record, caller)
        else:
            text = TextPrompt(body.prompt, special_tokens=body.add_special_tokens is not False)
            [prompt] = prepare.texts(body.model, [text], record, caller)
        tokens = await engine.tokenize(prompt)
        return Tokens(
            count=len(tokens.ids),
            max_model_len=engine.info.context_length,
            tokens=list(tokens.ids),
            token_strs=list(tokens.names) if body.return_token_strs else None,
        )

    @routes.post("/detokenize")
    async def detokenize(body: DetokenizeRequest, request: Request) -> DetokenizedText:
        """The text of token ids."""
        prepare.texts(body.model, [], request.state.record, request.state.caller)
        return DetokenizedText(prompt=await engine.detokenize(body.tokens, request.state.caller))

    return routes
