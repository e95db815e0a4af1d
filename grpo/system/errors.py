"""The errors a user can cause. A message is one line: what was seen, where, and what to do.

What fails is given to the smallest thing that it can be given to, recorded there once, and costs no more:

- a *branch* (one simulated future, a forked process): ``BranchError`` of ``system/forks.py``. Its label is tried again
  elsewhere and then left open;
- a *run* or an *episode* (one scenario with one seed, a process): a :class:`ScenarioError`, ``WorkerDied`` or
  ``TimeoutError``. Where its process died it is tried once more; after that it is a recorded row with its error;
- a *stage*: any :class:`GrpoError` that reaches the command line. It ends with that line on stderr.

Exit codes of a stage: 0 done; 2 something that the user can mend, found before results were written where that was
possible; 3 results that cannot be relied on or lack episodes (:class:`UnreliableError`, failures of `grpo evaluate`);
130 interrupted by Ctrl-C. Any other exception is a fault of the program and keeps its traceback.
"""

from __future__ import annotations


def one_line(error: BaseException | str) -> str:
    """What an error says, without its line breaks."""
    return " ".join(str(error).split())


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
