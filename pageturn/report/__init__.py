"""What a run has come to, as a page to look at: see `write_report`."""

from pageturn.report.writing import write_report

__all__ = ["write_report"]
