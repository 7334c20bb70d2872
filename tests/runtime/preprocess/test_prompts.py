"""Conversations and videos as Transformers writes them; templates that must not get out of their bounds."""

import sys
from datetime import datetime
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from transformers.models.smolvlm import processing_smolvlm
from transformers.utils.chat_template_utils import render_jinja_template

from tests.parity.smolvlm import CHAT_TEMPLATE
from xattn_export.families.checkpoint_folder.conversation import conversations, messages_of
from xattn_runtime.errors import BundleError, DependencyError, UserError
from xattn_runtime.json_reader import ObjectReader
from xattn_runtime.preprocess.prompts import sandbox
from xattn_runtime.preprocess.prompts.chat import ChatSpec, ChatWriter, Turn, read_chat
from xattn_runtime.preprocess.prompts.sandbox import TemplateFailure, compile_template
from xattn_runtime.preprocess.prompts.video import Video, VideoClock, VideoLayout

# Of the kinds that published models have: what each may do beyond putting texts beside each other.
TEMPLATES = {
    "smolvlm": CHAT_TEMPLATE,
    "default system": (
        "{% set count = namespace(value=0) %}{% for message in messages %}"
        "{% if loop.first and message['role'] != 'system' %}<s>system\nYou are helpful.</s>\n{% endif %}"
        "<s>{{ message['role'] }}\n"
        "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
        "{% if part['type'] == 'image' or 'image' in part %}{% set count.value = count.value + 1 %}"
        "Picture {{ count.value }}: <v><image></v>{% elif 'text' in part %}{{ part['text'] }}{% endif %}{% endfor %}"
        "{% endif %}</s>\n{% endfor %}{% if add_generation_prompt %}<s>assistant\n{% endif %}"
    ),
    "no system": (
        "{{ bos_token }}{%- for message in messages -%}{%- if message['role'] == 'system' -%}"
        "{{ raise_exception('System role not supported') }}{%- endif -%}"
        "{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}{{ raise_exception('no turns') }}{%- endif -%}"
        "<turn>{{ message['role'].replace('assistant', 'model') }}\n"
        "{%- for part in message['content'] -%}{%- if part.type == 'image' -%}<image>{%- else -%}"
        "{{ part.text | trim }}{%- endif -%}{%- endfor -%}<end>\n{%- endfor -%}<turn>model\n"
    ),
    "controls": (
        "{%- macro said(parts) -%}{% for part in parts %}{% if part.type == 'image' %}<image>{% continue %}{% endif %}"
        "{{ part.text | tojson(indent=1) }}{% endfor %}{%- endmacro -%}\n"
        "    {% for message in messages %}\n        {% if loop.index > 9 %}{% break %}{% endif %}\n"
        "{% generation %}[{{ message.role | upper }}] {{ said(message.content) }}{% endgeneration %}\n"
        "    {% endfor %}\n{{ dict(a=1, b=range(3) | list) | tojson }} {{ strftime_now('%Y') }} {{ eos_token }}"
        "{% if tools %}{{ tools | tojson }}{% endif %}{{ '%s-%d' % ('x', 3) }}{{ '=' * 5 }}"
    ),
}
TOKENS = {"bos_token": "<|im_start|>", "eos_token": "<eos>"}


def theirs(template: str, turns: Any, images: int) -> str | None:
    """What Transformers writes; None where the template refuses."""
    try:
        messages = messages_of(turns, images)
        texts, _ = render_jinja_template([messages], chat_template=template, add_generation_prompt=True, **TOKENS)
    except Exception:
        return None
    return str(texts[0])


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=list(TEMPLATES))
@pytest.mark.parametrize("images", [1, 3])
def test_conversations_are_written_as_transformers_writes_them(template, images):
    writer, refused = ChatWriter(ChatSpec(template, TOKENS), "model"), 0
    for turns in conversations():
        expected = theirs(template, turns, images)
        if expected is None:
            refused += 1
            with pytest.raises(
                UserError, match=r"^model: chat template: expected .*, found that it refuses: .*Error: "
            ):
                writer.text(turns, "image", ["<image>"] * images)
        else:
            assert writer.text(turns, "image", ["<image>"] * images) == expected
            numbered = writer.text(turns, "image", [f"({number})" for number in range(images)])
            assert numbered == "".join(
                f"{part}({number})" if number < images else part
                for number, part in enumerate(expected.split("<image>"))
            )
    assert refused == (3 if template == TEMPLATES["no system"] else 0)


