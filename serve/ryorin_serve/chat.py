"""
The body of a chat completion request: what is accepted, and what it means.

It is an allowlist. Every field is either honoured, or accepted because ignoring it *is* honouring it (`user`,
`metadata`, `store: false`), or refused with a 400 whose `param` names it. Nothing is silently ignored.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ryorin.errors import InvalidInput
from ryorin.filters import parse_filter
from ryorin.prompt import Message
from ryorin.release import Retrieval

MAX_MESSAGES = 1024
MAX_CHOICES = 16
ROLES = ("system", "developer", "user", "assistant", "tool")
MAX_TOOLS = 128
MAX_STORES = 10
_FUNCTION = re.compile(r"[A-Za-z0-9_-]{1,64}")

Check = Callable[[Any], bool]


def _number(low: float, high: float) -> Check:
    return lambda value: isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def _integer(low: int, high: int) -> Check:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _boolean(value: Any) -> bool:
    return isinstance(value, bool)


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _stop(value: Any) -> bool:
    words = [value] if isinstance(value, str) else value
    return isinstance(words, list) and len(words) <= 4 and all(isinstance(word, str) and word for word in words)


def _object(value: Any) -> bool:
    return isinstance(value, dict)


def _logit_bias(value: Any) -> bool:
    bias = _number(-100, 100)
    return _object(value) and all(token.isdecimal() and bias(number) for token, number in value.items())


def _tools(value: Any) -> bool:
    return isinstance(value, list) and 0 < len(value) <= MAX_TOOLS and all(map(_tool, value))


def _tool(value: Any) -> bool:
    if not isinstance(value, dict) or set(value) != {"type", "function"} or value["type"] != "function":
        return False
    function = value["function"]
    checks: dict[str, Check] = {"name": _name, "description": _text, "parameters": _object, "strict": _boolean}
    return (
        isinstance(function, dict)
        and "name" in function
        and all(name in checks and (each is None or checks[name](each)) for name, each in function.items())
    )


def _name(value: Any) -> bool:
    return isinstance(value, str) and _FUNCTION.fullmatch(value) is not None


def _tool_choice(value: Any) -> bool:
    if isinstance(value, dict):
        named = value.get("function")
        return (
            set(value) == {"type", "function"}
            and value["type"] == "function"
            and isinstance(named, dict)
            and set(named) == {"name"}
            and _name(named["name"])
        )
    return value in ("none", "auto", "required")


# Sampling: checked here, computed by vLLM. name: (check, what a right value is)
PASSED_ON: dict[str, tuple[Check, str]] = {
    "temperature": (_number(0, 2), "a number from 0 to 2"),
    "top_p": (lambda value: _number(0, 1)(value) and value > 0, "a number above 0, up to 1"),
    "presence_penalty": (_number(-2, 2), "a number from -2 to 2"),
    "frequency_penalty": (_number(-2, 2), "a number from -2 to 2"),
    "seed": (_integer(-(2**63), 2**63 - 1), "a 64-bit integer"),
    "stop": (_stop, "a string, or a list of up to 4 strings, none empty"),
    "n": (_integer(1, MAX_CHOICES), f"an integer from 1 to {MAX_CHOICES}"),
    "logprobs": (_boolean, "true or false"),
    "top_logprobs": (_integer(0, 20), "an integer from 0 to 20"),
    "logit_bias": (_logit_bias, "an object from token id to a number from -100 to 100"),
    "tools": (_tools, f"a list of 1 to {MAX_TOOLS} functions, each with a name"),
    "tool_choice": (_tool_choice, "'none', 'auto', 'required', or a function by its name"),
    "parallel_tool_calls": (_boolean, "true or false"),
    "response_format": (
        lambda value: _object(value) and value.get("type") in ("text", "json_object", "json_schema"),
        "an object whose type is text, json_object or json_schema",
    ),
}

# What a message may have besides; what an assistant message of ours carries may come back.
_OF_ROLE = {"assistant": ("context", "annotations", "tool_calls"), "tool": ("tool_call_id",)}

# Who asks, the first that is given; else the conversation speaks for itself.
PEOPLE = ("safety_identifier", "user")
ASKERS = (*PEOPLE, "prompt_cache_key")

# Accepted, and nothing is to be done about them.
HARMLESS: dict[str, tuple[Check, str]] = {
    "user": (_text, "a string"),
    "safety_identifier": (_text, "a string"),
    "prompt_cache_key": (_text, "a string"),
    "metadata": (_object, "an object"),
    "store": (lambda value: value is False, "false: this server does not keep completions for retrieval by the API"),
    "service_tier": (lambda value: value in ("auto", "default"), "'auto' or 'default'"),
    "modalities": (lambda value: value == ["text"], "['text']"),
}


@dataclass(frozen=True)
class Knowledge:
    """
    What a request says of retrieval.

    top_k: passages at most, 0 for none; None leaves it to the release. filters: that must hold beside the release's.
    store_ids: of the tenant's stores, in place of the release's. ranking: weights and floor in place of the release's.
    """

    top_k: int | None = None
    filters: dict[str, Any] | None = None
    store_ids: tuple[str, ...] | None = None
    ranking: Retrieval | None = None


@dataclass(frozen=True)
class ChatRequest:
    """
    A request as understood.

    model: what was asked, `<tenant>` or `<tenant>@<version>`. conversation: text messages, oldest first.
    sampling: fields for vLLM as they came. max_tokens: limit of the answer; None when the request names none.
    knowledge: where passages come from, and how many.
    asker: who asks, in the client's words, or what the conversation begins with: the same asker gets the same release.
    user: the person who asks, in the client's words.
    """

    model: str
    conversation: list[Message]
    sampling: dict[str, Any]
    max_tokens: int | None
    stream: bool
    include_usage: bool
    knowledge: Knowledge = Knowledge()
    asker: str = ""
    user: str | None = None


def parse_chat(body: Any, knowledge: Knowledge | None = None) -> ChatRequest:
    """
    A request body as a ChatRequest. Raises InvalidInput naming the field.

    knowledge: what was said of retrieval elsewhere than in `retrieval`.
    """
    if not isinstance(body, dict):
        raise InvalidInput("The request body must be a JSON object.")
    fields = {name: value for name, value in body.items() if value is not None}  # null means absent, as in OpenAI's
    model = fields.pop("model", None)
    if not isinstance(model, str) or not model:
        raise InvalidInput("model must name a tenant, or a release of it as <tenant>@<version>", param="model")
    conversation = _conversation(fields.pop("messages", None))
    stream = _take(fields, "stream", _boolean, "true or false") or False
    include_usage = _stream_options(fields.pop("stream_options", None), stream)
    knowledge = knowledge or _retrieval(fields.pop("retrieval", None))
    if fields.get("tools") == []:
        del fields["tools"]
    limits = [
        _take(fields, name, _integer(1, 2**31 - 1), "an integer of 1 or more")
        for name in ("max_completion_tokens", "max_tokens")  # the first is the newer name and wins
    ]
    sampling: dict[str, Any] = {}
    for name, value in fields.items():
        check, right = PASSED_ON.get(name) or HARMLESS.get(name) or (None, "")
        if check is None:
            raise InvalidInput(f"Unsupported parameter: {name!r}.", code="unsupported_parameter", param=name)
        if not check(value):
            raise InvalidInput(f"{name} is {_shown(value)}; it must be {right}", code="invalid_value", param=name)
        if name in PASSED_ON:
            sampling[name] = value
    if sampling.get("top_logprobs") and not sampling.get("logprobs"):
        raise InvalidInput("top_logprobs needs logprobs: true", code="invalid_value", param="top_logprobs")
    if "tools" not in sampling:
        if sampling.pop("tool_choice", "none") != "none":
            raise InvalidInput("tool_choice needs tools", code="invalid_value", param="tool_choice")
        sampling.pop("parallel_tool_calls", None)
    return ChatRequest(
        model=model,
        conversation=conversation,
        sampling=sampling,
        max_tokens=next((limit for limit in limits if limit is not None), None),
        stream=stream,
        include_usage=include_usage,
        knowledge=knowledge,
        asker=asker_of(body, conversation),
        user=next((body[name] for name in PEOPLE if body.get(name)), None),
    )


def asker_of(body: Mapping[str, Any], conversation: Sequence[Message]) -> str:
    """Who asks: by the first of `ASKERS` in the body, else by the conversation's first message of the user."""
    named = next((f"{name}:{body[name]}" for name in ASKERS if body.get(name)), None)
    return named or "conversation:" + next(each["content"] for each in conversation if each["role"] == "user")


