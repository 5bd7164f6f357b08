"""transformers' own greedy generate: what every adapter's answers are compared with."""

import torch


@torch.inference_mode()
def generate(model, inputs, steps):
    """The new tokens, and their logits (steps, V)."""
    out = model.generate(
        **inputs,
        max_new_tokens=steps,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
        pad_token_id=0,
    )
    return out.sequences[0, inputs["input_ids"].shape[1] :].tolist(), torch.stack(out.logits)[:, 0]


@torch.inference_mode()
def plain_greedy(model, embeddings, steps):
    """Greedy decoding by the whole model from embeddings (T, d), recomputing everything at each step."""
    tokens, logits = [], []
    for _ in range(steps):
        logits.append(model(inputs_embeds=embeddings[None]).logits[0, -1])
        tokens.append(int(logits[-1].argmax()))
        embeddings = torch.cat([embeddings, model.get_input_embeddings()(torch.tensor(tokens[-1:]))])
    return tokens, torch.stack(logits)
