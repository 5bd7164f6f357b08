"""A LLaVA-1.5 with random weights whose language model dominates, as in real checkpoints: for measuring speed alone.

    python benchmarks/speed/random_llava.py --out results/random-llava

The demo model's language model is smaller than its tower, so pruning saves it little. Here, as in LLaVA-1.5-7B, nearly
all the work is the language model's. The weights are seeded: the same command writes the same model anywhere. Answers
are nonsense of full length and show nothing but speed.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    # In place of this folder, so that its neighbours are imported as speed.something and demo_model.something.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from demo_model.checkpoint import save_llava
from transformers import AutoTokenizer, CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from covervlm.server.demo import model_path

SHAPE = (
    "CLIP ViT-S/14 at 336 pixels (12 layers, width 384, 22 M parameters, 576 tokens) and "
    "Llama (12 layers, width 1,024, MLP 2,816, 16 heads, 154 M parameters without the embeddings)"
)


def configuration(tokenizer_size: int, image_token: int) -> LlavaConfig:
    """What SHAPE says in words."""
    return LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=384,
            intermediate_size=1536,
            num_hidden_layers=12,
            num_attention_heads=6,
            image_size=336,
            patch_size=14,
        ),
        text_config=LlamaConfig(
            vocab_size=tokenizer_size,
            hidden_size=1024,
            intermediate_size=2816,
            num_hidden_layers=12,
            num_attention_heads=16,
            num_key_value_heads=16,
            max_position_embeddings=2048,
            tie_word_embeddings=False,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=3,
        ),
        image_token_index=image_token,
        image_seq_length=576,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )


def save_random_llava(folder: Path, seed: int = 0) -> Path:
    """Write the checkpoint, 350 MB in float16, with the demo's tokenizer, processor and chat template.

    Special tokens have zero rows in the output matrix, so a greedy answer never ends early, also where a server cannot
    be told to ignore the end-of-sequence token, and every token of it is text.
    """
    tokenizer = AutoTokenizer.from_pretrained(model_path())
    # One thread, since each would draw numbers of its own.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(configuration(len(tokenizer), tokenizer.convert_tokens_to_ids("<image>")))
    torch.set_num_threads(threads)
    with torch.no_grad():
        model.lm_head.weight[tokenizer.all_special_ids] = 0
    save_llava(model, tokenizer, folder)
    return folder


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    arguments = parser.parse_args(argv)
    print(f"{save_random_llava(arguments.out)}: {SHAPE}")


if __name__ == "__main__":
    main()