def test_a_system_prompt_that_is_refused_says_why():
    writer = ChatWriter(ChatSpec(TEMPLATES["no system"], TOKENS), "b/tokenizer.json")
    with pytest.raises(UserError) as error:
        writer.text((Turn("system", "be brief"), Turn("user", "why?")), "image", ["<image>"])
    assert str(error.value) == (
        "b/tokenizer.json: chat template: expected one that writes a conversation of 2 messages with a system prompt, "
        "found that it refuses: TemplateError: System role not supported"
    )


def test_a_template_that_calls_for_tools():
    writer = ChatWriter(ChatSpec("{% for tool in tools %}{{ tool.function.name }}{% endfor %}<image>"), "m")
    with pytest.raises(UserError, match=r"found one that calls for tools, which cannot be passed$"):
        writer.text((Turn("user", "why?"),), "image", ["<image>"])


@pytest.mark.parametrize("role", ["user", "system"])
def test_an_image_token_in_a_text(role):
    turns = (Turn(role, "a <image> b"), *([] if role == "user" else [Turn("user", "why?")]))
    name = {"user": "question", "system": "system"}[role]
    with pytest.raises(UserError, match=f"^{name}: expected no '<image>', which stands for an image, found it in 'a "):
        ChatWriter(ChatSpec(CHAT_TEMPLATE), "m").text(turns, "image", ["<image>"])


def test_a_template_that_forgets_an_image():
    with pytest.raises(UserError, match="expected '<image>' once for each of 2, found it 1 times"):
        ChatWriter(ChatSpec("<image>{{ messages[0].content[-1].text }}"), "m").text(
            (Turn("user", "why?"),), "image", ["<image>"] * 2
        )


@pytest.mark.parametrize(
    ("template", "found"),
    [
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "not safe|SecurityError"),
        ("{{ cycler.__init__.__globals__ }}", "unsafe"),
        ("{{ dict.__class__.__name__ }}", "unsafe|no attribute"),
        ("{% set n = namespace(_a=1) %}", "sets the name '_a'"),
        ("{% set n = namespace() %}{% set n._a = 1 %}", "sets the name '_a'|unsafe"),
        ("{{ 'a' * 100000000 }}", "too large"),
        ("{{ [0] * 100000000 }}", "too large"),
        ("{{ 9 ** 9 ** 9 }}", "too large"),
        (
            "{% set n = namespace(x='aaaa') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
            "too large",
        ),
        ("{{ '%999999999d' % 1 }}", "too large"),
        ("{% for i in range(100000) %}{% endfor %}", "counts to more than 10,000"),
        ("{% for i in range(9000) %}{{ 'a' * 900 }}{% endfor %}", "writes more than 1,000,000 characters"),
        (
            "{% for i in range(9000) %}{% for j in range(9000) %}{% set x = i * j %}{% endfor %}{% endfor %}",
            "more than",
        ),
        ("{% include 'other' %}", "no loader|TypeError"),
        ("{{ raise_exception('no\nway') }}", "TemplateError: no"),
        ("{{ nothing.at.all }}", "undefined"),
    ],
)
def test_a_template_stays_within_its_bounds(template, found, monkeypatch):
    monkeypatch.setattr(sandbox, "_LONGEST_S", 0.2)
    tracing = sys.gettrace()
    with pytest.raises(TemplateFailure, match=found):
        compile_template(template).render({"messages": []})
    assert sys.gettrace() is tracing


