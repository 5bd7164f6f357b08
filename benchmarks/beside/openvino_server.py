"""OpenVINO GenAI's continuous batching behind two pipes, in the peers' environment, since it brings no server.

    python openvino_server.py FOLDER TOKENS THREADS RATIO [float32]

A line of standard input is a request, {"id", "image" (a data URL), "question"}; a line of standard output says that its
next token is there, {"id", "prompt_tokens" (0 until the last), "tokens"}. Ends with its standard input. RATIO is the
percent of the vision tokens to drop.
"""

import base64
import io
import json
import sys
from itertools import count
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any

import numpy as np
from openvino import Tensor
from openvino_genai import ContinuousBatchingPipeline, GenerationConfig, SchedulerConfig
from PIL import Image

FLOAT32 = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
"""By itself OpenVINO computes in bfloat16 where the CPU can, and keeps eight bits of keys and values."""


def picture(url: str) -> Tensor:
    """A data URL's pixels, (1, height, width, 3) uint8."""
    image = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB")
    return Tensor(np.array(image)[None])


def read(requests: SimpleQueue[dict[str, Any] | None]) -> None:
    for line in sys.stdin:
        requests.put(json.loads(line))
    requests.put(None)


def say(**fields: Any) -> None:
    print(json.dumps(fields), flush=True)


def serve(pipeline: ContinuousBatchingPipeline, length: GenerationConfig) -> None:
    requests: SimpleQueue[dict[str, Any] | None] = SimpleQueue()
    Thread(target=read, args=(requests,), daemon=True).start()
    running: dict[str, list[Any]] = {}
    numbers = count()
    while True:
        try:
            while (request := requests.get(block=not running)) is not None:
                images = [picture(request["image"])]
                handle = pipeline.add_request(next(numbers), request["question"], images, length)
                running[request["id"]] = [handle, 0]
            return
        except Empty:
            pass
        pipeline.step()
        for key, state in list(running.items()):
            handle, before = state
            while handle.can_read():
                state[1] += sum(len(output.generated_ids) for output in handle.read().values())
            done = state[1] >= length.max_new_tokens
            if state[1] > before:
                # It counts the prompt's tokens when all is done.
                prompt = handle.get_vlm_perf_metrics().get_num_input_tokens() if done else 0
                say(id=key, prompt_tokens=prompt, tokens=state[1])
            if done:
                del running[key]


def main() -> None:
    folder, tokens, threads, ratio, *precision = sys.argv[1:]
    length = GenerationConfig()
    length.max_new_tokens = length.min_new_tokens = int(tokens)
    length.ignore_eos = True
    length.do_sample = False
    length.pruning_ratio = int(ratio)
    properties = {"INFERENCE_NUM_THREADS": int(threads), **(FLOAT32 if precision else {})}
    pipeline = ContinuousBatchingPipeline(folder, SchedulerConfig(), "CPU", properties)
    if length.pruning_ratio:
        # `add_request` prunes as the last `generate` did, whatever its own ratio says.
        grey = Tensor(np.full((1, 336, 336, 3), 127, np.uint8))
        pipeline.generate(["What is this?"], images=[[grey]], generation_config=[length])
    say(ready=True)
    serve(pipeline, length)


if __name__ == "__main__":
    main()
