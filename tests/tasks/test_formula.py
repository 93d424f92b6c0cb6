import math

import pytest
import torch

from loss_viz.tasks.formula import parse_formula

X = torch.linspace(-1, 1, 7, dtype=torch.float64)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x", X),
        ("x^2", X**2),
        ("x**3", X**3),
        ("sin(3x)", torch.sin(3 * X)),
        ("2x^3 - x", 2 * X**3 - X),
        ("abs(x)", X.abs()),
        ("exp(-x^2)", torch.exp(-(X**2))),
        ("sin(5x) + x/2", torch.sin(5 * X) + X / 2),
        ("-x^2", -(X**2)),
        ("2^-x", 2.0**-X),
        ("2^x^2", 2.0 ** (X**2)),
        ("(x+1)(x-1)", X**2 - 1),
        ("x sin(x)", X * torch.sin(X)),
        ("2pi x", 2 * math.pi * X),
        ("2e^x", 2 * math.e**X),
        ("1e-2x", 0.01 * X),
        ("1.5", torch.full_like(X, 1.5)),
        ("max(x, 0)", X.clamp(min=0)),
        ("x² − 2·x", X**2 - 2 * X),
        ("8/4/2", torch.ones_like(X)),
        ("1 - 2 - 3x", -1 - 3 * X),
        ("--x", X),
        ("log2(2)x", X),
    ],
)
def test_means_what_a_person_means(text, expected):
    torch.testing.assert_close(parse_formula(text)(X), expected, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("", "it is empty"),
        ("   ", "it is empty"),
        ("sin(3y)", "the name 'y' is not known"),
        ("import os", "the name 'import' is not known"),
        ("__import__('os')", "missing before '_'"),
        ("x.real", "missing before '.'"),
        ("sin x", "'sin' needs parentheses, as in sin(x)"),
        ("sin(x", "')' is missing before its end"),
        ("x)", "an operator is missing before ')'"),
        ("x 2", "an operator is missing before '2'"),
        ("2 * ", "a number, x or a function is missing before its end"),
        ("max(x)", "'max' takes 2 argument(s) and 1 came"),
        ("(" * 40 + "x" + ")" * 40, "nested deeper than 30"),
        ("2^" * 40 + "x", "nested deeper than 30"),
        ("x" * 300, "it has 300 characters"),
        ("ｘ^2", "missing before 'ｘ'"),
    ],
)
def test_refuses_in_words(text, cause):
    with pytest.raises(ValueError, match="is not a formula in x") as error:
        parse_formula(text)
    assert cause in str(error.value)
    assert 'Type one like "x^2"' in str(error.value)


def test_the_sign_of_what_is_no_number_is_none():
    signs = parse_formula("sign(sqrt(x))")(torch.tensor([-1.0, 0.0, 4.0]))
    torch.testing.assert_close(signs, torch.tensor([math.nan, 0.0, 1.0]), equal_nan=True)
