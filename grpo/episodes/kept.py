"""Finished episodes, kept in a log while an evaluation works: an interrupted one goes on with the missing ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from pydantic import TypeAdapter

from ..records import EpisodeResult
from ..system.errors import OutputError
from ..system.files import check_held, checked_line, checked_lines

_EPISODE = TypeAdapter(EpisodeResult)


def kept_line(episode: EpisodeResult, owner: str) -> str:
    """An episode as it is kept; ``owner`` says what for."""
    return checked_line(_EPISODE.dump_json(episode).decode(), of=owner)


def append_kept(path: Path, line: str) -> None:
    """Add a line to the log; raises :class:`OutputError`."""
    check_held(path)
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(line)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror}); free the disk") from None


def read_kept(path: Path, owner: str) -> Iterator[EpisodeResult]:
    """The episodes that worked; failed ones, damaged lines and those of another owner are to be played again."""
    for text in checked_lines(path, of=owner):
        with suppress(ValueError):  # of another version of this program
            episode = _EPISODE.validate_json(text or b"")
            if episode.error is None:
                yield episode
