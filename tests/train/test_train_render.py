from __future__ import annotations

from typing import Any

import pytest
from tiny import PROMPT
from tiny_base import TEMPLATE

from ryorin.errors import RowError
from ryorin.prompt import PromptPassage, render
from ryorin_train.data import Example
from ryorin_train.render import Renderer, TokenRow, end_of_turn


def example(*turns: tuple[str, str], passages: Any = None, learned: Any = None) -> Example:
    messages = tuple({"role": role, "content": content} for role, content in turns)
    return Example(7, messages, learned or tuple(role == "assistant" for role, _ in turns), passages)  # type: ignore[arg-type]


def learned_text(tokenizer: Any, row: TokenRow) -> str:
    return str(tokenizer.decode([token for token, learned in zip(row.ids, row.learned, strict=True) if learned]))


ONE = example(("user", "問い?"), ("assistant", '{"a": "答え"}'), passages=(PromptPassage("T", "text"),))


def test_the_answer_and_the_end_of_turn_are_learned_and_nothing_else(tokenizer: Any) -> None:
    row = Renderer(tokenizer, PROMPT, 1000).row(ONE)
    assert learned_text(tokenizer, row) == '{"a": "答え"}<|im_end|>'
    assert row.learned == tuple(sorted(row.learned))


def test_the_prompt_is_what_vllm_sees(tokenizer: Any) -> None:
    row = Renderer(tokenizer, PROMPT, 1000).row(ONE)
    messages = render(PROMPT, ONE.messages[:-1], ONE.passages)
    # vLLM renders the template to text and tokenizes that without special tokens of its own.
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    served = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert list(row.ids[: row.first_learned]) == served
    assert "<documents>\n[1] T\ntext\n</documents>" in text
    answered = tokenizer.apply_chat_template([*messages, ONE.messages[-1]], tokenize=False)
    assert answered == tokenizer.decode(row.ids) + "\n"


def test_every_turn_of_weight_one_is_learned(tokenizer: Any) -> None:
    turns = (("user", "a"), ("assistant", "first"), ("user", "b"), ("assistant", "second"))
    renderer = Renderer(tokenizer, PROMPT, 1000)
    assert learned_text(tokenizer, renderer.row(example(*turns))) == "first<|im_end|>second<|im_end|>"
    only_last = example(*turns, learned=(False, False, False, True))
    assert learned_text(tokenizer, renderer.row(only_last)) == "second<|im_end|>"


def test_a_template_that_drops_earlier_answers_is_noticed(tokenizer: Any) -> None:
    import copy

    forgetful = copy.deepcopy(tokenizer)
    forgetful.chat_template = TEMPLATE.replace(
        "{{ '<|im_start|>' + message", "{% if message.role != 'assistant' or loop.last %}{{ '<|im_start|>' + message", 1
    ).replace("{% endfor %}", "{% endif %}{% endfor %}", 1)
    turns = (("user", "a"), ("assistant", "first"), ("user", "b"), ("assistant", "second"))
    with pytest.raises(RowError, match="line 7: message 2 cannot be learned"):
        Renderer(forgetful, PROMPT, 1000).rows("f.jsonl", [example(*turns)])


def test_too_long_rows_are_named_with_tokens_and_limit(tokenizer: Any) -> None:
    renderer = Renderer(tokenizer, PROMPT, 100)
    with pytest.raises(RowError, match=r"f.jsonl, line 7: \d{3} tokens with the prompt, the limit is 100"):
        renderer.rows("f.jsonl", [example(("user", "x" * 200), ("assistant", "y"))])


def test_an_answer_with_a_control_token_is_refused(tokenizer: Any) -> None:
    with pytest.raises(RowError, match=r"holds the control token '<\|im_end\|>'"):
        Renderer(tokenizer, PROMPT, 1000).rows("f", [example(("user", "x"), ("assistant", "y<|im_end|>"))])


def test_the_end_of_turn_comes_from_the_template(tokenizer: Any) -> None:
    import copy

    assert tokenizer.decode(end_of_turn(tokenizer)) == "<|im_end|>"
    silent = copy.deepcopy(tokenizer)
    silent.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    assert end_of_turn(silent) == [silent.eos_token_id]


def test_a_base_model_without_a_chat_template_is_refused(tokenizer: Any) -> None:
    import copy

    bare = copy.deepcopy(tokenizer)
    bare.chat_template = None
    with pytest.raises(ValueError, match="no chat template"):
        Renderer(bare, PROMPT, 1000)
