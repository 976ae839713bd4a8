"""Every error that Secateur raises on purpose. Each says what happened, where, and what to do.

SecateurError
├── ConfigError          a setting is out of range, unknown or contradicts another
├── RegistryError        a key is taken, or nothing is registered under it
├── CaptureError         the model could not be run on tensors without memory
├── UnsupportedOpError   a rule was asked for an operator that it does not cover
├── GroupError           dimensions or slices of one group disagree
├── PlanError            a plan does not fit the model, or is not a plan
├── VerifyError          the pruned model does not compute what the plan says
├── FileError            a file is missing, foreign, corrupt, or could not be written
├── DataError            data cannot be read or does not fit the model
└── TrainError           training cannot start or go on (NaN, nothing to learn)
"""

from __future__ import annotations


class SecateurError(Exception):
    """Base of all errors that Secateur raises on purpose."""


class ConfigError(SecateurError, ValueError):
    """A setting is out of range, unknown, or contradicts another."""


class RegistryError(SecateurError, KeyError):
    """A key is taken, or nothing is registered under it."""

    def __str__(self) -> str:
        # KeyError would print the repr of the message.
        return str(self.args[0]) if self.args else ""


class CaptureError(SecateurError):
    """The model could not be run on tensors without memory."""


class UnsupportedOpError(SecateurError):
    """A rule was asked for an operator, or a use of one, that it does not cover."""


class GroupError(SecateurError):
    """Dimensions or slices of one group disagree."""


class PlanError(SecateurError):
    """A plan does not fit the model, or is not a plan."""


class VerifyError(SecateurError):
    """The pruned model does not compute what the plan says that it computes."""


class FileError(SecateurError):
    """A file is missing, foreign, corrupt, or could not be written."""


class DataError(SecateurError):
    """Data cannot be read, or does not fit the model."""


class TrainError(SecateurError):
    """Training cannot start or go on."""


def first_line(error: Exception) -> str:
    """The first line of an error's message."""
    return (str(error).strip().splitlines() or ["no message"])[0]
