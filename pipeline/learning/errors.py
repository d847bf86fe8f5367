"""What stops a trainer, one class per reaction."""

from __future__ import annotations

from pipeline.errors import PageturnError


class TrainerError(PageturnError):
    """The trainer cannot run as it was asked to: its work directory or its configuration must be put right."""


class CheckpointError(TrainerError):
    """A checkpoint cannot be used; says which, and what was expected of it."""


class DivergenceError(TrainerError):
    """Weights or losses are no longer finite. Learning again from the same log would end in the same place."""
