"""Numbers as people read them. Pure functions from numbers to text."""

from __future__ import annotations

import math

# a minus sign as wide as a plus, and a space that does not break a number from its unit
MINUS, SPACE = "−", "\N{NO-BREAK SPACE}"


def quantity(value: float) -> str:
    """Three digits and a prefix: 4521000 -> `4.52 M`."""
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * factor:
            return f"{_three(value / factor)}{SPACE}{prefix}"
    return f"{value:g}"


def size(n: int) -> str:
    """Bytes, with decimal prefixes: 1234567 -> `1.23 MB`."""
    text = quantity(n)
    return f"{text}B" if SPACE in text else f"{text}{SPACE}B"


def seconds(value: float) -> str:
    """0.00123 -> `1.23 ms`."""
    for factor, unit in ((1.0, "s"), (1e-3, "ms")):
        if value >= 0.9995 * factor:
            return f"{_three(value / factor)}{SPACE}{unit}"
    return f"{_three(value / 1e-6)}{SPACE}µs"


def percent(fraction: float, digits: int = 1) -> str:
    """0.123 -> `12.3 %`."""
    return _signed(f"{100 * fraction:.{digits}f}") + f"{SPACE}%"


def points(difference: float, digits: int = 1, *, sign: bool = False) -> str:
    """A difference of two fractions, in percentage points: 0.0123 -> `1.2 points`."""
    value = 100 * difference
    text = f"{value:+.{digits}f}" if sign and round(value, digits) != 0 else f"{value:.{digits}f}"
    return f"{_signed(text)}{SPACE}points"


def number(value: float, digits: int = 3) -> str:
    """Significant digits, with a real minus."""
    return _signed(f"{value:.{digits}g}")


def wilson(mean: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of a proportion from n independent examples.

    (p + z²/2n ± z sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n)

    Source: Wilson 1927, JASA 22(158), 209-212.
    """
    z = _quantile(0.5 + confidence / 2)
    middle = (mean + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(max(0.0, mean * (1 - mean)) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(0.0, middle - half), min(1.0, middle + half)


def _quantile(p: float) -> float:
    from statistics import NormalDist

    return NormalDist().inv_cdf(p)


def _three(value: float) -> str:
    digits = 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
    return _signed(f"{value:.{digits}f}")


def _signed(text: str) -> str:
    if text.startswith("-") and float(text) == 0:
        text = text[1:]
    return text.replace("-", MINUS, 1) if text.startswith("-") else text
