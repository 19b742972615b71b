"""The throughput as a picture."""

from __future__ import annotations

from typing import Any, Final
from xml.sax.saxutils import escape

from benchmarks.report import Series

_WIDTH: Final = 860
_LABELS: Final = 250
_BARS: Final = 430
_ROW: Final = 26
_COLOURS: Final = {"bare": "#8a8f98", "own": "#3f7fe8", "peer": "#d9822b"}
#: The text takes the colour of the page that the picture is a part of.
_INK: Final = "var(--color-foreground-primary, #1f2328)"


def draw(figures: dict[str, Any]) -> str:
    """Draw the figures of the throughput's section.

    :param figures: as in the JSON file
    :return: an SVG document
    """
    parts: list[str] = []
    top = 20
    for batch, seconds in figures["seconds"].items():
        walls = {name: Series(of["wall"]) for name, of in seconds.items() if name != "socket"}
        rates = {name: figures["events"] / wall.median for name, wall in walls.items()}
        parts.append(_text(20, top + 14, f"Events a second, {batch} to a response", bold=True))
        top += 28
        for name in sorted(rates, key=lambda name: -rates[name]):
            ratio = walls["bare"].over(walls[name])
            length = round(_BARS * rates[name] / max(rates.values()), 1)
            parts += _bar(top, length, name, figures["labels"][name])
            parts.append(
                _text(
                    round(_LABELS + length + 8),
                    top + 14,
                    f"{rates[name]:,.0f}  ({ratio:.2f} of bare)",
                )
            )
            top += _ROW
        top += 22
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg"'
        f' viewBox="0 0 {_WIDTH} {top}" role="img" aria-label="Events a second of each client"'
        ' font-family="sans-serif" font-size="13">\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _bar(top: int, length: float, name: str, label: str) -> list[str]:
    return [
        _text(_LABELS - 8, top + 14, label, anchor="end"),
        f'<rect x="{_LABELS}" y="{top}" width="{length}" height="18" rx="2"'
        f' fill="{_COLOURS[_kind(name)]}"/>',
    ]


def _kind(name: str) -> str:
    if name.startswith("bare"):
        return "bare"
    return "peer" if "client" in name else "own"


def _text(x: int, y: int, text: str, *, bold: bool = False, anchor: str = "start") -> str:
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x}" y="{y}" style="fill: {_INK}" text-anchor="{anchor}"{weight}>{escape(text)}</text>'
