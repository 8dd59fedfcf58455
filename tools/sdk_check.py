"""Talks to a running server as users of the official SDK do, and fails where an answer is not what they expect.

Usage: python3 tools/sdk_check.py URL    (needs the package openai; the server runs the bundled model)
"""

import sys

import openai

QUESTION = "the code for the amber lamp is 4 0 7 1 . what is the code for the amber lamp ?"
MESSAGES = [{"role": "system", "content": "."}, {"role": "user", "content": QUESTION}]


def expect(what, found, wanted):
    if found != wanted:
        sys.exit(f"{what}: {found!r}, expected {wanted!r}")


def refused(kind, call):
    try:
        call()
    except kind as error:
        return error
    sys.exit(f"a request that should be refused with {kind.__name__} was answered")


def main(url):
    client = openai.OpenAI(base_url=url + "/v1", api_key="none", max_retries=0)
    models = [model.id for model in client.models.list()]
    expect("models", models, ["needle"])
    expect("model", client.models.retrieve("needle").id, "needle")

    chat = client.chat.completions.create(model="needle", messages=MESSAGES, logprobs=True, top_logprobs=2)
    expect("chat", chat.choices[0].message.content.strip(), "4 0 7 1 .")
    expect("role", chat.choices[0].message.role, "assistant")
    expect("finish", chat.choices[0].finish_reason, "stop")
    expect("top_logprobs", len(chat.choices[0].logprobs.content[0].top_logprobs), 2)
    expect("usage", chat.usage.completion_tokens, 5)

    chunks = list(client.chat.completions.create(
        model="needle", messages=MESSAGES, stream=True, stream_options={"include_usage": True},
        max_completion_tokens=16, extra_body={"attention": {"algorithm": "sketch", "budget": 0.008}},
    ))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    expect("streamed chat", text.strip(), "4 0 7 1 .")
    expect("streamed usage", chunks[-1].usage.completion_tokens, 5)
    expect("attention", chunks[-1].usage.attention["algorithm"], "sketch")

    completion = client.completions.create(model="needle", prompt=[QUESTION, QUESTION], logprobs=1, n=2)
    expect("completions", [choice.text.strip() for choice in completion.choices], ["4 0 7 1 ."] * 4)
    expect("indices", [choice.index for choice in completion.choices], [0, 1, 2, 3])
    expect("logprobs", len(completion.choices[0].logprobs.token_logprobs), 5)

    error = refused(openai.NotFoundError, lambda: client.completions.create(model="gpt-9", prompt="x"))
    expect("code", error.code, "model_not_found")
    error = refused(openai.BadRequestError, lambda: client.completions.create(model="needle", prompt="x", n=1000))
    expect("param", error.param, "n")
    print("ok")


main(sys.argv[1])
