"""What strangers type into the box for a formula: five hundred texts that are none, or strange ones, and other things.

Run as a script, because pytest checks types of its own before ours: `python tests/robustness/hostile_formulas.py`
prints one JSON line for each: how it ended, how long that took, and what Python was made to do. LOSS_VIZ_FUZZ=10 for
ten times as many.
"""

import io
import itertools
import json
import os
import random
import re
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

import loss_viz as lv
from loss_viz.runs.training import build_training
from loss_viz.settings import TrainSettings
from loss_viz.tasks.formula import parse_formula
from loss_viz.tasks.regression import Task, build_task

OURS = str(Path(lv.__file__).parent)
MORE = int(os.environ.get("LOSS_VIZ_FUZZ", "1"))
HUGE = 10_000_000


def split(text):
    """Return the formulas in a text, which stand three spaces or a line apart."""
    return re.split(r" {3,}|\n", text.strip())


def judge(good, text):
    """Pair each formula in a text with whether it must be accepted."""
    return [(formula, good) for formula in split(text)]


ATTRIBUTES = split(r"""
{}.real   {}.__class__   {}.__class__.__mro__[1].__subclasses__()   {}.__init__.__globals__['os']
{}.__reduce_ex__(2)   {}.data_ptr()   getattr({}, '__class__')   {}[0]   {}.__dict__   {}.__doc__   vars({})
type({}).__bases__   {}.storage()   {}.grad_fn.next_functions   {}.register_hook(print)
""")
CODE = split(r"""
__import__('os').system('touch owned')   import os   from os import *   exec('import os')   eval('1')
open('/etc/passwd').read()   open('owned', 'w')   lambda: 0   lambda x: x   (lambda f: f(f))(lambda f: f(f))   f'{x}'
f'{__import__("os")}'   '{0.__class__}'.format(x)   '%s' % x   '%99999999d' % 1   b'x'   'x'   x if x else x   x and 1
not x   x is x   x == x   x < 1   x := 2   x = 2   x; x   x # comment   x, x   yield x   await x   async def f(): pass
def f(): pass   class A: pass   while 1: pass   for i in x: i   del x   global x   raise x   assert x   return x
with x: pass   try: x   @x   *x   **x   x[:]   x[...]   {x}   {x: x}   [x]   ...   None   True   x // 2   x % 2
x @ x   x | x   x & x   x << 2   ~x   x!   breakpoint()   exit()   quit()   input()   help(x)   globals()
compile('x','','exec')   print(x)   torch.load('x')   numpy.lib.format   sys.exit()   $(touch owned)   `touch owned`
x; rm -rf /   | cat   <script>alert(1)</script>   <img src=x onerror=alert(1)>   </script><script>   javascript:x
&lt;x&gt;   ' OR 1=1 --   {{7*7}}   ${7*7}   #{7*7}   <%= x %>   %s%s%n   ../../etc/passwd   file:///etc/passwd
\frac{x}{2}   $x^2$   x^{2}   !!python/object:os.system   {"x": 1}   <?xml?><!ENTITY x>   =cmd|' /C x'!A0   0x10   0b1
0o7   1_000   1j   1e+   1.2.3   1..2   .   e1x1   x1   1 2   x 2   sin   sin x   sin()   sin(,)   max(x)   max(x,x,x)
max(,x)   x(   x)   ()   )(   x^   ^x   x^^2   x***2   *   /x   x//x   +   -   x+   x*   ,   x,   X   Sin(x)   SIN(x)
xx   xsin(x)   pipi   ee   log3(x)   sin2(x)
""")
BOMBS = split(r"""
[x for x in range(10**9)]   [[[0]*9**9]*9**9]*9**9   sum(x for x in iter(int, 1))   'x'*10**10   x*'a'*9**9
{i: i for i in range(10**12)}   [*range(10**10)]   list(range(9**9**9))   tuple(x)*9**9   (x,)*10**10   bytes(10**10)
bytearray(10**10)   range(10**10)   1<<10**10   2**10**10   int('9'*10**9)   ones(9**9)   factorial(10**6)
any(iter(int,1))   pow(9,9**9)   (a:='x'*10**9)   f'{x:>{10**9}}'   max(range(9**9))
""")
POWERS = [
    *[("^".join("9" * n), n == 2) for n in range(2, 12)],
    *[("^".join("x" * n), False) for n in range(2, 8)],
    *[("^".join(["1"] * n), True) for n in (2, 10, 29)],
    *[("2**" * n + "2", n < 4) for n in range(1, 9)],
    *[("(" * n + "2" + "^2)" * n, n < 7) for n in range(1, 12)],
    *judge(
        True,
        r"""
0^0   x^1e308   1e-999   9^-9^9   10^38   exp(88)   x^0   abs(x)^x   2^-1024
    """,
    ),
    *judge(
        False,
        r"""
0^-1   (-1)^0.5   (-8)^(1/3)   x^-1e308   1e308*10   1e39   3e38*2   -1e999   10^39   exp(89)   exp(exp(x+9))
e^e^e^e   cosh(99)   sinh(1e5)   2^1024
    """,
    ),
]
VALUES = [
    *judge(
        True,
        r"""
x/x   1/x   0/x   1/sign(x)   log(x^2)   ln(1e-45)   sqrt(abs(x))   asin(1)   tan(pi/2)   min(1/0, x)   relu(-1/0)
sigmoid(1/0)   tanh(1/0)   atan(1/0)   exp(-1/0)   1e   2e
    """,
    ),
    *judge(
        False,
        r"""
1/0   -1/0   0/0   x/0   1/(x-x)   1/(x-1)   1/(x+1)   1/floor(x)   log(-1)   log(0)   log(x)   log2(-x^2)   log10(0x)
ln(1e-46)   sqrt(-1)   sqrt(x)   sqrt(-x^2)   asin(2)   acos(2x)   arccos(-1.0001)   nan   NaN   inf   -inf   Infinity
1e9999   1e9999-1e9999   0*1e9999   max(1/0, x)   max(0/0, x)   abs(0/0)   sign(0/0)   sin(1/0)   sign(sqrt(x))
floor(log(x))   ceil(1/0)   e1
    """,
    ),
]
TARGETS = ["x^2", "sin(3x)", "2x^3 - x", "exp(-x^2)"]
ALIKE = {
    "x": "хχ×хｘ𝑥𝐱𝗑ⅹᵡˣₓ᙮乂✕⨯",
    "2": "２٢२²₂②𝟐ᒿ২½",
    "3": "３З٣³₃③𝟑ʒ",
    "-": "‐‑‒–—―－﹣⁻₋~",
    "^": "ˆ＾˄ꞈ↑⌃",
    "(": "（⁽₍﴾❨⟮[{",
    "s": "ѕｓ𝐬ꜱſ",
    "e": "еｅℯ𝐞ℇ€",
}
KNOWN = set("×²³")  # which are read, for people do paste them
INVISIBLE = (
    "\u200b\u200c\u200d\u2060\ufeff\u00ad\u180e\u034f\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068"
    "\u2069\ufe0f\ufe0e\U000e0001\U000e0078\u0301\u20d7\u0489\u3164\uffa0\u115f\u17b4\u2800"
)
BLANK = " \t\n\v\f\r\x1c\x1d\x1e\x1f\x85\xa0\u1680\u2003\u2028\u2029\u202f\u205f\u3000"
THINGS = [
    *[
        None,
        5,
        1.5,
        float("nan"),
        1j,
        True,
        b"x^2",
        bytearray(b"x"),
        ["x"],
        ("x",),
        {"x": 1},
        {"x"},
        frozenset("x"),
        ...,
    ],
    *[NotImplemented, range(3), slice(3), object(), iter("x"), memoryview(b"x"), Path("x"), io.StringIO("x")],
    *[np.float64(2), np.array("x"), np.array(["x", "y"]), np.bytes_(b"x"), torch.tensor(1.0), torch.zeros(100), torch],
]


