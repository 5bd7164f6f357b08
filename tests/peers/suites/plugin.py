"""A pytest plugin for a peer's own suite: where its tests would start the peer's server they get one that runs.

The environment says which: SUITES_PEER is "vllm", "llama.cpp" or "sglang", SUITES_SERVER the address of a server
without keys, SUITES_MODEL the folder of its model, whose tokenizer some tests read.
"""

import functools
import os
import sys
import types
import unittest
from io import BytesIO
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest

from . import proxy


@functools.cache
def address() -> str:
    return proxy.start(os.environ["SUITES_SERVER"])


class RemoteOpenAIServer:
    """vLLM's `tests.utils.RemoteOpenAIServer`, as far as its tests of the API use it."""

    DUMMY_API_KEY = "token-abc123"

    def __init__(self, *_: object, **__: object) -> None:
        self.url_root = address()

    def __enter__(self) -> "RemoteOpenAIServer":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def url_for(self, *parts: str) -> str:
        return "/".join((self.url_root, *parts))

    def _client(self, kind: str, url: str, options: dict[str, Any]) -> Any:
        package, _, name = kind.partition(".")
        made = getattr(__import__(package), name)
        return made(**{"base_url": url, "api_key": self.DUMMY_API_KEY, "max_retries": 0} | options)

    def get_client(self, **options: Any) -> Any:
        return self._client("openai.OpenAI", self.url_for("v1"), options)

    def get_async_client(self, **options: Any) -> Any:
        return self._client("openai.AsyncOpenAI", self.url_for("v1"), options)

    def get_client_anthropic(self, **options: Any) -> Any:
        return self._client("anthropic.Anthropic", self.url_root, options)

    def get_async_client_anthropic(self, **options: Any) -> Any:
        return self._client("anthropic.AsyncAnthropic", self.url_root, options)


def _module(name: str, **attributes: object) -> None:
    sys.modules[name] = types.ModuleType(name)
    vars(sys.modules[name]).update(attributes)


def _tokenizer(*_: object, **__: object) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(os.environ["SUITES_MODEL"])


def _vllm(root: object) -> None:
    import huggingface_hub
    import vllm.tokenizers

    _module("tests.utils", RemoteOpenAIServer=RemoteOpenAIServer, ROCM_EXTRA_ARGS=[], VLLM_PATH=root)
    vllm.tokenizers.get_tokenizer = _tokenizer
    huggingface_hub.snapshot_download = huggingface_hub.HfApi.snapshot_download = lambda *_, **__: ""


def _picture() -> Any:
    """What the web would answer."""
    import requests
    from PIL import Image

    drawn, made = BytesIO(), requests.Response()
    Image.radial_gradient("L").save(drawn, "png")
    made.status_code, made._content = 200, drawn.getvalue()
    return made


def _llama_cpp() -> None:
    _module("wget")  # for models, of which none is fetched
    import requests
    import utils

    get = requests.get
    requests.get = lambda url, **options: _picture() if url.startswith("https://") else get(url, **options)

    host, _, port = address().removeprefix("http://").partition(":")
    made = utils.ServerProcess.__init__

    def placed(server: Any) -> None:
        made(server)
        server.server_host, server.server_port = host, int(port)

    utils.ServerProcess.__init__ = placed
    utils.ServerProcess.start = utils.ServerProcess.stop = lambda *_, **__: None
    utils.ServerPreset.load_all = staticmethod(lambda: None)


class _Standin(types.ModuleType):
    """A module that has whatever is imported from it."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name.isupper():  # the name of a model, or a limit
            return name
        return (lambda *_, **__: False) if name.startswith("is_in_") else MagicMock(name=name)


_SGLANG = """
sglang sglang.srt sglang.srt.utils sglang.srt.utils.hf_transformers_utils sglang.srt.sampling
sglang.srt.sampling.custom_logit_processor sglang.srt.entrypoints sglang.srt.entrypoints.anthropic
sglang.srt.entrypoints.anthropic.protocol sglang.srt.entrypoints.anthropic.serving
sglang.test sglang.test.ci sglang.test.ci.ci_register sglang.test.runners sglang.test.test_utils
"""


def _sglang(root: Path) -> None:
    """Its kits of tests are its own; all else that its tests import of it stands for nothing."""
    for name in _SGLANG.split():
        sys.modules[name] = module = _Standin(name)
        module.__path__ = [str(root / "python" / name.replace(".", "/"))]
    vars(sys.modules["sglang.srt.utils.hf_transformers_utils"])["get_tokenizer"] = _tokenizer
    vars(sys.modules["sglang.test.test_utils"]).update(CustomTestCase=unittest.TestCase, DEFAULT_URL_FOR_TEST=address())


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Before the peer's conftest.py, which imports what starts servers."""
    if os.environ["SUITES_PEER"] == "vllm":
        _vllm(early_config.rootpath)
    elif os.environ["SUITES_PEER"] == "sglang":
        _sglang(Path.cwd())
    else:
        _llama_cpp()
