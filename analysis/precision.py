"""Numbers to the precision that their interval supports, and lengths of time."""

from __future__ import annotations

from math import floor, isfinite, log10

_ROUNDING = 1e-6
"""Intervals narrower than this share of the value are rounding, not uncertainty."""
MOST_DIGITS = 3
"""Significant digits where no interval says otherwise."""


def rounded(value: float, low: float = float("nan"), high: float = float("nan")) -> str:
    """A value with as many digits as its interval supports, and half the interval's width.

    The half width keeps one significant digit, the value as many decimals. ``n/a`` where nothing
    was measured.

    >>> rounded(0.4213948, 0.391, 0.452)
    '0.42 ± 0.03'
    >>> rounded(153.71, 141.2, 166.0), rounded(0.000012), rounded(float("nan"))
    ('154 ± 12', '0.000012', 'n/a')
    """
    if not isfinite(value):
        return "n/a"
    half = (high - low) / 2
    if not isfinite(half) or half <= _ROUNDING * abs(value):
        return plain(value)
    places = -floor(log10(half))
    if places > 4:
        return f"{plain(value)} ± {half:.0e}".replace("e-0", "e-")
    shown = max(places, 0)
    return f"{value:.{shown}f} ± {half:.{shown}f}"


def duration(seconds: float) -> str:
    """A length of time for people.

    >>> [duration(seconds) for seconds in (0.2, 89, 400, 9000)]
    ['1 s', '89 s', '7 min', '2.5 h']
    """
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def plain(value: float, digits: int = MOST_DIGITS) -> str:
    """A value with a few significant digits and no exponent where one can do without.

    >>> [plain(x) for x in (0.42139, 12.345, 0.0, 1234567.0, -0.0000004)]
    ['0.421', '12.3', '0', '1,234,567', '-4e-07']
    """
    if not isfinite(value):
        return "n/a"
    if value == 0:
        return "0"
    size = floor(log10(abs(value)))
    if size < -5:
        return f"{value:.{digits - 1}g}"
    if size >= digits - 1:
        return f"{value:,.0f}"
    text = f"{value:.{digits - 1 - size}f}"
    return text.rstrip("0").rstrip(".") if size < -2 else text
