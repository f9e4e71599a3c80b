"""What is set before a base model's own chat template, so that it is asked as it was tuned.

Templates leave open what changes the prompt: whether the model thinks first (Qwen3), what day it is
(Llama 3.2). And some refuse a system message (Gemma 2), or drop it. Each is settled here, in the
template itself, so that training, this process's answers and a vLLM server read the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# An answer follows at once: with Qwen3 after an empty block of thoughts, which the prompt holds.
_NO_THOUGHTS = "{%- set enable_thinking = false %}"
# The day that Llama's templates name where none can be told. Else prompts change at midnight.
_SAME_DAY = '{%- set date_string = "26 Jul 2024" %}'
# As Gemma 3's own template does.
_SYSTEM_IN_FIRST_TURN = (
    "{%- if messages[0]['role'] == 'system' and messages[1:] %}"
    "{%- set messages = [{'role': messages[1]['role'], 'content': "
    "messages[0]['content'] + '\\n\\n' + messages[1]['content']}] + messages[2:] %}"
    "{%- endif %}"
)
_PROBE = "told-before"


def settle_template(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Settle what the tokenizer's chat template leaves open; return whether that changed it."""
    own = str(tokenizer.get_chat_template())
    settled = own
    if "enable_thinking" in own:
        settled = _NO_THOUGHTS + settled
    if "strftime_now" in own:
        settled = _SAME_DAY + settled
    if not _takes_system(tokenizer):
        settled = _SYSTEM_IN_FIRST_TURN + settled
    tokenizer.chat_template = settled
    return settled != own


def _takes_system(tokenizer: PreTrainedTokenizerBase) -> bool:
    from jinja2 import TemplateError

    asked: list[Any] = [
        {"role": "system", "content": _PROBE},
        {"role": "user", "content": "?"},
    ]
    try:
        return _PROBE in str(tokenizer.apply_chat_template(asked, tokenize=False))
    except TemplateError:
        return False
