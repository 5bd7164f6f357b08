"""Bodies and answers of /tokenize and /detokenize, in vLLM's form."""

from typing import Annotated, Any

from pydantic import BaseModel, Tag

from covervlm.server.api.wire.chat_request import ChatPrompt, items
from covervlm.server.api.wire.completion_request import MOST_IDS
from covervlm.server.api.wire.sampling import Text, TokenId, Unless
from covervlm.server.core.wire import Wire, one_of


class TokenizeChatRequest(ChatPrompt):
    """The tokens of a chat as the model would read it, its images pruned as `vision_pruning` says."""

    return_token_strs: bool | None = None
    media_io_kwargs: Annotated[Any, Unless({})] = None


class TokenizeTextRequest(Wire):
    model: Text = ""
    prompt: Text
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None


def _tag(body: Any) -> str:
    asks_for_chat = "messages" in body if isinstance(body, dict) else isinstance(body, TokenizeChatRequest)
    return "<chat>" if asks_for_chat else "<text>"


TokenizeRequest = Annotated[
    Annotated[TokenizeChatRequest, Tag("<chat>")] | Annotated[TokenizeTextRequest, Tag("<text>")],
    one_of(_tag, "an object with 'prompt' or 'messages'"),
]


class Tokens(BaseModel):
    """`token_strs` are the tokenizer's own names; null unless `return_token_strs` is true."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeRequest(Wire):
    model: Text = ""
    tokens: Annotated[list[TokenId], items(MOST_IDS, 0)]


class DetokenizedText(BaseModel):
    """The text; special tokens are spelt by their names."""

    prompt: str