def _take(fields: dict[str, Any], name: str, check: Check, right: str) -> Any:
    value = fields.pop(name, None)
    if value is not None and not check(value):
        raise InvalidInput(f"{name} is {_shown(value)}; it must be {right}", code="invalid_value", param=name)
    return value


def _conversation(messages: Any) -> list[Message]:
    if not isinstance(messages, list) or not messages:
        raise InvalidInput("messages must be a list of at least one message", param="messages")
    if len(messages) > MAX_MESSAGES:
        raise InvalidInput(f"messages has {len(messages)} entries, the limit is {MAX_MESSAGES}", param="messages")
    conversation = [_message(message, f"messages[{place}]") for place, message in enumerate(messages)]
    if not any(message["role"] == "user" for message in conversation):
        raise InvalidInput("messages has no message of the user", param="messages")
    return conversation


def _message(message: Any, param: str) -> Message:
    if not isinstance(message, dict):
        raise InvalidInput(f"{param} must be an object", param=param)
    role = message.get("role")
    if role not in ROLES:
        raise InvalidInput(
            f"{param}.role is {_shown(role)}; it must be one of {', '.join(ROLES)}", param=f"{param}.role"
        )
    for name, value in message.items():
        # `name` says who speaks, which no prompt here shows
        known = name in ("role", "content", "name") or name in _OF_ROLE.get(role, ())
        if not known and value not in (None, [], ""):
            raise InvalidInput(
                f"Unsupported parameter: '{param}.{name}'.", code="unsupported_parameter", param=f"{param}.{name}"
            )
    calls = _tool_calls(message.get("tool_calls"), f"{param}.tool_calls") if role == "assistant" else []
    content = message.get("content")
    if content is None and calls:
        content = ""
    if isinstance(content, list):
        content = "".join(_part(part, f"{param}.content[{place}]") for place, part in enumerate(content))
    if not isinstance(content, str):
        raise InvalidInput(f"{param}.content must be text or a list of text parts", param=f"{param}.content")
    said: Message = {"role": role, "content": content}
    if calls:
        said["tool_calls"] = calls
    if role == "tool":
        call_id = message.get("tool_call_id")
        if not isinstance(call_id, str) or not call_id:
            raise InvalidInput(f"{param}.tool_call_id must name the call it answers", param=f"{param}.tool_call_id")
        said["tool_call_id"] = call_id
    return said


