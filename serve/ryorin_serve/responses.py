"""
`/v1/responses`: what a request means, in terms of a chat completion, and the objects that it is answered with.

A response is a chat completion by another name: the same release, retrieval, prompt and engine. What differs is its
shape: instructions and items go in; items come out, and citations are annotations of a text that has no markers.

Nothing is kept: `store` must be false or absent, and a conversation is sent whole each time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ryorin.errors import InvalidInput
from ryorin.filters import parse_filter
from ryorin_index.search import Hit
from ryorin_serve.answer import BEGINNING, SPACED
from ryorin_serve.chat import MAX_STORES, ChatRequest, Knowledge, parse_chat
from ryorin_serve.ranking import read_ranking
from ryorin_serve.requests import choice, fields_of, ids, integer

# Of these the values that change nothing are taken; null counts as absent everywhere.
INERT: dict[str, tuple[Any, ...]] = {
    "store": (False,),
    "background": (False,),
    "truncation": ("disabled",),
    "service_tier": ("auto", "default"),
    "top_logprobs": (0,),
}
NOT_KEPT = {
    "previous_response_id": "this server keeps no responses; send the conversation as input",
    "conversation": "this server keeps no conversations; send the conversation as input",
    "prompt": "this server keeps no prompt templates; the tenant's prompt is its release's",
    "reasoning": "the models here do not reason apart from their answers",
    "max_tool_calls": "no tool is called here but file_search, once",
}
PASSED_ON = ("model", "temperature", "top_p", "user", "safety_identifier", "prompt_cache_key", "parallel_tool_calls")
_PARAMS = {"messages": "input", "response_format": "text.format"}  # of chat: what stands there here
FIELDS = (
    *PASSED_ON,
    *INERT,
    *NOT_KEPT,
    "input",
    "instructions",
    "tools",
    "tool_choice",
    "max_output_tokens",
    "stream",
    "stream_options",
    "include",
    "metadata",
    "text",
)
RESULTS = "file_search_call.results"


@dataclass(frozen=True)
class Asked:
    """
    A request as understood.

    chat: what the release is asked. body: as it came, for what a response repeats of it. searches: whether file_search
    was asked for, so that the search is an item of the output. shows_results: with the passages that were found.
    """

    chat: ChatRequest
    body: dict[str, Any]
    searches: bool
    shows_results: bool


def parse_responses(value: Any) -> Asked:
    """A request's body. Raises InvalidInput naming the field."""
    body = {name: each for name, each in fields_of(value, FIELDS).items() if each is not None}
    for name, why in NOT_KEPT.items():
        if name in body:
            raise InvalidInput(f"{name} is not supported: {why}.", code="unsupported_parameter", param=name)
    for name, allowed in INERT.items():
        if name in body and body[name] not in allowed:
            right = " or ".join(repr(each) for each in allowed)
            raise InvalidInput(f"{name} is {body[name]!r}; this server takes {right}.", param=name)
    include = body.get("include", [])
    if not isinstance(include, list) or any(each != RESULTS for each in include):
        raise InvalidInput(f"include may hold {RESULTS!r}.", param="include")
    if body.get("stream_options") not in (None, {}, {"include_obfuscation": False}):
        raise InvalidInput("stream_options may hold include_obfuscation: false.", param="stream_options")
    functions, knowledge, searches = _tools(body.get("tools", []))
    chat: dict[str, Any] = {name: body[name] for name in PASSED_ON if name in body}
    chat["messages"] = _messages(body)
    if "max_output_tokens" in body:
        chat["max_completion_tokens"] = integer(body["max_output_tokens"], "max_output_tokens", 1, 2**31 - 1)
    if "metadata" in body:
        chat["metadata"] = body["metadata"]
    if functions:
        chat["tools"] = functions
    chosen = _tool_choice(body.get("tool_choice"), functions=bool(functions), searches=searches)
    if chosen is not None:
        chat["tool_choice"] = chosen
    form = _format(body.get("text"))
    if form is not None:
        chat["response_format"] = form
    chat["stream"] = body.get("stream", False)
    try:
        request = parse_chat(chat, knowledge)
    except InvalidInput as error:
        param = _PARAMS.get((error.param or "").partition("[")[0].partition(".")[0], error.param)
        raise InvalidInput(error.message, code=error.code, param=param) from None
    return Asked(request, body, searches, RESULTS in include)


def _messages(body: dict[str, Any]) -> list[dict[str, Any]]:
    """Instructions and input as chat messages."""
    messages: list[dict[str, Any]] = []
    if "instructions" in body:
        if not isinstance(body["instructions"], str):
            raise InvalidInput("instructions must be a text.", param="instructions")
        messages.append({"role": "developer", "content": body["instructions"]})
    given = body.get("input")
    if isinstance(given, str):
        return [*messages, {"role": "user", "content": given}]
    if not isinstance(given, list) or not given:
        raise InvalidInput("input must be a text, or a list of items.", param="input")
    for place, item in enumerate(given):
        said = _message(item, f"input[{place}]")
        if said is None:
            continue
        calls = said.get("tool_calls")
        if calls and messages and messages[-1]["role"] == "assistant":  # items of one turn
            messages[-1].setdefault("tool_calls", []).extend(calls)
        else:
            messages.append(said)
    return messages


