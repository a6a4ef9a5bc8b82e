"""Records in, one self-contained HTML page out. Knows neither torch nor PEFT: only what a run has written down."""

from orthotune.report.page import write_report

__all__ = ["write_report"]
