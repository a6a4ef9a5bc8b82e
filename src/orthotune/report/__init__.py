"""The records of a run as one self-contained HTML page. Needs neither torch nor PEFT, only the files of the run."""

from orthotune.report.page import write_report

__all__ = ["write_report"]