def list_cases():
    """Kind, what is typed, and whether a task comes of it."""
    bases = ["x", "sin", "pi", "(x)", "()", "''", "(1)", "sin(x)"]
    for shape, base in itertools.product(ATTRIBUTES, bases[:5]):
        yield "attributes", shape.format(base), False
    for text in CODE:
        yield "code", text, False
    for text in BOMBS:
        yield "bombs", text, False
    for text, good in POWERS:
        yield "powers", text, good
    for text, good in VALUES:
        yield "undefined values", text, good
    yield from list_nested()
    for target in TARGETS:
        for own, others in ALIKE.items():
            for other in others if own in target else "":
                if other not in KNOWN:
                    yield "look-alikes", target.replace(own, other), False
    for i, sign in enumerate(INVISIBLE):
        target = TARGETS[i % len(TARGETS)]
        at = 1 + i % (len(target) - 1)
        yield "invisible", target[:at] + sign + target[at:], False
        yield "invisible", sign * (1 + i % 3), False
    for sign in BLANK:
        yield "blanks", f"x{sign}^{sign}2{sign}", True
        yield "blanks", sign * 20, False
    for code in [*range(32), *range(127, 160)]:
        yield "control characters", f"x^2{chr(code)}+1", chr(code).isspace()
    for text in ("\ud800", "x\udfff", "\ud83d x", "x^2\udc80", "\udcff" * 200, "si\ud800n(x)", "\U0010ffff", "\ue000x"):
        yield "surrogates", text, False
    yield from list_long()
    for thing in THINGS:
        yield "other things", thing, False
    yield from list_random()


