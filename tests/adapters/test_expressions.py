"""Expressions of an adapter's config mean what they mean to PEFT, and none of them takes long."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peft.utils.other import get_pattern_key

from ailora_tools.adapters.expressions import covers, ends_in, require_matchable
from ailora_tools.adapters.peft import pattern_value
from ailora_tools.errors import TargetError

Q3 = "model.layers.3.self_attn.q_proj"
atoms = st.sampled_from(["a", "b", ".", r"\.", "1", "[ab]", "[^a]", r"\d", r"\w", r"\S", "[a-b1_]", "^", "$"])
expressions = st.recursive(
    atoms,
    lambda inner: (
        st.tuples(inner, inner).map("".join)
        | st.tuples(inner, inner).map("({0[0]}|{0[1]})".format)
        | st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "{0,2}", "{1,}", "*?", "+?"])).map(
            "({0[0]}){0[1]}".format
        )
    ),
    max_leaves=6,
)


@settings(deadline=None, max_examples=400)
@given(expressions, st.text("ab.1_", max_size=6))
def test_an_expression_matches_what_it_matches_in_python(expression: str, module: str) -> None:
    assert ends_in(expression, module) == (re.match(rf"(.*\.)?({expression})$", module) is not None)
    assert covers(expression, module) == (re.fullmatch(expression, module) is not None)


@pytest.mark.parametrize(
    "key",
    ["q_proj", "self_attn.q_proj", r"layers\.3\..*q_proj", r"layers.(3|4).*", Q3, "proj", r".*\.[0-5]\..*", "v_proj"],
)
def test_the_key_that_peft_takes_is_taken(key: str) -> None:
    taken = get_pattern_key([key], Q3) == key
    assert pattern_value({key: 7}, Q3, None) == (7 if taken else None)


@pytest.mark.parametrize("expression", ["(([a-z_0-9.]+)*)*X", "(a|a|[a-z])*(a|[a-z])*(.*.*.*)*X", "(.*.*)*" * 9 + "X"])
def test_what_never_ends_in_python_ends_here(expression: str) -> None:
    assert not ends_in(expression, Q3 * 9) and not covers(expression, Q3 * 9)


def test_an_adapter_has_few_expressions_and_any_number_of_names() -> None:
    require_matchable([f"layers.{at}.q_proj" for at in range(5000)])
    with pytest.raises(TargetError, match="65 expressions, more than 64"):
        require_matchable([f"layers.{at}.*" for at in range(65)])


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("(", r"the expression '\(' cannot be matched: missing \)"),
        ("[", "unterminated character set"),
        (r"(a)\3", "groupref is not supported"),
        ("(?=a)", "assert is not supported"),
        ("(?i:a)", "subpattern is not supported"),
        ("(?i)a", "global flags not at the start"),
        ("a{4000000}", "too many repetitions"),
        ("(){0,4000000}", "too many repetitions"),
        ("((((a{9}){9}){9}){9})", "too many repetitions"),
        ("a*" * 600, "longer than 1000 letters"),
    ],
    ids=lambda value: value[:12],
)
def test_what_cannot_be_matched_is_refused_by_name(expression: str, words: str) -> None:
    with pytest.raises(TargetError, match=words) as caught:
        ends_in(expression, Q3)
    assert caught.value.hint and len(str(caught.value)) < 500
