"""One HTML file that holds everything: style, scripts, words, data, packed recordings. It asks nobody for anything."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

_SCRIPTS = ("page", "charts", "evaluation", "lights", "map", "decision", "replay", "training")
"""In this order; sections of the page stand in the order in which the scripts name them."""


def document(data: Mapping[str, Any], blobs: Mapping[str, bytes]) -> str:
    """The page. ``data`` is what the scripts show, ``blobs`` are packed (gzip) and unpacked when they are looked at.

    The same data give the same text.
    """
    parts = {
        "/*STYLE*/": _asset("page.css"),
        "/*WORDS*/": _json(json.loads(_asset("words.json"))),
        "/*DATA*/": _json(data),
        "<!--BLOBS-->": "\n".join(_blob(name, content) for name, content in blobs.items()),
        "/*SCRIPTS*/": "\n".join([*(_asset(f"{name}.js") for name in _SCRIPTS), "Page.start();"]),
    }
    return re.sub("|".join(map(re.escape, parts)), lambda found: parts[found[0]], _asset("page.html"))


def _asset(name: str) -> str:
    return (files(__package__) / "assets" / name).read_text(encoding="utf-8")


def _json(value: Any) -> str:
    """JSON that ends no ``script`` element, whatever names it holds."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.encode("utf-8", "backslashreplace").decode().replace("<", "\\u003c")


def _blob(name: str, content: bytes) -> str:
    return f'<script type="text/plain" id="{name}">{base64.b64encode(content).decode()}</script>'
