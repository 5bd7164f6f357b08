"""Greedy answers of vLLM's own classes, in a process of their own: reads requests from stdin, writes JSON to stdout.

In: {checkpoint: [[token ids, image path], ...]}. Out: {checkpoint: [[[token, log probability], ...], ...]}.
Run with VLLM_PLUGINS="", so that no plugin is loaded.
"""

import json
import os
import sys

from PIL import Image


def resize_with_pillow() -> None:
    """As the plugin does, so that pixels are the same and all else can be compared to the last place."""
    import transformers
    from vllm.multimodal.processing.context import InputProcessingContext

    plain = InputProcessingContext.get_hf_processor

    def with_pillow(self, *arguments, **options):
        processor = plain(self, *arguments, **options)
        images = processor.image_processor
        if pillow := getattr(transformers, f"{type(images).__name__}Pil", None):
            processor.image_processor = pillow.from_dict(images.to_dict())
        return processor

    InputProcessingContext.get_hf_processor = with_pillow


def answers(checkpoint: str, requests: list[tuple[list[int], str]], tokens: int = 8) -> list[list[tuple[str, float]]]:
    from vllm import LLM, SamplingParams

    llm = LLM(checkpoint, dtype="float32", enforce_eager=True, distributed_executor_backend="uni")
    assert "covervlm" not in str(type(llm.llm_engine.renderer.get_mm_processor()))
    params = SamplingParams(temperature=0, max_tokens=tokens, logprobs=0)
    results = []
    for ids, path in requests:
        prompt = {"prompt_token_ids": ids, "multi_modal_data": {"image": Image.open(path)}}
        (output,) = llm.generate([prompt], params, use_tqdm=False)
        steps = zip(output.outputs[0].token_ids, output.outputs[0].logprobs, strict=True)
        tokenizer = llm.get_tokenizer()
        results.append([(tokenizer.decode([token]), step[token].logprob) for token, step in steps])
    return results


def main() -> None:
    from vllm.distributed import cleanup_dist_env_and_memory

    resize_with_pillow()
    everything = {}
    for checkpoint, requests in json.load(sys.stdin).items():
        everything[checkpoint] = answers(checkpoint, requests)
        cleanup_dist_env_and_memory()
    with os.fdopen(3, "w") as result:  # vLLM's log has stdout
        json.dump(everything, result)


if __name__ == "__main__":
    main()
