"""What OpenAI's client can do with the server: chat, streams, completions, models, errors, disconnects, many at a time."""

import asyncio
import sys
import time

import openai
from openai import AsyncOpenAI, OpenAI

from server import Server

KEY = "secret"
QUESTION = [{"role": "user", "content": "Write a story with the words tree, rain and happy."}]


def strict(reply):
    """The client takes anything; its own types, made anew from what it got, do not."""
    return type(reply).model_validate(reply.to_dict(), strict=True)


def models(client):
    listed = [strict(model) for model in client.models.list()]
    assert [model.owned_by for model in listed] == ["bitnet"]
    return client.models.retrieve(listed[0].id).id


def chat(client, model):
    asked = dict(model=model, messages=QUESTION, temperature=0, max_completion_tokens=20)
    whole = strict(client.chat.completions.create(**asked))
    assert whole.choices[0].finish_reason == "length"
    assert whole.usage.completion_tokens == 20
    stream = client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    chunks = [strict(chunk) for chunk in stream]
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text == whole.choices[0].message.content and text
    assert chunks[-1].usage == whole.usage and chunks[0].choices[0].delta.role == "assistant"
    unbounded = {**asked, "max_completion_tokens": None}
    with client.chat.completions.stream(**unbounded) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].finish_reason == "stop" and final.choices[0].message.content.startswith(text)
    raw = client.chat.completions.with_raw_response.create(**asked, extra_headers={"X-Request-Id": "mine"})
    assert raw.headers["x-request-id"] == "mine" and raw.parse()._request_id == "mine"
    several = strict(client.chat.completions.create(**{**asked, "temperature": 1.2}, n=3, seed=1))
    assert len({choice.message.content for choice in several.choices}) > 1
    extra = client.chat.completions.create(**asked, extra_body={"top_k": 1, "min_p": 0.1, "priority": 5})
    assert extra.timings["predicted_n"] == 20


def completions(client, model):
    asked = dict(model=model, temperature=0, max_tokens=8)
    one = strict(client.completions.create(prompt="Once upon a time", **asked))
    assert one.choices[0].text == ", there was a little girl named Lily"
    both = client.completions.create(prompt=["Once upon a time", "Lily"], echo=True, **asked)
    assert both.choices[0].text == "Once upon a time" + one.choices[0].text
    assert [choice.index for choice in both.choices] == [0, 1]
    stream = client.completions.create(prompt="Once upon a time", stream=True, **asked)
    chunks = list(stream)  # whose type has no place for OpenAI's own null before the last finish_reason
    assert "".join(chunk.choices[0].text for chunk in chunks) == one.choices[0].text
    assert chunks[-1].choices[0].finish_reason == "length"


def likely(client, model):
    asked = dict(model=model, messages=QUESTION, temperature=0, max_tokens=12, logprobs=True, top_logprobs=2)
    choice = strict(client.chat.completions.create(**asked)).choices[0]
    tokens = choice.logprobs.content
    assert b"".join(bytes(token.bytes) for token in tokens).decode().strip() == choice.message.content.strip()
    assert all(token.top_logprobs[0].logprob == token.logprob for token in tokens)
    chunks = [strict(chunk) for chunk in client.chat.completions.create(**asked, stream=True)]
    pieces = [choice.logprobs.content for chunk in chunks for choice in chunk.choices if choice.logprobs]
    assert [token.token for piece in pieces for token in piece] == [token.token for token in tokens]
    asked = dict(model=model, prompt="Once upon a time", max_tokens=4, temperature=0)
    lists = client.completions.create(**asked, logprobs=1, echo=True).choices[0].logprobs  # the first is null, as OpenAI's
    assert lists.token_logprobs[0] is None and len(lists.tokens) == len(lists.text_offset)
    first = lists.tokens[-4]
    ids = client.post("../tokenize", cast_to=object, body={"prompt": first, "add_special_tokens": False})["tokens"]
    biased = client.completions.create(**asked, logit_bias={str(ids[0]): -100})
    assert not biased.choices[0].text.startswith(first)


def errors(client, model):
    def fails(kind, **changes):
        try:
            client.chat.completions.create(**{"model": model, "messages": QUESTION, **changes})
        except kind as error:
            assert error.body["message"] and error.type
            return error
        raise AssertionError(f"{changes} is not refused")

    assert fails(openai.BadRequestError, temperature=-1).param == "temperature"
    assert fails(openai.BadRequestError, max_tokens=10**9).code == "context_length_exceeded"
    assert fails(openai.NotFoundError, model="gpt-9").code == "model_not_found"
    assert fails(openai.BadRequestError, extra_body={"colour": "red"}).param == "colour"
    other = OpenAI(base_url=client.base_url, api_key="wrong", max_retries=0)
    try:
        other.models.list()
    except openai.AuthenticationError as error:
        assert error.code == "invalid_api_key"
    else:
        raise AssertionError("a wrong key is not refused")


def gauge(client, name):
    text = client.get("../metrics", cast_to=str)
    return float(next(line for line in text.splitlines() if line.startswith(name + "{")).split()[-1])


def disconnect(client, model):
    asked = dict(model=model, prompt="Once", max_tokens=450, extra_body={"ignore_eos": True})
    stream = client.completions.create(**asked, stream=True)
    next(iter(stream))
    stream.close()
    end = time.monotonic() + 30
    while gauge(client, "bitnet_requests_running") > 0:
        assert time.monotonic() < end, "the engine goes on for nobody"
        time.sleep(0.02)


async def many(url, model):
    async with AsyncOpenAI(base_url=url, api_key=KEY) as client:
        async def one(index):
            reply = await client.completions.create(
                model=model, prompt="Once upon a time", max_tokens=20, seed=index % 4, temperature=1
            )
            return index % 4, reply.choices[0].text

        texts = {}
        for seed, text in await asyncio.gather(*(one(index) for index in range(40))):
            assert texts.setdefault(seed, text) == text, "an answer depends on its neighbours"


def main(program):
    with Server(program, "--api-key", KEY) as server:
        url = f"{server.url}/v1"
        client = OpenAI(base_url=url, api_key=KEY, max_retries=0)
        model = models(client)
        for test in [chat, completions, likely, errors, disconnect]:
            test(client, model)
            print(f"openai {openai.__version__}: {test.__name__} passed")
        asyncio.run(many(url, model))
        print(f"openai {openai.__version__}: many at a time passed")


main(sys.argv[1])
