"""The stream job on Apache Beam, and beside it the archiver, which needs no Beam."""

import logging


def _worth_saying(record: logging.LogRecord) -> bool:
    """Importing Beam warns that Google's libraries, which nothing here uses, are not installed."""
    return not str(record.msg).startswith("apitools not found")


logging.getLogger().addFilter(_worth_saying)
