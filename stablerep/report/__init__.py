from stablerep.report.page import Report, write_report

__all__ = ["Report", "write_report"]
