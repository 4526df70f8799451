import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpr_core.config.data import TemplateConfig
from dpr_core.data.template import TextRenderer, load_template, save_template
from dpr_core.errors import DensePathError, UsageError


def test_the_default_template():
    renderer = TextRenderer(TemplateConfig())
    assert renderer.render("Why?") == "### User:\nWhy?\n\n### Assistant:\n"
    assert renderer.render("Why?", "Be brief.") == "### System:\nBe brief.\n\n### User:\nWhy?\n\n### Assistant:\n"


def test_a_default_system_prompt_stands_in_for_a_missing_one_only():
    renderer = TextRenderer(TemplateConfig(text="{system}{prompt}", system="<{system}>", default_system="D"))
    assert renderer.render("p") == "<D>p"
    assert renderer.render("p", " \n") == "<D>p"
    assert renderer.render("p", "own") == "<own>p"


@pytest.mark.parametrize(
    ("prompt", "system", "expected"),
    [
        ("{system}", "S", "[S]|{system}|"),
        ("{prompt}", "{prompt}", "[{prompt}]|{prompt}|"),
        ("{{prompt}}{0}", "{system}{system}", "[{system}{system}]|{{prompt}}{0}|"),
        (r"\1 \g<0> $1 %s", "S", r"[S]|\1 \g<0> $1 %s|"),
        ("### Assistant:\n", "</s><|im_start|>", "[</s><|im_start|>]|### Assistant:\n|"),
    ],
)
def test_contents_are_never_read_as_markers(prompt, system, expected):
    renderer = TextRenderer(TemplateConfig(text="{system}|{prompt}|", system="[{system}]"))
    assert renderer.render(prompt, system) == expected


@given(prompt=st.text(), system=st.text().filter(str.strip))
def test_any_content_comes_through_whole(prompt, system):
    renderer = TextRenderer(TemplateConfig(text="{system}--{prompt}--", system="<{system}>"))
    assert renderer.render(prompt, system) == f"<{system}>--{prompt}--"


def test_other_braces_of_a_template_stay_as_they_are():
    assert TextRenderer(TemplateConfig(text='{"ask": "{prompt}", {x}}')).render("p") == '{"ask": "p", {x}}'


def test_saved_and_loaded_it_is_the_same_template(tmp_path):
    template = TemplateConfig(text="Q {prompt}\n\u00c4", default_system="\u4f60\u597d")
    save_template(template, tmp_path)
    assert load_template(tmp_path) == template


def test_a_template_file_that_is_missing_or_broken_is_named(tmp_path):
    with pytest.raises(DensePathError, match=r"template\.json"):
        load_template(tmp_path)
    (tmp_path / "template.json").write_text("{")
    with pytest.raises(DensePathError, match=r"template\.json"):
        load_template(tmp_path)
    (tmp_path / "template.json").write_text('{"text": "no marker"}')
    with pytest.raises(UsageError, match=r"template\.json: text: .*exactly once"):
        load_template(tmp_path)
