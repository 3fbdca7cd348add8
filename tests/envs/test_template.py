"""Chat templates that raise, loop or flood end in one line, and the next prompt is rendered."""

import os
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlx.envs.template import Template
from rlx.errors import InputError

pytest.importorskip("jinja2", reason="pip install 'rlx[hf]'")

ASK = {"messages": [{"role": "user", "content": "hé"}], "tools": None}
DOUBLE = (
    "{% set n = namespace(x='ab') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}"
)
FOREVER = "{% for i in range(9999) %}" * 4 + "{% endfor %}" * 4


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ messages[0].content }}!", "hé!"),
        ("{{ messages | tojson }}", '[{"role": "user", "content": "hé"}]'),
        ("{{ messages[0] | tojson(ensure_ascii=true, indent=1) }}",
         '{\n "role": "user",\n "content": "h\\u00e9"\n}'),
        ("{% if tools is defined and tools is none %}T{% endif %}", "T"),
        ("a{% generation %}b{% endgeneration %}c", "abc"),
        ("{% for m in messages %}{% continue %}{% endfor %}  {% if 1 %}x{% endif %}\n", "  x"),
        ("{% if strftime_now is defined %}today{% else %}any day{% endif %}", "any day"),
    ],
)  # fmt: skip
def test_renders_as_transformers_does(source, text):
    assert Template(source, "f")(**ASK) == text


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{{ raise_exception('no') }}", "raised: no; change the prompt, or correct f"),
        ("{{ 1 / 0 }}", "raised: division by zero"),
        ("{{ messages.x.y }}", "raised: .* has no attribute 'x'"),
        ("{{ 'a' + 1 }}", "raised: can only concatenate"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "raised: maximum recursion depth"),
        ("{{ ''.__class__.__mro__ }}", "raised: access to attribute '__class__'"),
        ("{% include 'x' %}", "raised: .*"),
        ("{% for i in range(99999) %}{{ 'x' * 99 }}{% endfor %}", "raised: it writes more than"),
        ("{{ ('a' * 10 ** 10) | length + messages | length }}", "(raised|is invalid)"),
        (DOUBLE, "raised: "),
        ("{{ messages[0].content.center(10 ** 10) }}", "raised: "),
        ("{% if", "is invalid .*set env.chat=false, or correct f"),
        ("{{ x", "is invalid"),
        ("{% nope %}", "is invalid .*unknown tag"),
    ],
)
def test_what_goes_wrong_is_one_line(source, reason):
    with pytest.raises(InputError, match=f"^env.chat=True: the chat template {reason}"):
        Template(source, "f")(**ASK)


def test_a_template_that_never_ends_is_stopped_and_the_next_prompt_is_rendered():
    render = Template("{% if messages[0].content == 'x' %}" + FOREVER + "{% endif %}ok", "f")
    assert render(**ASK) == "ok"
    start = time.monotonic()
    with pytest.raises(InputError, match="raised: more than 2 s; change the prompt"):
        render(messages=[{"role": "user", "content": "x"}])
    assert time.monotonic() - start < 60
    assert render(**ASK) == "ok"


def test_a_killed_process_is_named_and_another_one_starts():
    render = Template("ok", "f")
    os.kill(render.process.pid, 9)
    with pytest.raises(InputError, match="its process ended with status -9"):
        render(**ASK)
    assert render(**ASK) == "ok"


PIECES = st.sampled_from(
    ["{{", "}}", "{%", "%}", "{#", "#}", "if", "for", "in", "set", "endif", "endfor", "messages",
     "[0]", ".content", "|", "tojson", "(", ")", "'", "x", " ", "~", "*", "9", "range", "=", "\n"]
)  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(st.lists(PIECES, max_size=12).map(" ".join) | st.text(max_size=30))
def test_any_text_is_a_template_or_one_error(source):
    try:
        assert isinstance(Template(source, "f")(**ASK), str)
    except InputError as error:
        assert str(error).startswith("env.chat=True: the chat template ")
