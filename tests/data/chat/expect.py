"""Renders chat templates with jinja2, set up as transformers sets it up.

    python expect.py FOLDER_WITH_JINJA_FILES

Needs the package `jinja2`. Writes templates.json: the conversations, and for each template its
source and what each conversation renders to, or the message it raises.
"""

import json
import pathlib
import sys

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

NAMES = [
    "meta-llama-Llama-3.2-3B-Instruct", "Qwen-Qwen2.5-7B-Instruct", "Qwen-Qwen3-0.6B",
    "google-gemma-2-2b-it", "microsoft-Phi-3.5-mini-instruct",
    "mistralai-Mistral-Nemo-Instruct-2407",
]
SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    "<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def turn(role, content):
    return {"role": role, "content": content}


CONVERSATIONS = [
    [[turn("user", "Hi there")], True],
    [[turn("system", "Be brief."), turn("user", " 1 < 2? "),
      turn("assistant", 'Yes & "so"\n'), turn("user", "\u00e9\U0001f680")], True],
    [[turn("user", "a"), turn("assistant", "<think>\nhm\n</think>\n\nb")], False],
    [[turn("user", "a"), turn("user", "b")], True],
]


def raise_exception(message):
    raise jinja2.exceptions.TemplateError(message)


def to_json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators,
                      sort_keys=sort_keys)


def render(source, messages, add_generation_prompt):
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols])
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda text: "26 Jul 2024"
    environment.filters["tojson"] = to_json
    try:
        return environment.from_string(source).render(
            messages=messages, add_generation_prompt=add_generation_prompt, bos_token="<s>",
            eos_token="</s>", tools=None, documents=None)
    except jinja2.exceptions.TemplateError as error:
        return {"raises": str(error)}


folder = pathlib.Path(sys.argv[1])
sources = {name: (folder / f"{name}.jinja").read_text() for name in NAMES}
sources["smollm2"] = SMOLLM2
# The date is a moving target, and the template asks whether the function is there.
sources = {name: text.replace("strftime_now is defined", "false") for name, text in sources.items()}
templates = [
    {"name": name, "source": source, "expected": [render(source, *c) for c in CONVERSATIONS]}
    for name, source in sources.items()
]
out = pathlib.Path(__file__).parent / "templates.json"
data = {"conversations": CONVERSATIONS, "templates": templates}
out.write_text(json.dumps(data, ensure_ascii=False, indent=1) + "\n")