def _message(item: Any, param: str) -> dict[str, Any] | None:
    """An item as a chat message; None for one that says nothing to the model."""
    if not isinstance(item, dict):
        raise InvalidInput(f"{param} must be an object.", param=param)
    kind = item.get("type", "message")
    if kind == "message":
        fields_of(item, ("type", "role", "content", "id", "status", "phase"), f"{param}.")
        return {"role": item.get("role"), "content": _content(item.get("content"), f"{param}.content")}
    if kind == "function_call":
        fields_of(item, ("type", "call_id", "name", "arguments", "id", "status"), f"{param}.")
        called = {"name": item.get("name"), "arguments": item.get("arguments")}
        call = {"id": item.get("call_id"), "type": "function", "function": called}
        return {"role": "assistant", "content": "", "tool_calls": [call]}
    if kind == "function_call_output":
        fields_of(item, ("type", "call_id", "output", "id", "status"), f"{param}.")
        output = _content(item.get("output"), f"{param}.output")
        return {"role": "tool", "tool_call_id": item.get("call_id"), "content": output}
    if kind == "file_search_call":  # what it found is searched for anew
        return None
    raise InvalidInput(
        f"{param}.type is {str(kind)[:64]!r}; message, function_call, function_call_output and file_search_call are "
        "understood.",
        param=f"{param}.type",
    )


def _content(value: Any, param: str) -> Any:
    """Text parts as one text."""
    if not isinstance(value, list):
        return value
    texts = []
    for place, part in enumerate(value):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in ("input_text", "output_text") and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif kind == "refusal" and isinstance(part.get("refusal"), str):
            texts.append(part["refusal"])
        else:
            raise InvalidInput(
                f"{param}[{place}] is of type {str(kind)[:64]!r}; only text is understood.", param=f"{param}[{place}]"
            )
    return "".join(texts)


def _tools(value: Any) -> tuple[list[dict[str, Any]], Knowledge, bool]:
    """The functions as chat has them, what file_search says of retrieval, and whether there is one."""
    if not isinstance(value, list):
        raise InvalidInput("tools must be a list.", param="tools")
    functions: list[dict[str, Any]] = []
    knowledge, searches = Knowledge(), False
    for place, tool in enumerate(value):
        where = f"tools[{place}]"
        kind = tool.get("type") if isinstance(tool, dict) else None
        if kind == "function":
            fields = fields_of(
                tool, ("type", "name", "description", "parameters", "strict", "defer_loading"), f"{where}."
            )
            kept = ("name", "description", "parameters", "strict")
            named = {name: fields[name] for name in kept if fields.get(name) is not None}
            functions.append({"type": "function", "function": named})
        elif kind == "file_search" and not searches:
            knowledge, searches = _file_search(tool, where), True
        else:
            raise InvalidInput(
                f"{where}.type is {str(kind)[:64]!r}; functions and one file_search are supported.",
                param=f"{where}.type",
            )
    return functions, knowledge, searches


def _file_search(tool: dict[str, Any], where: str) -> Knowledge:
    fields = fields_of(tool, ("type", "vector_store_ids", "max_num_results", "filters", "ranking_options"), f"{where}.")
    stores = fields.get("vector_store_ids") or []
    most, filters = fields.get("max_num_results"), fields.get("filters")
    if filters is not None:
        parse_filter(filters, f"{where}.filters")
    ranking = None
    if fields.get("ranking_options") is not None:
        ranking = read_ranking(fields, 1, f"{where}.")
    return Knowledge(
        top_k=None if most is None else integer(most, f"{where}.max_num_results", 1, 50),
        filters=filters,
        store_ids=tuple(ids(stores, f"{where}.vector_store_ids", 0, MAX_STORES)) or None,
        ranking=ranking,
    )


def _tool_choice(value: Any, *, functions: bool, searches: bool) -> Any:
    """For chat. A file_search is always done, whatever is chosen but 'none', which then means the functions."""
    if isinstance(value, dict):
        if value.get("type") == "function":
            return {"type": "function", "function": {"name": value.get("name")}}
        if value == {"type": "file_search"} and searches:
            return None
        raise InvalidInput("tool_choice names a tool that is not there.", param="tool_choice")
    if value is None:
        return None
    chosen = choice(value, "tool_choice", ("none", "auto", "required"))
    return chosen if functions else None


def _format(value: Any) -> Any:
    if value is None:
        return None
    fields = fields_of(value, ("format", "verbosity"), "text.")
    if fields.get("verbosity") not in (None, "medium"):
        raise InvalidInput("text.verbosity is not supported; say in the instructions how long.", param="text.verbosity")
    form = fields.get("format")
    if not isinstance(form, dict) or form.get("type") != "json_schema":
        return form
    inner = fields_of(form, ("type", "name", "schema", "strict", "description"), "text.format.")
    schema = {name: each for name, each in inner.items() if name != "type" and each is not None}
    return {"type": "json_schema", "json_schema": schema}


