"""Altered answers have the named change and no other."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polar_rm.audit import texts

LONG = "one two three four five six seven eight nine ten"
MESSAGES = [{"role": "assistant", "content": "First."}, {"role": "assistant", "content": LONG}]
MARKDOWN = """# Title

Some **bold** and *slanted* `code`, and 2*3*4 = 24, a_b_c, \\(x^2\\), &amp; <b>x</b>.

- one
- two **x**

1. first
2. second

> quote

```python
x = 1
```

| a | b |
|---|---|
| 1 | 2 |

[link](http://x.y) ~~gone~~"""
PLAIN = """Title

Some bold and slanted code, and 2*3*4 = 24, a_b_c, \\(x^2\\), &amp; <b>x</b>.

one
two x

1. first
2. second

quote

x = 1

a b
1 2

link gone"""


def test_markdown_is_removed_and_its_text_is_kept():
    assert texts.without_markdown(MARKDOWN) == PLAIN
    assert texts.without_markdown([{"role": "assistant", "content": "**a**"}, {"role": "tool", "content": "b"}]) == [
        {"role": "assistant", "content": "a"},
        {"role": "tool", "content": "b"},
    ]
    assert texts.without_markdown("中文**粗体**文字") == "中文粗体文字"


@pytest.mark.parametrize(
    "text",
    ["", "two words\n\nand a paragraph", "1. first\n2. second", "2 * 3 = 6 - 1", "a*b*c", "    indented", "x_1, x_2", PLAIN],
)
def test_a_text_without_markdown_is_unchanged(text):
    assert texts.without_markdown(text) == text


@given(st.text())
def test_removing_markdown_never_adds_a_character(text):
    plain = texts.without_markdown(text)
    assert len(plain) <= len(text) + 1
    assert set(plain) <= set(text) | {"\n", " "} or "\x00" in text  # a parser of markdown replaces NUL


def test_half_of_an_answer_ends_at_a_blank():
    assert texts.half(LONG) == "one two three four five"
    assert texts.half("中文中文中文") == "中文中"
    assert texts.half(MESSAGES) == [MESSAGES[0], {"role": "assistant", "content": "one two three four five"}]
    assert MESSAGES[1]["content"] == LONG


def test_a_loop_repeats_the_end_until_the_text_is_twice_as_long():
    loop = texts.looped(LONG)
    assert loop.startswith(LONG) and loop[len(LONG) :] == " nine ten" * 6
    assert 2 * len(LONG) <= len(loop) < 2 * len(LONG) + len(" nine ten")


def test_scrambled_words_are_the_same_words_in_another_order():
    mixed = texts.scrambled(LONG, "seed")
    assert sorted(mixed.split()) == sorted(LONG.split()) and mixed != LONG
    assert texts.scrambled(LONG, "seed") == mixed != texts.scrambled(LONG, "other")
    assert sorted(texts.scrambled("中文字符很多", "s")) == sorted("中文字符很多")
    assert texts.scrambled("same same", "s") == "same same"  # there is no other order


def test_pasted_and_injected_texts_contain_the_answer():
    reference = "the quick brown fox jumps over the lazy dog near the river bank"
    assert texts.pasted("no", reference) == "the quick brown fox jumps over the lazy dog near no"
    assert texts.pasted("no", "中文" * 40) == "中文" * 20 + " no"
    assert texts.injected("no \n") == f"no\n\n{texts.INJECTION}"


def test_words_are_counted_in_scripts_with_and_without_blanks():
    assert [texts.word_count(text) for text in ("", " a  b ", LONG, "中文" * 20)] == [0, 2, 10, 10]
