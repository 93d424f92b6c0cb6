"""Formulas in x as people type them, translated to Python's syntax and parsed by `ast`; nothing is executed.

sum     = product (("+" | "-") product)*
product = factor (("*" | "/") factor | factor that starts with a letter or "(")*
factor  = ("+" | "-") factor | power
power   = atom ("^" factor)?
atom    = number | "x" | "pi" | "e" | name "(" sum ("," sum)* ")" | "(" sum ")"
"""

import ast
import math
import re
from collections.abc import Callable

import torch
from torch import Tensor

from loss_viz._validation import argument_error, check_type

MAX_LENGTH = 200
MAX_DEPTH = 30
CONSTANTS = {"pi": math.pi, "e": math.e}
_TRIGONOMETRIC = ("sin", "cos", "tan", "asin", "arcsin", "acos", "arccos", "atan", "arctan", "sinh", "cosh", "tanh")
_OTHERS = ("exp", "log", "log2", "log10", "sqrt", "abs", "floor", "ceil", "relu", "sigmoid")
FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    **{name: getattr(torch, name) for name in _TRIGONOMETRIC + _OTHERS},
    "ln": torch.log,
    "sign": lambda x: torch.where(x.isnan(), x, torch.sign(x)),  # torch.sign(nan) is 0
    "min": torch.minimum,
    "max": torch.maximum,
}
_PYTHON = {"^": "**", **{name: repr(value) for name, value in CONSTANTS.items()}}
_OPERATORS = {ast.Add: "add", ast.Sub: "sub", ast.Mult: "mul", ast.Div: "div", ast.Pow: "pow"}

# Other spellings of the operators and pi: from Python, from papers and from phone keyboards.
SPELLINGS = {"**": "^", "−": "-", "·": "*", "×": "*", "÷": "/", "π": "pi", "²": "^2", "³": "^3"}
_TOKEN = re.compile(  # a number, a name, a sign or a stray character
    r"((?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)|([A-Za-z]+(?:(?<=log)(?:10|2))?)|([-+*/^(),])|(\S)"
)


def normalize_formula(text: str) -> str:
    """Return the formula in the grammar's own signs, so that every operator has one spelling.

    Example:
        >>> normalize_formula("2·x² − x**3")
        '2*x^2 - x^3'
    """
    for other, own in SPELLINGS.items():
        text = text.replace(other, own)
    return text


def parse_formula(text: str) -> Callable[[Tensor], Tensor]:
    """Return a formula in x as a function of a tensor, applied elementwise in the tensor's dtype.

    Args:
        text: for example `"sin(3x)"`, `"2x^3 - x"` or `"x² + abs(x)"`. Multiplication signs may be left out; `^` and
            `**` are powers.

    Returns:
        A function from x `(...)` to values of the same shape.

    Raises:
        TypeError: if `text` is not a string.
        ValueError: if `text` is not a formula in x; the message names the cause and shows valid formulas.

    Example:
        >>> parse_formula("2x^3 - x")(torch.tensor([1.0, 2.0]))
        tensor([ 1., 14.])
    """
    check_type("text", text, str, "a formula", advice='Type one like "x^2".')
    try:
        value = _build(ast.parse(_translate(text), mode="eval").body, depth=1)
    except (SyntaxError, RecursionError, MemoryError) as error:
        cause = error.msg if isinstance(error, SyntaxError) else "it is nested too deeply"
        shown = text if len(text) <= 40 else text[:37] + "..."
        raise argument_error(
            "target",
            f"The target {shown!r} is not a formula in x: {cause}. "
            'Type one like "x^2", "sin(3x)", "2x^3 - x" or "exp(-x^2)", or pass a function of a tensor.',
        ) from None
    return lambda x: value(x) + torch.zeros_like(x)  # gives a constant the shape of x


def _translate(text: str) -> str:
    """Return the formula in Python's syntax, `2x^-x` as `2. * x ** - x`, or raise `SyntaxError` with the cause."""
    if len(text) > MAX_LENGTH:
        raise SyntaxError(f"it has {len(text)} characters, more than {MAX_LENGTH}")
    if not text.strip():
        raise SyntaxError("it is empty")
    words: list[str] = []
    operand_next, negative = True, False
    for number, name, sign, stray in [*_TOKEN.findall(normalize_formula(text)), ("", "", "", "")]:
        function = words[-1] if words and words[-1] in FUNCTIONS else ""
        if stray:
            raise SyntaxError(f"the character {stray!r} cannot be part of one")
        if name and name not in {"x", *CONSTANTS, *FUNCTIONS}:
            raise SyntaxError(f"the name {name!r} is not known; known are x, pi, e, {', '.join(FUNCTIONS)}")
        if function and sign != "(":
            raise SyntaxError(f"{function!r} needs parentheses, as in {function}(x)")
        if operand_next and sign in ("+", "-"):
            negative ^= sign == "-"  # signs in a row become one
            continue
        if operand_next and not (number or name or sign == "("):
            raise SyntaxError(f"a number, x or a function is missing before {repr(sign) if sign else 'its end'}")
        if number and not operand_next:
            raise SyntaxError(f"an operator is missing before {number!r}")
        if not operand_next and (name or sign == "("):
            words.append("*")
        if negative:
            words.append("-")
            negative = False
        if sign == "(" and not function:
            words.append("group")  # a call, since the syntax tree omits plain parentheses and their depth is limited
        operand_next = name in FUNCTIONS or sign not in ("", ")")
        word = f"{number}." if number.isdigit() else number or name or sign  # Python rejects 007 and reads 007. as 7
        words.append(_PYTHON.get(word, word))
    return " ".join(words)


def _build(node: ast.expr, depth: int) -> Callable[[Tensor], Tensor]:
    """Return a syntax tree as a function of x, or raise `SyntaxError`. PyTorch computes everything, even 2^3."""
    if depth > MAX_DEPTH:
        raise SyntaxError(f"its parentheses and powers are nested deeper than {MAX_DEPTH}")
    match node:
        case ast.Name(id="x"):
            return lambda x: x
        case ast.Constant(value=float(number)):
            return lambda x: torch.as_tensor(number, dtype=x.dtype, device=x.device)
        case ast.Call(func=ast.Name(id="group"), args=[inner]):
            return _build(inner, depth + 1)
        case ast.Call(func=ast.Name(id=name), args=nodes) if name in FUNCTIONS:
            wanted = 2 if name in ("min", "max") else 1
            if len(nodes) != wanted:
                raise SyntaxError(f"{name!r} takes {wanted} argument(s), got {len(nodes)}")
            function, arguments = FUNCTIONS[name], [_build(node, depth + 1) for node in nodes]
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            function, arguments = torch.neg, [_build(operand, depth)]
        case ast.BinOp(left=left, op=operator, right=right) if type(operator) in _OPERATORS:
            function = getattr(torch, _OPERATORS[type(operator)])
            arguments = [_build(left, depth), _build(right, depth + isinstance(operator, ast.Pow))]
        case _:
            raise SyntaxError("a ',' stands outside the arguments of a function")
    return lambda x: function(*(argument(x) for argument in arguments))