def _tool_calls(value: Any, param: str) -> list[Any]:
    """Calls of functions, each made anew of what is known."""
    if value in (None, []):
        return []
    calls = []
    for place, call in enumerate(value if isinstance(value, list) else [None]):
        function = call.get("function") if isinstance(call, dict) else None
        if (
            not isinstance(function, dict)
            or call.get("type", "function") != "function"
            or not isinstance(call.get("id"), str)
            or not _name(function.get("name"))
            or not isinstance(function.get("arguments"), str)
        ):
            raise InvalidInput(
                f"{param}[{place}] must be a function's call: id, type 'function', function with name and arguments",
                param=f"{param}[{place}]",
            )
        called = {"name": function["name"], "arguments": function["arguments"]}
        calls.append({"id": call["id"], "type": "function", "function": called})
    return calls


def _part(part: Any, param: str) -> str:
    if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
        kind = part.get("type") if isinstance(part, dict) else part
        raise InvalidInput(f"{param} is of type {_shown(kind)}; only text parts are understood", param=param)
    text: str = part["text"]
    return text


def _stream_options(options: Any, stream: bool) -> bool:
    if options is None:
        return False
    if not stream:
        raise InvalidInput("stream_options needs stream: true", param="stream_options")
    if not isinstance(options, dict):
        raise InvalidInput("stream_options must be an object", param="stream_options")
    _only(options, {"include_usage": _boolean, "include_obfuscation": lambda value: value is False}, "stream_options")
    return bool(options.get("include_usage"))


def _retrieval(options: Any) -> Knowledge:
    """`{"off": true}`, or any of `top_k`, `filters` and `vector_store_ids`."""
    if options is None:
        return Knowledge()
    if not isinstance(options, dict):
        raise InvalidInput('retrieval must be an object such as {"top_k": 3} or {"off": true}', param="retrieval")
    _only(
        options,
        {"top_k": _integer(0, 50), "off": _boolean, "filters": _object, "vector_store_ids": _store_ids},
        "retrieval",
    )
    if options.get("off"):
        return Knowledge(top_k=0)
    filters, stores = options.get("filters"), options.get("vector_store_ids")
    if filters is not None:
        parse_filter(filters, "retrieval.filters")
    return Knowledge(options.get("top_k"), filters, None if stores is None else tuple(dict.fromkeys(stores)))


def _store_ids(value: Any) -> bool:
    return isinstance(value, list) and 0 < len(value) <= MAX_STORES and all(isinstance(each, str) for each in value)


def _only(options: Mapping[str, Any], allowed: Mapping[str, Check], param: str) -> None:
    for name, value in options.items():
        path = f"{param}.{name}"
        if name not in allowed:
            raise InvalidInput(f"Unsupported parameter: {path!r}.", code="unsupported_parameter", param=path)
        if value is not None and not allowed[name](value):
            raise InvalidInput(f"{path} cannot be {_shown(value)}", code="invalid_value", param=path)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
