"""The API on every checkpoint of the zoo: completions, tokens, streams, endings and forms, with real vocabularies."""

import base64
import io
import json
import re

import pytest
import torch
from jsonschema import Draft202012Validator

from tests.zoo.checkpoints import ZOO
from tests.zoo.test_engine import QUESTIONS, same

PROMPT = "USER: Was ist  das 🦜?\n ASSISTANT: Its naïve"
PLAIN = {"model": "zoo", "temperature": 0, "repetition_penalty": 1.0, "max_tokens": 12}
"""Greedy by the model alone; Qwen's checkpoint recommends a penalty."""
HOT = {"model": "zoo", "temperature": 2, "seed": 5, "max_tokens": 20, "ignore_eos": True}
SCHEMA = {
    "type": "object",
    "properties": {"é": {"enum": ["日本", "a b"]}, "n": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["é", "n"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def asked(blocks):
    """A question about a picture."""
    buffer = io.BytesIO()
    blocks(300, 200).save(buffer, "PNG")
    url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": QUESTIONS[1]}]
    return [{"role": "user", "content": content}]


def post(client, path, body):
    response = client.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


def events(client, path, body):
    lines = re.findall(r"^data: (.*)$", client.post(path, json=body | {"stream": True}).text, re.MULTILINE)
    return [json.loads(line) for line in lines if line != "[DONE]"]


def chat(client, **fields):
    """The whole answer's choices, and for each the choices of its events."""
    body = {"messages": [{"role": "user", "content": QUESTIONS[2]}], **fields}
    choices = post(client, "/v1/chat/completions", body)["choices"]
    told = [choice for event in events(client, "/v1/chat/completions", body) for choice in event["choices"]]
    return choices, [[choice for choice in told if choice["index"] == i] for i in range(len(choices))]


def complete(client, **fields):
    [choice] = post(client, "/v1/completions", PLAIN | {"prompt": PROMPT, "return_token_ids": True} | fields)["choices"]
    return choice


def joined(deltas):
    return "".join(choice["delta"].get("content") or "" for choice in deltas)


@pytest.mark.parametrize("sampling", [{"temperature": 0}, {"n": 2}], ids=["greedy", "hot"])
def test_streaming_equals_not_streaming(client, asked, sampling):
    fields = HOT | {"messages": asked, "logprobs": True, "top_logprobs": 3, "vision_pruning": {"keep_tokens": 40}}
    for choice, deltas in zip(*chat(client, **fields | sampling), strict=True):
        assert joined(deltas) == choice["message"]["content"]
        streamed = [entry for each in deltas if each["logprobs"] for entry in each["logprobs"]["content"]]
        assert streamed == choice["logprobs"]["content"]
        data = b"".join(bytes(entry["bytes"]) for entry in streamed)
        assert same(data.decode(errors="replace"), choice["message"]["content"])


def test_a_stop_string_ends_the_answer_before_it_or_behind_it_streamed_or_not(client):
    [[whole], _] = chat(client, **HOT)
    text = whole["message"]["content"]
    places = [place for place in range(4, len(text) - 3) if "\ufffd" not in text[place : place + 2]]
    for stop in {text[place : place + 2] for place in places[:: max(1, len(places) // 3)]}:
        for shown in (False, True):
            fields = {"stop": [stop], "logprobs": True, "include_stop_str_in_output": shown}
            [[choice], [deltas]] = chat(client, **HOT | fields)
            assert choice["finish_reason"] == "stop"
            assert choice["message"]["content"] == text[: text.index(stop) + len(stop) * shown] == joined(deltas)
            streamed = [entry for each in deltas if each["logprobs"] for entry in each["logprobs"]["content"]]
            assert streamed == choice["logprobs"]["content"]


def test_a_text_and_its_ids_are_completed_as_transformers_completes_them(client, specimen):
    inputs = specimen.tokenizer(PROMPT, return_tensors="pt")
    expected = specimen.continued({key: inputs[key] for key in ("input_ids", "attention_mask")})
    text = specimen.text([token for token in expected if token not in specimen.eos_ids])
    for prompt in (PROMPT, inputs["input_ids"][0].tolist()):
        choice = complete(client, prompt=prompt)
        assert choice["prompt_token_ids"] == inputs["input_ids"][0].tolist()
        assert choice["token_ids"] == expected
        assert same(text, choice["text"]) or "\ufffd" in text
        streamed = events(client, "/v1/completions", PLAIN | {"prompt": prompt})
        assert "".join(event["choices"][0]["text"] for event in streamed) == choice["text"]


def test_a_prompt_is_cut_to_its_first_or_last_tokens(client, specimen):
    ids = specimen.tokenizer(PROMPT).input_ids
    for prompt in (PROMPT, ids):
        for side, expected in (("left", ids[-5:]), ("right", ids[:5]), (None, ids[-5:])):
            choice = complete(client, prompt=prompt, truncate_prompt_tokens=5, truncation_side=side, max_tokens=2)
            assert choice["prompt_token_ids"] == expected
    assert complete(client, truncate_prompt_tokens=1000)["prompt_token_ids"] == ids


@pytest.mark.parametrize("echo", [True, False])
def test_a_token_that_is_not_there_is_a_mistake_of_the_prompt_echoed_or_not(client, echo):
    response = client.post("/v1/completions", json=PLAIN | {"prompt": [5, 10**7], "echo": echo})
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, "prompt")
    assert "There is no token 10000000" in error["message"]


@torch.inference_mode()
def test_an_echo_has_the_prompt_and_the_log_probabilities_of_a_forward_pass(client, specimen):
    choice = complete(client, echo=True, logprobs=1, max_tokens=4)
    assert choice["text"].startswith(PROMPT)
    ids = [*choice["prompt_token_ids"], *choice["token_ids"]]
    rows = specimen.model(input_ids=torch.tensor([ids])).logits[0].float().log_softmax(-1)
    expected = [None, *(float(row[token]) for row, token in zip(rows, ids[1:], strict=False))]
    shown = choice["logprobs"]["token_logprobs"]
    assert shown[0] is None
    assert shown[1:] == pytest.approx(expected[1 : len(shown)], abs=2e-4)
    specials = specimen.tokenizer.all_special_tokens
    for token, offset in zip(choice["logprobs"]["tokens"], choice["logprobs"]["text_offset"], strict=True):
        # A tokenizer of SentencePiece's family puts a space before a text.
        shown = token.removeprefix(" ") if offset == 0 else token
        assert choice["text"][offset:].startswith(shown) or "\ufffd" in token or token in specials


@pytest.mark.parametrize("text", [PROMPT, *QUESTIONS, " \n\t  <|im_end|> </s> é"])
def test_texts_become_the_tokenizers_ids_and_ids_its_text(client, specimen, text):
    for special in (True, False):
        ids = specimen.tokenizer(text, add_special_tokens=special).input_ids
        asked = {"model": "zoo", "prompt": text, "add_special_tokens": special, "return_token_strs": True}
        tokens = post(client, "/tokenize", asked)
        assert (tokens["tokens"], tokens["count"]) == (ids, len(ids))
        assert tokens["token_strs"] == specimen.tokenizer.convert_ids_to_tokens(ids)
        text_again = post(client, "/detokenize", {"model": "zoo", "tokens": ids})["prompt"]
        assert text_again == specimen.tokenizer.decode(ids)


def test_a_chat_is_counted_as_it_is_read(client, specimen, asked, blocks):
    ids = specimen.inputs(QUESTIONS[1], [blocks(300, 200)])["input_ids"][0].tolist()
    assert post(client, "/tokenize", {"model": "zoo", "messages": asked})["tokens"] == ids
    read = post(client, "/v1/chat/completions", PLAIN | {"messages": asked, "return_token_ids": True})
    assert read["prompt_token_ids"] == ids
    pruned = {"messages": asked, "vision_pruning": {"keep_tokens": 40}}
    usage = post(client, "/v1/chat/completions", PLAIN | pruned)["usage"]
    assert post(client, "/tokenize", {"model": "zoo", **pruned})["count"] == usage["prompt_tokens"]


def test_tokens_that_must_and_must_not_come(client, specimen):
    free = complete(client, max_tokens=8, ignore_eos=True)["token_ids"]
    first = free[0]
    assert first not in complete(client, logit_bias={str(first): -100})["token_ids"]
    ended = complete(client, stop_token_ids=[free[2]], max_tokens=8, ignore_eos=True)
    assert (ended["finish_reason"], ended["token_ids"]) == ("stop", free[: free.index(free[2]) + 1])
    eos = min(specimen.eos_ids)
    wanted = {"logit_bias": {str(eos): 100}, "max_tokens": 8}
    assert complete(client, **wanted)["token_ids"] == [eos]
    later = complete(client, **wanted, min_tokens=5)["token_ids"]
    assert (len(later), later[5:]) == (6, [eos])
    assert not specimen.eos_ids & set(later[:5])


def test_a_message_that_goes_on_is_continued_where_it_ends(client, specimen):
    turns = [{"role": "user", "content": QUESTIONS[0]}, {"role": "assistant", "content": "It is naïve"}]
    parts = [turn | {"content": [{"type": "text", "text": turn["content"]}]} for turn in turns]
    fields = {"messages": turns, "continue_final_message": True, "return_token_ids": True}
    answer = post(client, "/v1/chat/completions", PLAIN | fields)
    text = specimen.tokenizer.apply_chat_template(
        parts, chat_template=ZOO[specimen.name].template, continue_final_message=True, tokenize=False
    )
    assert text.endswith("It is naïve")
    ids = specimen.tokenizer(text, return_tensors="pt", add_special_tokens=not text.startswith("<|begin_of_text|>"))
    assert answer["prompt_token_ids"] == ids["input_ids"][0].tolist()
    echoed = post(client, "/v1/chat/completions", PLAIN | fields | {"echo": True})["choices"][0]["message"]["content"]
    assert echoed == "It is naïve" + answer["choices"][0]["message"]["content"]


def test_the_other_apis_say_and_stream_what_chats_say(client, asked):
    sampling = {"model": "zoo", "temperature": 0}
    [[choice], _] = chat(client, **sampling, max_tokens=12)
    said = choice["message"]["content"]
    response = sampling | {"input": QUESTIONS[2], "max_output_tokens": 12}
    [item] = post(client, "/v1/responses", response)["output"]
    assert item["content"][0]["text"] == said
    deltas = events(client, "/v1/responses", response)
    assert "".join(event["delta"] for event in deltas if event["type"] == "response.output_text.delta") == said
    message = sampling | {"messages": [{"role": "user", "content": QUESTIONS[2]}], "max_tokens": 12}
    assert post(client, "/v1/messages", message)["content"] == [{"type": "text", "text": said}]
    deltas = events(client, "/v1/messages", message)
    assert "".join(event["delta"]["text"] for event in deltas if event["type"] == "content_block_delta") == said


FORMS = {
    "a schema": {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}},
    "an expression": {"structured_outputs": {"regex": "(日本|naïve){2} [0-9]{3}"}},
    "choices": {"guided_choice": [" zwölf", "日本", "no"]},
}


@pytest.mark.parametrize("form", FORMS)
def test_answers_of_a_form_have_it_streamed_or_not(client, asked, form):
    sampling = {"model": "zoo", "temperature": 1.5, "seed": 7, "max_tokens": 200, "logprobs": True}
    [[choice], [deltas]] = chat(client, **sampling | FORMS[form] | {"messages": asked})
    text = choice["message"]["content"]
    assert (choice["finish_reason"], joined(deltas)) == ("stop", text)
    assert b"".join(bytes(entry["bytes"]) for entry in choice["logprobs"]["content"]).decode() == text
    if form == "a schema":
        Draft202012Validator(SCHEMA).validate(json.loads(text))
    elif form == "an expression":
        assert re.fullmatch("(日本|naïve){2} [0-9]{3}", text)
    else:
        assert text in FORMS[form]["guided_choice"]