def list_nested():
    for n in (1, 10, 29, 30, 40, 99):
        yield "nested", "(" * n + "x" + ")" * n, n < 30
        yield "nested", "-(" * n + "x" + ")" * n, n < 30
        yield "nested", "2^(" * n + "x" + ")" * n, n <= 2
        yield "nested", "(" * n + "x" + ")" * (n - 1), False
        yield "nested", "(" * (n - 1) + "x" + ")" * n, False
        yield "nested", "sin(" * n + "x" + ")" * n, n < 30
        yield "nested", "max(x," * n + "x" + ")" * n, n < 29
        yield "nested", "-" * n + "x", True
        yield "nested", "x" + "+x" * n, True
        yield "nested", "[" * n + "]" * n, False
        yield "nested", "x(" * n + "x" + ")" * n, n < 30


def list_long():
    parts = (
        "(",
        ")",
        "()",
        "x",
        "1",
        "9^",
        " ",
        "\n",
        "²",
        "π",
        "\0",
        "é",
        "😀",
        "a",
        "+",
        "**",
        ",",
        "sin(",
        "\ud800",
        ".",
    )
    for part in parts:
        yield "ten million characters", (part * HUGE)[:HUGE], False
    for digits in (
        "1" * 200,
        "9" * 39,
        "0." + "3" * 190,
        "1" + "0" * 38,
        "1e" + "9" * 190,
        "1e-" + "9" * 190,
        "0" * 200,
    ):
        good = not (digits.startswith(("111", "999")) or digits.startswith("1e9"))
        yield "long digits", digits, good
        yield "long digits", f"{digits[:190]}x^2", good
    yield "long digits", "x^2" + " " * 197, True
    yield "long digits", "x^2" + " " * 198, False


def list_random():
    """Signs thrown together; what comes of it nobody says beforehand."""
    rng = random.Random(0)
    words = [
        "x",
        "2",
        "pi",
        "e",
        "sin",
        "max",
        "(",
        ")",
        "^",
        "**",
        "*",
        "/",
        "+",
        "-",
        ",",
        ".",
        " ",
        "1e9",
        "_",
        "é",
        "²",
    ]
    for _ in range(60 * MORE):
        yield "thrown together", "".join(rng.choices(words, k=rng.randint(1, 30))), None


def tell(call, thing):
    """How a call ended, and in how many milliseconds of work."""
    best, end, said = float("inf"), "", ""
    for _ in range(2):
        started = time.process_time()
        try:
            value, end, said = call(thing), "taken", ""
        except Exception as error:
            inner = traceback.extract_tb(error.__traceback__)[-1].filename
            ours = type(error) in (TypeError, ValueError) and inner.startswith(OURS)
            end, said = "refused" if ours else "other", f"{type(error).__name__}: {error}"
        best = min(best, time.process_time() - started)
    if end == "taken" and isinstance(value, Task) and not value.y.isfinite().all():
        end = "not finite"
    return {"end": end, "ms": 1000 * best, "said": said.encode("utf-8", "backslashreplace").decode()[:700]}


def listen():
    """All that Python reports of itself from now on, while the second value is true: imports, open files, code."""
    events, switch = [], {"on": False}

    def record(event, arguments):
        if switch["on"]:
            parsed = event == "compile" and isinstance(arguments[0], bytes) and arguments[1] == "<unknown>"
            events.append(f"parse {arguments[0].decode()}" if parsed else event)

    sys.addaudithook(record)
    return events, switch


def main():
    calls = parse_formula, build_task, lambda target: build_training(TrainSettings(target=target, steps=3))
    for call in calls:
        call("x^2")  # what is imported late is there
    events, switch = listen()
    switch["on"] = True
    eval("1 + 1")  # which is heard
    switch["on"] = False
    print(json.dumps(events))
    for kind, thing, good in list_cases():
        ends = [tell(call, thing) for call in calls]
        events.clear()
        switch["on"] = True
        for call in calls[:2]:
            with suppress(TypeError, ValueError):
                call(thing)
        switch["on"] = False
        shown = thing[:40] if isinstance(thing, str) else type(thing).__name__
        line = {"kind": kind, "thing": repr(shown), "good": good, "ends": ends, "events": list(events)}
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
