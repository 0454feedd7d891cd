"""Read and check what a browser sends: limit its size, check every value, and reject it with a message."""

from __future__ import annotations

import json
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request

from .answers import FEWEST, MOST_STEPS
from .drawing import Drawing, Point

BYTES = 64 * 1024
"""The maximum size of a request."""
EXAMPLES, STROKES, POINTS = 5, 32, 1_000
"""The maximum numbers of examples per character, of strokes per drawing, and of points per stroke or function."""


async def read(request: Request) -> dict[str, Any]:
    """Return the JSON object in a request.

    Raises:
        HTTPException: 413 for more than `BYTES`, 400 if it is not a JSON object.
    """
    declared = request.headers.get("content-length", "0")
    body = bytearray()
    if len(declared) <= 9 and declared.isdecimal() and int(declared) <= BYTES:
        async for chunk in request.stream():
            body += chunk
            if len(body) > BYTES:
                break
        else:
            return _parsed(bytes(body))
    raise HTTPException(413, f"a request has at most {BYTES} bytes: draw with fewer points")


def _parsed(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, f"the request is not JSON: {str(error)[:100]}") from error
    if not isinstance(value, dict):
        raise HTTPException(400, f"the request must be a JSON object, got {_short(value)}")
    return value


def characters(body: dict[str, Any], most: int) -> tuple[list[list[Drawing]], Drawing, int]:
    """Return the examples of each character, the drawing to classify, and the number of steps.

    Raises:
        HTTPException: 422 if a value has another form or exceeds a limit.
    """
    _keys(body, {"characters", "drawing", "steps"})
    examples = [
        [_drawing(drawing, f"characters[{i}][{j}]") for j, drawing in enumerate(drawings)]
        for i, given in enumerate(_list(body["characters"], "characters", FEWEST, most, "characters"))
        for drawings in [_list(given, f"characters[{i}]", 1, EXAMPLES, "drawings")]
    ]
    return examples, _drawing(body["drawing"], "drawing"), _steps(body["steps"])


def function(body: dict[str, Any], x: tuple[float, float], y: tuple[float, float]) -> tuple[list[Point], int]:
    """Return the points on a function, within the ranges of x and y, and the number of steps.

    Raises:
        HTTPException: 422 if a value has another form or exceeds a limit.
    """
    _keys(body, {"points", "steps"})
    points = _list(body["points"], "points", 1, POINTS, "points")
    return [_point(point, f"points[{i}]", x, y) for i, point in enumerate(points)], _steps(body["steps"])


def _drawing(given: Any, where: str) -> Drawing:
    return [
        [_point(point, f"{where}[{i}][{j}]", (0.0, 1.0), (0.0, 1.0)) for j, point in enumerate(points)]
        for i, stroke in enumerate(_list(given, where, 1, STROKES, "strokes"))
        for points in [_list(stroke, f"{where}[{i}]", 1, POINTS, "points")]
    ]


def _point(given: Any, where: str, x: tuple[float, float], y: tuple[float, float]) -> Point:
    values = _list(given, where, 2, 2, "numbers")
    for value, (low, high) in zip(values, (x, y), strict=True):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        # Compare before converting, because an integer may be larger than any float. NaN is in no range.
        if not number or not low <= value <= high:
            raise HTTPException(422, f"{where} must have numbers from {low:g} to {high:g}, got {_short(value)}")
    return float(values[0]), float(values[1])


def _steps(given: Any) -> int:
    if not isinstance(given, int) or isinstance(given, bool) or not 0 <= given <= MOST_STEPS:
        raise HTTPException(422, f"steps must be an integer from 0 to {MOST_STEPS}, got {_short(given)}")
    return given


def _keys(body: dict[str, Any], expected: set[str]) -> None:
    if body.keys() != expected:
        keys = ", ".join(sorted(expected))
        raise HTTPException(
            422, f"the request must have {keys}; got {', '.join(map(_short, sorted(body)))[:80] or 'nothing'}"
        )


def _list(given: Any, where: str, least: int, most: int, what: str) -> list[Any]:
    bounds = f"{least}" if least == most else f"{least} to {most}"
    if not isinstance(given, list):
        raise HTTPException(422, f"{where} must be a list of {bounds} {what}, got {_short(given)}")
    if not least <= len(given) <= most:
        raise HTTPException(422, f"{where} must have {bounds} {what}, got {len(given)}")
    return given


def _short(value: Any) -> str:
    """Format a value for a message, shortened if it is long."""
    if isinstance(value, dict | list):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    text = json.dumps(value) if not isinstance(value, int) or abs(value) < 1e18 else "an integer too large"
    return text if len(text) <= 40 else text[:37] + "..."
