"""A small piece of OpenStreetMap data that nobody had to download: a street with two lights, and two that cross it."""

from __future__ import annotations

from pathlib import Path

_NODES = {1: (0, -2), 2: (0, 0), 3: (0, 1.2), 4: (0, 3.2), 5: (1, 0), 6: (-1, 0), 7: (1, 1.2), 8: (-1, 1.2)}
_LIGHTS = (2, 3)
_WAYS = {
    "Main Street": ("secondary", (1, 2, 3, 4)),
    "First Street": ("tertiary", (5, 2, 6)),
    "Second Street": ("tertiary", (7, 3, 8)),
}
_UNIT_DEGREES = 0.0018  # 200 m to the north


def make_osm(path: Path) -> Path:
    """Write the data as XML; returns ``path``."""
    known = 'version="1" visible="true"'
    lines = ['<?xml version="1.0" encoding="UTF-8"?>', '<osm version="0.6">']
    for node, (north, east) in _NODES.items():
        tag = '<tag k="highway" v="traffic_signals"/>' if node in _LIGHTS else ""
        place = f'lat="{52.52 + north * _UNIT_DEGREES:.6f}" lon="{13.4 + 1.64 * east * _UNIT_DEGREES:.6f}"'
        lines.append(f'<node id="{node}" {known} {place}>{tag}</node>')
    for number, (name, (kind, nodes)) in enumerate(_WAYS.items(), 1):
        inside = "".join(f'<nd ref="{one}"/>' for one in nodes)
        tags = {"highway": kind, "name": name, "lanes": 2}
        inside += "".join(f'<tag k="{key}" v="{value}"/>' for key, value in tags.items())
        lines.append(f'<way id="{number}" {known}>{inside}</way>')
    path.write_text("\n".join([*lines, "</osm>", ""]))
    return path
