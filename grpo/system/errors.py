"""The errors a user can cause. A message is one line: what was seen, where, and what to do."""

from __future__ import annotations


class GrpoError(Exception):
    """Base of every error with a message meant for the user; the command line exits with ``exit_code``."""

    exit_code = 2


class ConfigError(GrpoError):
    """A config file or flag is missing, malformed or out of range; ``problems`` holds one line each."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems

    def __reduce__(self) -> tuple[type[ConfigError], tuple[list[str]]]:
        """Pickled as it was made: errors cross processes."""
        return type(self), (self.problems,)


class DataError(GrpoError):
    """A dataset, state or result file is missing, empty or malformed."""


class ScenarioError(GrpoError):
    """A SUMO scenario cannot be used: file missing, no traffic lights, SUMO refuses to load it."""


class SimulatorCrash(ScenarioError):
    """The process in which SUMO loaded a scenario crashed natively or was killed; the next one may not."""


class ModelError(GrpoError):
    """A model folder is absent, cannot be loaded, or cannot do what the stage needs."""


class OutputError(GrpoError):
    """An output folder cannot be written, or holds the result of a finished run."""


class UnreliableError(GrpoError):
    """Too many simulations failed, or labels did not come out the same again: what is made cannot be relied on."""

    exit_code = 3
