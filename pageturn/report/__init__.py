"""What a run has come to, as a page to look at: see `write_report`; several side by side: `write_comparison`."""

from pageturn.report.writing import write_comparison, write_report

__all__ = ["write_comparison", "write_report"]
