"""Numbers and foreign text as a reader sees them; the JSON keeps the full values.

Text from a data file is hostile until shown otherwise: it is cut to a length, and what cannot be seen (controls,
bidirectional overrides, zero-width characters, lone surrogates) is spelt out as ``\\u202e``.
"""

from __future__ import annotations

import math
import unicodedata

from vae_anomaly.errors import printable, spelt_out

UNKNOWN, MINUS = "n/a", "\N{MINUS SIGN}"


def number(value: float | None, digits: int = 3, *, signed: bool = False) -> str:
    """``value`` with ``digits`` significant digits and thousands separators.

    >>> number(31.7234), number(912512.4), number(0.00123), number(2.5e9), number(3.0, signed=True)
    ('31.7', '912,512', '0.00123', '2.50e9', '+3.00')
    """
    if value is None or math.isnan(value):
        return UNKNOWN
    sign = MINUS if value < 0 else "+" if signed and value > 0 else ""
    return sign + _magnitude(abs(value), digits)


def _magnitude(value: float, digits: int) -> str:
    if value == 0 or math.isinf(value):
        return "0" if value == 0 else "∞"
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")  # the exponent after rounding: 9.996 is 10.0
    power = int(exponent)
    if not -5 < power < 7:
        return f"{mantissa}e{power}"
    return f"{value:,.{max(0, digits - 1 - power)}f}"


def count(value: float) -> str:
    """An expected number of records: one decimal, or two significant digits below one.

    >>> count(6), count(1234.56), count(0.0123), count(0)
    ('6.0', '1,234.6', '0.012', '0')
    """
    if not value < 1e9:
        return number(value)
    return f"{value:,.1f}" if value >= 0.95 else f"{value:.2g}"


def p_value(p: float, *, relation: bool = False) -> str:
    """Two significant digits, never ``0.0000``; with ``relation`` as the right-hand side of ``p``.

    >>> p_value(0.15), p_value(0.00213), p_value(1.0), p_value(3e-7), p_value(0.15, relation=True)
    ('0.15', '0.0021', '1', '< 0.0001', '= 0.15')
    """
    if math.isnan(p):
        return f"= {UNKNOWN}" if relation else UNKNOWN
    if p < 0.0001:
        return "< 0.0001"
    digits = f"{p:.2g}" if p < 0.1 else "1" if p == 1 else f"{min(p, 0.99):.2f}"
    return f"= {digits}" if relation else digits


def fixed(value: float, decimals: int) -> str:
    """``value`` with so many decimals, for columns of numbers that a reader may want to add up.

    >>> fixed(1234.56, 1), fixed(-0.004, 1)
    ('1,234.6', '0.0')
    """
    if not abs(value) < 1e9:
        return number(value)
    return f"{value:z,.{decimals}f}".replace("-", MINUS)


def percent(rate: float) -> str:
    """A rate from 0 to 1, unbreakable; what is not nought is never shown as nought, nor what is not all as all.

    >>> [percent(r).replace("\u00a0", " ") for r in (0, 0.00123, 0.125, 0.02, 1e-7, 0.99999)]
    ['0 %', '0.12 %', '12.5 %', '2 %', '< 0.01 %', '> 99.9 %']
    """
    if not math.isfinite(rate):
        return UNKNOWN
    share = 100 * rate
    digits = (f"{share:.2f}" if share < 10 else f"{share:.1f}").rstrip("0").rstrip(".")
    shown = "< 0.01" if 0 < share < 0.01 else "> 99.9" if 99.95 <= share < 100 else digits
    return shown + "\u00a0%"


def text(value: object, limit: int = 120) -> str:
    """At most ``limit`` characters of ``value``, every one of them visible.

    >>> text("pay\\u202ement\\n"), text("x" * 200, 5)
    ('pay\\\\u202ement\\\\n', 'xxxx…')
    """
    shown, marks = [], 0
    for character in str(value)[: limit + 1]:
        marks = marks + 1 if unicodedata.category(character)[0] == "M" else 0
        # a tower of accents would cover the lines above it
        shown.append(spelt_out(character) if marks > 3 else printable(character))
    result = "".join(shown)
    return result if len(result) <= limit else result[: limit - 1] + "…"
