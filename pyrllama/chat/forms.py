"""Plain forms of a conversation by name, for models that come without a chat template.

Each is what the models of that name were trained on, written as a template of our own.
Sources: the prompts in the repositories of Stanford's Alpaca and of LMSYS's FastChat (Vicuna
1.1); OpenAI's ChatML; Meta's reference code for Llama 2 and its model card for Llama 3.
"""

from __future__ import annotations

from pyrllama.chat.template import TemplateSource

ALPACA = """\
{{ bos_token }}
{%- for message in messages %}
    {%- if message.role == "user" %}
        {{- "### Instruction:\\n" + message.content + "\\n\\n" }}
    {%- elif message.role == "assistant" %}
        {{- "### Response:\\n" + message.content + eos_token + "\\n\\n" }}
    {%- else %}
        {{- message.content + "\\n\\n" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ "### Response:\\n" }}{% endif %}
"""
VICUNA = """\
{{ bos_token }}
{%- for message in messages %}
    {%- if message.role == "user" %}
        {{- "USER: " + message.content + " " }}
    {%- elif message.role == "assistant" %}
        {{- "ASSISTANT: " + message.content + eos_token }}
    {%- else %}
        {{- message.content + " " }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ "ASSISTANT:" }}{% endif %}
"""
CHATML = """\
{% for message in messages %}
    {{- "<|im_start|>" + message.role + "\\n" + message.content + "<|im_end|>\\n" }}
{%- endfor %}
{%- if add_generation_prompt %}{{ "<|im_start|>assistant\\n" }}{% endif %}
"""
LLAMA2 = """\
{% set first = namespace(system="") %}
{%- for message in messages %}
    {%- if message.role == "user" %}
        {{- bos_token + "[INST] " + first.system + message.content | trim + " [/INST]" }}
        {%- set first.system = "" %}
    {%- elif message.role == "assistant" %}
        {{- " " + message.content | trim + " " + eos_token }}
    {%- else %}
        {%- set first.system = "<<SYS>>\\n" + message.content + "\\n<</SYS>>\\n\\n" %}
    {%- endif %}
{%- endfor %}
"""
LLAMA3 = """\
{{ bos_token }}
{%- for message in messages %}
    {{- "<|start_header_id|>" + message.role + "<|end_header_id|>\\n\\n" }}
    {{- message.content | trim + "<|eot_id|>" }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- "<|start_header_id|>assistant<|end_header_id|>\\n\\n" }}
{%- endif %}
"""

_TEXTS = {
    "alpaca": (ALPACA, ("### Instruction:",)),
    "vicuna": (VICUNA, ("USER:",)),
    "chatml": (CHATML, ("<|im_end|>", "<|im_start|>")),
    "llama2": (LLAMA2, ("[INST]",)),
    "llama3": (LLAMA3, ("<|eot_id|>",)),
}

FORMS = {
    name: TemplateSource(text, f"the plain form {name}", stop)
    for name, (text, stop) in _TEXTS.items()
}
"""Templates by name, with the texts at which an answer ends where no token does it."""
PLAIN = ("alpaca", "vicuna", "chatml")
"""Those that are offered to any model: they need no tokens of their own."""