def test_a_template_that_is_none():
    with pytest.raises(
        BundleError, match=r"^m: chat template: expected a template in Jinja, found: TemplateSyntaxError: "
    ):
        ChatWriter(ChatSpec("{% if %}"), "m").text((Turn("user", "why?"),), "image", ["<image>"])


def test_time_is_this_computers():
    assert compile_template("{{ strftime_now('%Y') }}").render({}) in map(str, range(2026, datetime.now().year + 1))


@pytest.mark.parametrize("version", [None, "3.1.5"])
def test_without_a_jinja_that_is_safe(monkeypatch, version):
    monkeypatch.setitem(sys.modules, "jinja2", None if version is None else SimpleNamespace(__version__=version))
    with pytest.raises(DependencyError, match=r'jinja2.*pip install .*"xattn-edge\[chat\]"$'):
        compile_template("text")


def test_what_the_manifest_says_of_chats_is_read_as_it_was_written():
    spec = ChatSpec("{{ x }}", TOKENS, "<i>", "<v>", "{{ y }}")
    assert read_chat(ObjectReader(spec.to_dict(), "m")) == spec
    with pytest.raises(BundleError, match="template: expected at most 65,536 characters, found 70000"):
        read_chat(ObjectReader({"template": "a" * 70000, "image": "<i>"}, "m"))


WORDS = {1: "one", 4: "four", 13: "thirteen", 20: "twenty", 21: "twenty-one", 64: "sixty-four", 90: "ninety",
         100: "one hundred", 101: "one hundred and one", 768: "seven hundred and sixty-eight"}  # fmt: skip
LAYOUT = VideoLayout(
    "{video}{question}",
    "You are provided the following series of {count} frames from a {duration} [H:MM:SS] video.\n",
    "\nFrame from {time}:{image}",
    "\n\n",
    768,
)


@pytest.mark.parametrize("count", WORDS)
def test_a_video_is_written_as_its_processor_writes_it(count, monkeypatch):
    # num2words itself is not installed; what it says of these numbers is written out above.
    monkeypatch.setattr(processing_smolvlm, "num2words", WORDS.__getitem__)
    times = [number * 7.3 for number in range(count)]
    metadata = SimpleNamespace(fps=1, timestamps=times, duration=None)
    processor = SimpleNamespace(
        image_seq_len=2, image_token="<image>", fake_image_token="<f>", global_image_token="<g>"
    )
    inputs = {"pixel_values": np.empty((1, count)), "video_metadata": [metadata]}
    expected = processing_smolvlm.SmolVLMProcessor.replace_video_token(processor, inputs, 0)
    assert LAYOUT.text(VideoClock(tuple(times), times[-1]), "<f><g><image><image><f>") == expected


@pytest.mark.parametrize(
    ("video", "found"),
    [
        (Video([], []), r"video: expected a list of frames, one or more, found \[\]"),
        (Video("frames", [1]), "video: expected a list of frames, one or more, found 'frames'"),
        (Video(["a.png"], []), "times: expected one for each of 1 frames, found 0"),
        (Video(["a.png"] * 2, [2, 1]), r"times: expected them in order, found \[2.0, 1.0\]"),
        (Video(["a.png"], [-1]), "times: expected 0 to 1,000,000 seconds, found -1"),
        (Video(["a.png"], ["1"]), "times: expected 0 to 1,000,000 seconds, found '1'"),  # type: ignore[list-item]
        (Video(["a.png"], 3), "times: expected a list of seconds, found 3"),  # type: ignore[arg-type]
        (Video(["a.png"], [float("nan")]), "times: expected 0 to 1,000,000 seconds, found nan"),
        (Video(["a.png"], [9], 8), "duration: expected at least 9, the time of the last frame, found 8"),
    ],
)
def test_a_video_that_is_none(video, found):
    with pytest.raises(UserError, match=f"^{found}"):
        video.clock()
