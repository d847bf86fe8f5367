"""What can be wrong around the stream that a user has to mend."""

from __future__ import annotations

from pipeline.errors import PageturnError


class SnapshotError(PageturnError):
    """The saved state cannot be used: it is damaged, or was made by another job. Replace it, or go back."""


class TwoContentsError(PageturnError):
    """A record was to be written again with other bytes: what was written does not come from this log and config."""
