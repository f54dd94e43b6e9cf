"""Expressions: terms in a prediction f and its target y, and how they are written.

A term is a product of factors, each of them one of `FACTORS` or an integer power of one:
"y*log(f)", "(1-y)*f^2", "e^2" with the error e = f - y.
"""

from __future__ import annotations

import functools
import math
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from metaloss.errors import ConfigError, did_you_mean


@dataclass(frozen=True)
class Factor:
    """A function of f and y, in three languages."""

    value: Callable[[Tensor, Tensor], Tensor]  #: elementwise
    latex: str
    python: str  #: of tensors f and y

    @property
    def latex_base(self) -> str:
        """What takes an exponent."""
        closed = len(self.latex) == 1 or self.latex[0] == "("
        return self.latex if closed else rf"\left({self.latex}\right)"


def _positive(x: Tensor) -> Tensor:
    """Where softmax has rounded to 0, a number small enough whose 1/x² is finite."""
    return x.clamp_min(torch.finfo(x.dtype).tiny ** 0.45)


def _log_cosh(e: Tensor) -> Tensor:
    """Without overflow: log((exp(e) + exp(-e)) / 2) = softplus(2e) - e - log 2."""
    return torch.nn.functional.softplus(2 * e) - e - math.log(2)


FACTORS = {
    "f": Factor(lambda f, y: f, "f", "f"),
    "y": Factor(lambda f, y: y, "y", "y"),
    "(1-y)": Factor(lambda f, y: 1 - y, "(1-y)", "(1 - y)"),
    "e": Factor(lambda f, y: f - y, "(f-y)", "(f - y)"),
    "log(f)": Factor(lambda f, y: _positive(f).log(), r"\log f", "torch.log(f)"),
    "log(1-f)": Factor(lambda f, y: _positive(1 - f).log(), r"\log(1-f)", "torch.log(1 - f)"),
    "sqrt(f)": Factor(lambda f, y: _positive(f).sqrt(), r"\sqrt{f}", "torch.sqrt(f)"),
    "exp(f)": Factor(lambda f, y: f.exp(), r"e^{f}", "torch.exp(f)"),
    "sqrt(1+e^2)": Factor(
        lambda f, y: (1 + (f - y).square()).sqrt(),
        r"\sqrt{1+(f-y)^2}",
        "torch.sqrt(1 + (f - y) ** 2)",
    ),
    "log(cosh(e))": Factor(
        lambda f, y: _log_cosh(f - y), r"\log\cosh(f-y)", "torch.log(torch.cosh(f - y))"
    ),
}


@dataclass(frozen=True)
class Term:
    """A product of powers of factors."""

    powers: tuple[tuple[Factor, int], ...]

    def __call__(self, f: Tensor, y: Tensor) -> Tensor:
        """Its value, elementwise."""
        parts = [factor.value(f, y) for factor, _ in self.powers]
        exponents = [power for _, power in self.powers]
        powers = [x if p == 1 else x**p for x, p in zip(parts, exponents, strict=True)]
        return functools.reduce(operator.mul, powers)

    @property
    def latex(self) -> str:
        """For a formula."""
        return r"\,".join(
            factor.latex if power == 1 else f"{factor.latex_base}^{{{power}}}"
            for factor, power in self.powers
        )

    @property
    def python(self) -> str:
        """For a function of tensors f and y."""
        return " * ".join(
            factor.python if power == 1 else f"{factor.python} ** {power}"
            for factor, power in self.powers
        )


@functools.cache
def parse(text: str) -> Term:
    """A term by its text.

    Raises:
        ConfigError: a factor is unknown.
    """
    powers = []
    for word in text.replace(" ", "").split("*"):
        found = re.fullmatch(r"(.+)\^([1-9])", word)
        name, power = (word, 1) if word in FACTORS or found is None else (found[1], int(found[2]))
        if name not in FACTORS:
            near, known = did_you_mean(name, FACTORS), ", ".join(FACTORS)
            raise ConfigError(f"no factor {name!r} for the term {text!r}{near} · known: {known}")
        powers.append((FACTORS[name], power))
    return Term(tuple(powers))


def as_text(terms: Sequence[str], coefficients: Sequence[float]) -> str:
    """A weighted sum of terms in plain text, four digits."""
    return _sum([f"{abs(c):.4g}*{term}" for term, c in _pairs(terms, coefficients)], coefficients)


def as_latex(terms: Sequence[str], coefficients: Sequence[float]) -> str:
    """The same for a formula."""
    parts = [rf"{_number(abs(c))}\,{parse(term).latex}" for term, c in _pairs(terms, coefficients)]
    return _sum(parts, coefficients)


def as_python(terms: Sequence[str], coefficients: Sequence[float]) -> str:
    """The same as a function of tensors f and y, all digits."""
    parts = [f"{abs(c)!r} * {parse(term).python}" for term, c in _pairs(terms, coefficients)]
    return f"lambda f, y: {_sum(parts, coefficients)}"


def _pairs(terms: Sequence[str], coefficients: Sequence[float]) -> list[tuple[str, float]]:
    return list(zip(terms, coefficients, strict=True))


def _sum(parts: Sequence[str], coefficients: Sequence[float]) -> str:
    """The parts with the signs of their coefficients between them."""
    signs = ["-" if c < 0 else "+" for c in coefficients]
    first, *rest = [f"{sign} {part}" for sign, part in zip(signs, parts, strict=True)]
    return " ".join([re.sub(r"^\+ |(?<=^-) ", "", first), *rest])


def _number(value: float) -> str:
    """Four digits, powers of ten as LaTeX has them."""
    digits, _, power = f"{value:.4g}".partition("e")
    return digits + (rf" \cdot 10^{{{int(power)}}}" if power else "")