@dataclass
class CitedText:
    """
    An answer's text without its markers, and what they cite, from pieces as they come.

    hits: the passages of the prompt. keeps_markers: of JSON, which may need them; annotations then point to them.
    text, annotations: so far. An annotation's `index` is the offset of its marker's place, in characters of the text.
    """

    hits: Sequence[Hit]
    keeps_markers: bool
    text: str = ""
    annotations: list[dict[str, Any]] = field(default_factory=list)
    removed: int = 0
    _held: str = ""

    def feed(self, piece: str, last: bool = False) -> tuple[str, list[dict[str, Any]]]:
        """What of the text is certain with this piece, and what it cites anew."""
        text = self._held + piece
        at = len(text)
        if not last and (beginning := BEGINNING.search(text)):
            at = beginning.start()
        text, self._held = text[:at], text[at:]
        shown, end = "", 0
        found: list[dict[str, Any]] = []
        for marker in SPACED.finditer(text):
            number = int(marker[1])
            shown += text[end : marker.start()]
            end = marker.end()
            if 1 <= number <= len(self.hits):
                space = marker.end(1) - marker.start() - len(marker[1]) - 1  # before the bracket
                place = len(self.text) + len(shown) + (space if self.keeps_markers else 0)
                found.append(_annotation(self.hits[number - 1], place))
            else:
                self.removed += not self.keeps_markers
            if self.keeps_markers:
                shown += marker[0]
        shown += text[end:]
        self.text += shown
        self.annotations += found
        return shown, found


def _annotation(hit: Hit, index: int) -> dict[str, Any]:
    return {
        "type": "file_citation",
        "file_id": hit.file_id or hit.document_id,
        "filename": hit.filename,
        "index": index,
    }


def search_item(item_id: str, asked: Asked, query: str, hits: Sequence[Hit], status: str) -> dict[str, Any]:
    """The item that tells of a search."""
    results = None
    if asked.shows_results and status == "completed":
        results = [
            {
                "file_id": hit.file_id or hit.document_id,
                "filename": hit.filename,
                "score": round(min(max(hit.score, 0.0), 1.0), 6),
                "text": hit.text,
                "attributes": hit.attributes,
            }
            for hit in hits
        ]
    return {
        "type": "file_search_call",
        "id": item_id,
        "status": status,
        "queries": [query] if status == "completed" and query else [],
        "results": results,
    }


def message_item(item_id: str, text: CitedText | None, status: str) -> dict[str, Any]:
    """The item that holds an answer's text."""
    content = [] if text is None else [text_part(text)]
    return {"type": "message", "id": item_id, "role": "assistant", "status": status, "content": content}


def text_part(text: CitedText) -> dict[str, Any]:
    """The text as a part of an item."""
    return {"type": "output_text", "text": text.text, "annotations": text.annotations, "logprobs": []}


def call_item(item_id: str, call: dict[str, Any], status: str) -> dict[str, Any]:
    """The item that calls a function."""
    function = call["function"]
    return {
        "type": "function_call",
        "id": item_id,
        "call_id": call["id"],
        "name": function["name"],
        "arguments": function["arguments"],
        "status": status,
    }


def usage_object(usage: dict[str, Any]) -> dict[str, Any] | None:
    """What was used, in this API's words; None when the engine has not said it."""
    if not usage:
        return None
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    read, written = usage.get("prompt_tokens") or 0, usage.get("completion_tokens") or 0
    return {
        "input_tokens": read,
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
        "output_tokens": written,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": read + written,
    }


def response_object(
    response_id: str,
    created_at: float,
    asked: Asked,
    status: str,
    output: list[dict[str, Any]],
    usage: dict[str, Any],
    error: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """
    A response. Fields that the Open Responses schema wants are never null: what was not given is its default.

    status: "in_progress", "completed", "incomplete" (the answer reached its limit) or "failed".
    """
    body = asked.body
    limit = {"reason": "max_output_tokens"} if status == "incomplete" else None
    return {
        "id": response_id,
        "object": "response",
        "created_at": int(created_at),
        "status": status,
        "error": error,
        "incomplete_details": limit,
        "instructions": body.get("instructions"),
        "max_output_tokens": body.get("max_output_tokens"),
        "model": body["model"],
        "output": output,
        "parallel_tool_calls": body.get("parallel_tool_calls", True),
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None},
        "store": False,
        "background": False,
        "service_tier": "default",
        "temperature": body.get("temperature", 1.0),
        "top_p": body.get("top_p", 1.0),
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "top_logprobs": 0,
        "text": body.get("text") or {"format": {"type": "text"}},
        "tool_choice": body.get("tool_choice", "auto"),
        "tools": body.get("tools", []),
        "truncation": "disabled",
        "usage": usage_object(usage),
        "user": body.get("user"),
        "metadata": body.get("metadata", {}),
    }
