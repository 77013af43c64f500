"""Commands that answer whether it is worth it: quality, search, poc, report."""

from __future__ import annotations

from collections.abc import Sequence

from stablerep.cli.flags import parse_flags
from stablerep.process import importing, run_command


def quality(argv: Sequence[str] | None = None) -> None:
    """Compare synthetic pictures with real photos."""

    def run(argv: Sequence[str]) -> None:
        from stablerep.evaluate.quality.config import QualityConfig

        config = parse_flags(QualityConfig, argv, "stablerep-quality")
        from rich.console import Console

        from stablerep.evaluate.quality.run import quality
        from stablerep.evaluate.quality.table import notes, table

        results = quality(config)
        Console().print(table(results))
        print("\n".join(notes(results)))

    run_command("stablerep-quality", run, argv)


def search(argv: Sequence[str] | None = None) -> None:
    """Search the settings of painting that train the best encoder."""

    def run(argv: Sequence[str]) -> None:
        from stablerep.search.config import SearchConfig

        config = parse_flags(SearchConfig, argv, "stablerep-search")
        with importing():
            from stablerep.search.dry_run import estimate
            from stablerep.search.proxy import open_proxy
            from stablerep.search.run import search
            from stablerep.search.summary import summarise

        if config.dry_run:
            print(estimate(config, open_proxy(config)))
        else:
            print("\n".join(summarise(search(config, open_proxy(config)))))

    run_command("stablerep-search", run, argv)


def poc(argv: Sequence[str] | None = None) -> None:
    """Is synthetic data worth it? Paint, train on real and synthetic pictures, measure, compare."""

    def run(argv: Sequence[str]) -> None:
        from stablerep.poc.config import PocConfig

        config = parse_flags(PocConfig, argv, "stablerep-poc")
        with importing():
            from rich.console import Console

            from stablerep.poc.run import POC, estimate, run_poc
            from stablerep.poc.summary import bill_line, table
            from stablerep.report.config import ReportConfig
            from stablerep.report.run import report
            from stablerep.report.words import answer

        if config.dry_run:
            print(estimate(config))
            return
        found = run_poc(config)
        Console().print(table(found))
        print(answer(found))
        page = report(ReportConfig(run=config.out))
        print(f"{bill_line(found)}; all numbers: {config.out / POC}; the report: {page}")

    run_command("stablerep-poc", run, argv)


def report(argv: Sequence[str] | None = None) -> None:
    """Write a run's results as one HTML page."""

    def run(argv: Sequence[str]) -> None:
        from stablerep.report.config import ReportConfig

        first = ["--run"] if argv and not argv[0].startswith("-") else []
        config = parse_flags(ReportConfig, [*first, *argv], "stablerep-report")
        from stablerep.report.run import report

        print(f"report in {report(config)}")

    run_command("stablerep-report", run, argv)
