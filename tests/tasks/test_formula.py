import math

import pytest
import torch

from loss_viz.tasks.formula import normalize_formula, parse_formula

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
        ("2^-3x", 2.0**-3 * X),
        ("(x+1)(x-1)", X**2 - 1),
        ("x(x+1)", X * (X + 1)),
        ("x^2(x)", X**3),
        ("x sin(x)", X * torch.sin(X)),
        ("2pi x", 2 * math.pi * X),
        ("2e^x", 2 * math.e**X),
        ("1e-2x", 0.01 * X),
        ("1.5", torch.full_like(X, 1.5)),
        (".5x + 1.", 0.5 * X + 1),
        ("007", torch.full_like(X, 7)),
        ("1e--5", torch.full_like(X, math.e + 5)),
        ("max(x, 0)", X.clamp(min=0)),
        ("x² − 2·x", X**2 - 2 * X),
        ("8/4/2", torch.ones_like(X)),
        ("1/2x", X / 2),
        ("1 - 2 - 3x", -1 - 3 * X),
        ("--x", X),
        ("x - +-x", 2 * X),
        ("log2(2)x", X),
        ("log10 (100)", torch.full_like(X, 2)),
        ("x\n+\u00a01", X + 1),
    ],
)
def test_values(text, expected):
    torch.testing.assert_close(parse_formula(text)(X), expected, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("", "it is empty"),
        ("   ", "it is empty"),
        ("sin(3y)", "the name 'y' is not known; known are x, pi, e, sin, cos"),
        ("import os", "the name 'import' is not known"),
        ("x if x else x", "the name 'if' is not known"),
        ("group(x)", "the name 'group' is not known"),
        ("__import__('os')", "the character '_' cannot be part of one"),
        ("x.real", "the character '.' cannot be part of one"),
        ("x == 1", "the character '=' cannot be part of one"),
        ("x # 1", "the character '#' cannot be part of one"),
        ("ｘ^2", "the character 'ｘ' cannot be part of one"),
        ("sin x", "'sin' needs parentheses, as in sin(x)"),
        ("x sin", "'sin' needs parentheses, as in sin(x)"),
        ("sin(x", "'(' was never closed"),
        ("x)", "unmatched ')'"),
        ("x 2", "an operator is missing before '2'"),
        ("x2", "an operator is missing before '2'"),
        ("0b1", "the name 'b' is not known"),
        ("0x10", "an operator is missing before '10'"),
        ("2 * ", "a number, x or a function is missing before its end"),
        ("x // 2", "a number, x or a function is missing before '/'"),
        ("max(x, 1,)", "a number, x or a function is missing before ')'"),
        ("max(x)", "'max' takes 2 argument(s), got 1"),
        ("sin(x, x)", "'sin' takes 1 argument(s), got 2"),
        ("x, x", "a ',' stands outside the arguments of a function"),
        ("max((x, x))", "'max' takes 2 argument(s), got 1"),
        ("sin((x, x))", "a ',' stands outside the arguments of a function"),
        ("(" * 40 + "x" + ")" * 40, "nested deeper than 30"),
        ("2^" * 40 + "x", "nested deeper than 30"),
        ("x" * 300, "it has 300 characters"),
    ],
)
def test_errors_name_the_cause(text, cause):
    with pytest.raises(ValueError, match="is not a formula in x") as error:
        parse_formula(text)
    assert cause in str(error.value)
    assert 'Type one like "x^2"' in str(error.value)


def test_parentheses_and_powers_count_towards_the_depth_together():
    assert torch.equal(parse_formula("(" * 29 + "x" + ")" * 29)(X), X)
    assert torch.equal(parse_formula("1^" * 29 + "x")(X), torch.ones_like(X))
    parse_formula("x^(" * 14 + "x^x" + ")" * 14)
    for text in ("(" * 30 + "x" + ")" * 30, "1^" * 30 + "x", "x^(" * 14 + "x^(x)" + ")" * 14):
        with pytest.raises(ValueError, match="nested deeper than 30"):
            parse_formula(text)


@pytest.mark.parametrize("text", ["x" + "+x" * 99, "-" * 199 + "x", "x²" * 100, "9^9^9^9", "9" * 200, "1e999"])
def test_long_formulas_and_huge_constants_are_computed_by_pytorch(text):
    assert parse_formula(text)(X).shape == X.shape


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_constants_have_the_precision_of_x(dtype):
    tenth = parse_formula("1/10 + 0x")(torch.zeros(2, dtype=dtype))
    assert torch.equal(tenth, torch.tensor(1, dtype=dtype).div(10).expand(2))


def test_the_sign_of_nan_is_nan():
    signs = parse_formula("sign(sqrt(x))")(torch.tensor([-1.0, 0.0, 4.0]))
    torch.testing.assert_close(signs, torch.tensor([math.nan, 0.0, 1.0]), equal_nan=True)


def test_all_spellings_of_a_formula_become_one():
    assert normalize_formula("2·π×x² − x**3÷2 + x³") == "2*pi*x^2 - x^3/2 + x^3"
