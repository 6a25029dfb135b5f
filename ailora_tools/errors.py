"""The errors a user can meet, each with a way out.

AiloraError                 a named problem: one message, exit code 1
├── CheckpointError         the files are not what safetensors or the Hub layout promises
│   └── UnreadableError     the system does not give what is in them
├── TargetError             W^Q or W^V cannot be found, or cannot be worked on
├── OptionError             a value the user gave does not fit this model
├── NumericalError          the numbers of a matrix forbid the operation
├── OutputError             the result cannot be written where it was asked for
├── UnfinishedError         something unforeseen stopped the work; what is finished is kept
│   └── TeamError           the processes of one job have lost each other, or do not fit together
└── VerificationError       what is on disk is not what the manifest promises (exit code 3)
"""

from __future__ import annotations

from collections.abc import Sequence


class AiloraError(Exception):
    """A problem the user can act on.

    `problem` says what is wrong and where, with what was expected and found; `hint` says what to do. told: another
    process of the same job says it to the user.
    """

    exit_code = 1
    told = False

    def __init__(self, problem: str, hint: str = "") -> None:
        super().__init__(problem)
        self.problem = problem
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.problem}\n{self.hint}" if self.hint else self.problem


class CheckpointError(AiloraError):
    """The files do not form a checkpoint that can be read."""


class UnreadableError(CheckpointError):
    """The operating system refuses a file or a folder, or fails to read it; that says nothing of what it holds."""


class TargetError(AiloraError):
    """The wanted projections are absent, ambiguous, or stored in a way not supported."""


class OptionError(AiloraError):
    """An option does not fit this model: a rank, a layer, a role, a device."""


class NumericalError(AiloraError):
    """A matrix holds NaN or infinity, or a decomposition did not hold."""


class OutputError(AiloraError):
    """The output cannot be created, or there is no room for it."""


class UnfinishedError(AiloraError):
    """Something unforeseen stopped the work; what is finished is kept, and the hint says how to go on."""


class TeamError(UnfinishedError):
    """The processes of one job have lost each other, or do not fit together."""


class VerificationError(AiloraError):
    """The folder does not hold what its manifest promises."""

    exit_code = 3


def listed(items: Sequence[str], limit: int = 3) -> str:
    """The first few items and how many more there are, for the text of a message."""
    shown = ", ".join(items[:limit])
    return f"{shown} and {len(items) - limit} more" if len(items) > limit else shown
