"""Formulas in x as a person types them, read by a small grammar and never by Python's `eval`.

sum     = product (("+" | "-") product)*
product = factor (("*" | "/") factor | factor that starts with a letter or "(")*
factor  = ("+" | "-") factor | power
power   = atom ("^" factor)?
atom    = number | "x" | "pi" | "e" | name "(" sum ("," sum)* ")" | "(" sum ")"
"""

import math
import re
from collections.abc import Callable
from typing import NamedTuple, NoReturn

import torch
from torch import Tensor

from loss_viz._validation import check_type

Formula = Callable[[Tensor], Tensor]

MAX_LENGTH = 200

MAX_DEPTH = 30

CONSTANTS = {"pi": math.pi, "e": math.e}

FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "sin": torch.sin,
    "cos": torch.cos,
    "tan": torch.tan,
    "asin": torch.asin,
    "arcsin": torch.asin,
    "acos": torch.acos,
    "arccos": torch.acos,
    "atan": torch.atan,
    "arctan": torch.atan,
    "sinh": torch.sinh,
    "cosh": torch.cosh,
    "tanh": torch.tanh,
    "exp": torch.exp,
    "log": torch.log,
    "ln": torch.log,
    "log2": torch.log2,
    "log10": torch.log10,
    "sqrt": torch.sqrt,
    "abs": torch.abs,
    "sign": lambda x: torch.where(x.isnan(), x, torch.sign(x)),  # PyTorch's own makes a 0 of what is no number
    "floor": torch.floor,
    "ceil": torch.ceil,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "min": torch.minimum,
    "max": torch.maximum,
}

TWO_ARGUMENTS = {"min", "max"}

# What people paste from a paper, type on a phone or bring from Python, in the grammar's own signs.
SPELLINGS = {"**": "^", "−": "-", "·": "*", "×": "*", "÷": "/", "π": "pi", "²": "^2", "³": "^3"}

TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)"
    r"|(?P<name>[A-Za-z]+(?:(?<=log)(?:10|2))?)"
    r"|(?P<sign>[-+*/^(),])|(?P<stranger>\S))"
)


class Token(NamedTuple):
    """A word of the grammar: a number, name, sign or stranger."""

    kind: str
    text: str


def normalize_formula(text: str) -> str:
    """The formula in the grammar's own signs, so that one formula has one spelling.

    Example:
        >>> normalize_formula("2·x² − x**3")
        '2*x^2 - x^3'
    """
    for other, own in SPELLINGS.items():
        text = text.replace(other, own)
    return text


def parse_formula(text: str) -> Formula:
    """Read a formula in x and return it as a function of a tensor, applied entry by entry.

    Args:
        text: for example `"sin(3x)"`, `"2x^3 - x"`, `"exp(-x^2)"` or `"x² + abs(x)"`. Multiplication signs may be
            left out; `^` and `**` are powers.

    Returns:
        A function from x `(...)` to values of the same shape.

    Raises:
        TypeError: no text.
        ValueError: the text is no formula in x; the message says what is wrong and how to repair it.

    Example:
        >>> parse_formula("2x^3 - x")(torch.tensor([1.0, 2.0]))
        tensor([ 1., 14.])
    """
    check_type("text", text, str, "a formula", advice='Type one like "x^2".')
    return _Parser(text).formula()


class _Parser:
    """Recursive descent over one text; every rule consumes tokens and returns a formula."""

    def __init__(self, text: str) -> None:
        self.text = text
        if len(text) > MAX_LENGTH:
            self._refuse(f"it has {len(text)} characters and at most {MAX_LENGTH} are read")
        if not text.strip():
            self._refuse("it is empty")
        matches = TOKEN.finditer(normalize_formula(text))
        self.tokens = [Token(kind, match[kind]) for match in matches if (kind := match.lastgroup)]
        self.tokens.append(Token("end", ""))
        self.next = 0
        self.depth = 0

    def formula(self) -> Formula:
        value = self._sum()
        if self._peek().kind != "end":
            self._refuse_token("an operator is missing before")
        return lambda x: value(x) + torch.zeros_like(x)  # a constant becomes as long as x

    def _sum(self) -> Formula:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            self._refuse(f"its parentheses are nested deeper than {MAX_DEPTH}")
        value = self._product()
        while sign := self._take("+", "-"):
            value = _apply(torch.add if sign == "+" else torch.sub, value, self._product())
        self.depth -= 1
        return value

    def _product(self) -> Formula:
        value = self._factor()
        while True:
            if sign := self._take("*", "/"):
                value = _apply(torch.mul if sign == "*" else torch.div, value, self._factor())
            elif self._peek().kind == "name" or self._peek().text == "(":
                value = _apply(torch.mul, value, self._factor())
            else:
                return value

    def _factor(self) -> Formula:
        negative = False
        while sign := self._take("+", "-"):
            negative ^= sign == "-"
        value = self._power()
        return _apply(torch.neg, value) if negative else value

    def _power(self) -> Formula:
        base = self._atom()
        if not self._take("^"):
            return base
        self.depth += 1
        if self.depth > MAX_DEPTH:
            self._refuse(f"its powers are nested deeper than {MAX_DEPTH}")
        exponent = self._factor()
        self.depth -= 1
        return _apply(torch.pow, base, exponent)

    def _atom(self) -> Formula:
        token = self._peek()
        if token.kind == "number":
            self.next += 1
            return _constant(float(token.text))
        if token.kind == "name":
            self.next += 1
            return self._named(token)
        if self._take("("):
            value = self._sum()
            self._expect(")")
            return value
        self._refuse_token("a number, x or a function is missing before")

    def _named(self, token: Token) -> Formula:
        if token.text == "x":
            return lambda x: x
        if token.text in CONSTANTS:
            return _constant(CONSTANTS[token.text])
        if token.text not in FUNCTIONS:
            known = ", ".join(FUNCTIONS)
            self._refuse(f"the name {token.text!r} is not known; known are x, pi, e and {known}")
        if not self._take("("):
            self._refuse(f"{token.text!r} needs parentheses, as in {token.text}(x)")
        arguments = [self._sum()]
        while self._take(","):
            arguments.append(self._sum())
        self._expect(")")
        wanted = 2 if token.text in TWO_ARGUMENTS else 1
        if len(arguments) != wanted:
            self._refuse(f"{token.text!r} takes {wanted} argument(s) and {len(arguments)} came")
        return _apply(FUNCTIONS[token.text], *arguments)

    def _peek(self) -> Token:
        return self.tokens[self.next]

    def _take(self, *signs: str) -> str:
        token = self._peek()
        if token.kind != "sign" or token.text not in signs:
            return ""
        self.next += 1
        return token.text

    def _expect(self, sign: str) -> None:
        if not self._take(sign):
            self._refuse_token(f"{sign!r} is missing before")

    def _refuse_token(self, what: str) -> NoReturn:
        token = self._peek()
        self._refuse(f"{what} {token.text!r}" if token.text else f"{what} its end")

    def _refuse(self, cause: str) -> NoReturn:
        shown = self.text if len(self.text) <= 40 else self.text[:37] + "..."
        raise ValueError(
            f"The target {shown!r} is not a formula in x: {cause}. "
            'Type one like "x^2", "sin(3x)", "2x^3 - x" or "exp(-x^2)", or pass a function of a tensor.'
        )


def _constant(value: float) -> Formula:
    return lambda x: torch.as_tensor(value, dtype=x.dtype, device=x.device)


def _apply(function: Callable[..., Tensor], *arguments: Formula) -> Formula:
    return lambda x: function(*(argument(x) for argument in arguments))
