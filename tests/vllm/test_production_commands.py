"""Every command of docs/production.md is one that vLLM, or covervlm and then vLLM, would take."""

import argparse
import re
import shlex
from pathlib import Path

import pytest
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
from vllm.utils.argparse_utils import FlexibleArgumentParser

from covervlm.server.cli import serve
from covervlm.server.engines.vllm.options import VllmEngineConfig, engine_args
from covervlm.server.engines.vllm.plugin.policy import server_wide
from covervlm.server.settings import SettingsError

PAGE = (Path(__file__).parents[2] / "docs" / "production.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^    ((?:vllm|covervlm|docker|ray|pip) .+)$", PAGE, re.MULTILINE)
INLINE = re.findall(r"`(--hf-overrides '.+?')`", PAGE)


def of(program: str) -> list[list[str]]:
    """Arguments after `serve` of every command that runs a program, in the shell or in a container."""
    plain = [shlex.split(command) for command in COMMANDS]
    found = [words[2:] for words in plain if words[:2] == [program, "serve"]]
    for words in plain:
        if words[0] == "docker" and ("vllm" if "--entrypoint" in words else "covervlm") == program:
            found.append(words[words.index("serve") + 1 :])
    return found


def test_the_page_shows_one_gpu_several_and_several_machines_for_both_servers():
    for program in ("vllm", "covervlm"):
        shown = " ".join(map(shlex.join, of(program)))
        for option in ("--tensor-parallel-size", "--data-parallel-size", "--distributed-executor-backend ray"):
            assert option in shown.replace("'", "")


@pytest.mark.parametrize("arguments", [*of("vllm"), *map(shlex.split, INLINE)], ids=shlex.join)
def test_vllm_takes_the_command(arguments):
    parsed = make_arg_parser(FlexibleArgumentParser()).parse_args(arguments)
    validate_parsed_serve_args(parsed)
    overrides = AsyncEngineArgs.from_cli_args(parsed).hf_overrides
    if overrides:
        server_wide(type("Config", (), overrides))


@pytest.mark.parametrize("arguments", of("covervlm"), ids=shlex.join)
def test_covervlm_and_vllm_take_the_command(arguments):
    parser = argparse.ArgumentParser()
    serve.add_arguments(parser)
    settings = serve.settings_of(parser.parse_args(arguments))
    engine_args(VllmEngineConfig(settings.model, vllm_args=settings.vllm_args))


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("--tensor-parallel-sise 2", "unrecognized arguments"),
        ("--tensor-parallel-size two", "invalid int value"),
        ("--model other", "name the model with"),
        ("--worker-extension-cls a.B", "sets --worker-extension-cls itself"),
        ("--hf-overrides '[1]'", "JSON object"),
        ("'", "No closing quotation"),
    ],
)
def test_options_that_vllm_does_not_take_are_refused_before_loading(given, reason):
    with pytest.raises(SettingsError, match=reason):
        engine_args(VllmEngineConfig("somewhere", vllm_args=given))


def test_the_options_reach_vllm():
    arguments = engine_args(
        VllmEngineConfig(
            "somewhere",
            max_running=7,
            feature_cache_bytes=5,
            vllm_args="--tensor-parallel-size 2 --gpu-memory-utilization 0.5 --hf-overrides '{\"a\": 1}'",
        )
    )
    assert (arguments.tensor_parallel_size, arguments.gpu_memory_utilization, arguments.max_num_seqs) == (2, 0.5, 7)
    assert arguments.hf_overrides == {"a": 1, "vision_prune": {"feature_cache_bytes": 5}}
