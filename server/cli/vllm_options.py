"""Options of `vllm serve` under the names that its users know: each is one of ours, or is passed on to vLLM."""

import argparse
import json
import shlex

_PASSED_ON = {
    "--max-model-len": "most tokens of a prompt and its answer",
    "--tensor-parallel-size": "GPUs that share the model",
    "--gpu-memory-utilization": "share of the GPU's memory to take",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "vLLM's names", "For whoever comes from `vllm serve`; all of its other options go into --vllm-args."
    )
    suppress = argparse.SUPPRESS
    group.add_argument(
        "--max-num-seqs", dest="max_running", default=suppress, metavar="N", help="the same as --max-running"
    )
    group.add_argument(
        "--limit-mm-per-prompt",
        dest="max_images",
        default=suppress,
        type=_limit,
        metavar="JSON",
        help="the same as --max-images, e.g. '{\"image\": 4}' or image=4",
    )
    for flag, does in _PASSED_ON.items():
        group.add_argument(flag, metavar="N", help=f"{does}; with --engine vllm only")


def passed_on(arguments: argparse.Namespace) -> str:
    """A command line for vLLM of the options that only it has; they are taken out of `arguments`."""
    given = {flag: vars(arguments).pop(flag.removeprefix("--").replace("-", "_")) for flag in _PASSED_ON}
    return shlex.join(word for flag, value in given.items() if value is not None for word in (flag, value))


def _limit(text: str) -> str:
    """Images and videos together, as `max_images` counts them. vLLM takes JSON, and once took image=4,video=1."""
    try:
        pairs = dict(part.split("=") for part in text.split(",")) if "{" not in text else json.loads(text)
        counts = {kind: int(most["count"] if isinstance(most, dict) else most) for kind, most in pairs.items()}
    except (ValueError, TypeError, KeyError):
        raise argparse.ArgumentTypeError(f"should be like '{{\"image\": 4}}', not {text}") from None
    images = counts.pop("image", 0) + counts.pop("video", 0)
    if any(counts.values()):
        raise argparse.ArgumentTypeError("only images and videos are taken")
    return str(images)
