"""The page: what the sections show, put into the template with a policy that lets nothing else run or load."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from stablerep.report import details, sections
from stablerep.report.config import ReportConfig
from stablerep.report.costs import bill_of
from stablerep.report.evidence import Evidence
from stablerep.report.failures import failures_of, photos_by_class
from stablerep.report.painted import Painted
from stablerep.report.risks import PaintedCounts, risks_of
from stablerep.report.thumbnails import Thumbnails
from stablerep.report.words import arm_names, open_words, verdict_of
from stablerep.report.words.answer import sentence

TOP_PROMPTS, MORE_PROMPTS = 5, 12  # rows of pictures on the second screen, and below


def html_of(evidence: Evidence, config: ReportConfig, version: str) -> str:
    """The whole page as one text. Every word from the run is escaped; pictures are data URLs."""
    words, poc = open_words(config.lang), evidence.poc
    thumbnails, painted = Thumbnails(), Painted(evidence.painted)
    names = arm_names(poc["arms"], words)
    verdict, bill, failures = verdict_of(poc), bill_of(poc["costs"], config), failures_of(evidence)
    split = evidence.folder / str(poc["data"].get("split", "split.csv"))
    test_photos = photos_by_class(split, "test")
    train = {label: len(paths) for label, paths in photos_by_class(split, "train").items()}
    top, more = painted.sheets(thumbnails, TOP_PROMPTS, MORE_PROMPTS)
    quality = sections.quality_view(evidence, thumbnails, words)
    view: dict[str, Any] = {
        "w": words,
        "poc": poc,
        "names": names,
        "verdict": verdict,
        "answer": sentence(poc, verdict, words),
        "basis": sections.basis_of(verdict, words),
        "facts": sections.facts(verdict, bill, words),
        "comparison": sections.comparison_view(evidence, names, words),
        "bill": bill,
        "cost": sections.cost_view(bill, config, words),
        "sheet": top,
        "more": more,
        "painted": painted,
        "fail": sections.failure_view(failures, names, test_photos, painted, thumbnails, words),
        "quality": quality,
        "risks": risks_of(evidence, config, PaintedCounts(painted.images, painted.reasons, train), words),
        "pairs": sections.memorised_pairs(evidence, thumbnails, words),
        "details": details.details_of(evidence, names, words),
        "missing": [words(f"missing.{name}") for name in evidence.missing],
        "about": _about(evidence, words),
        "folder": evidence.folder.resolve().name,
        "version": version,
        "thumbnails": thumbnails,  # read last: it has counted what could not be shown
    }
    css, script = _text("page.css.jinja"), _text("page.js")
    view |= {"css": Markup(css), "script": Markup(script), "policy": _policy(css, script)}
    return _environment(autoescape=True).get_template("page.html.jinja").render(view)


def _policy(css: str, script: str) -> str:
    """What the page may do: show the pictures in it, and run the one script and the one style sheet in it."""
    return (
        f"default-src 'none'; img-src data:; style-src '{_digest(css)}'; script-src '{_digest(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _text(name: str) -> str:
    return _environment(autoescape=False).get_template(name).render().strip()


def _with_code(text: str) -> Markup:
    """Our own sentences with their flags and commands set as code, which no line breaks within."""
    return Markup(re.sub(r"(?<!\w)(--[a-z-]+|stablerep-[a-z]+|\w+\.json)", r"<code>\1</code>", str(escape(text))))


def _environment(*, autoescape: bool) -> Environment:
    environment = Environment(
        loader=PackageLoader("stablerep.report", "templates"), autoescape=autoescape, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["with_code"] = _with_code
    return environment


def _about(evidence: Evidence, words: Any) -> list[str]:
    data: Mapping[str, Any] = evidence.poc["data"]
    told = []
    if data["classes"]:
        told.append(words("title.classes", n=words.whole(len(data["classes"]))))
    if data["test"]:
        told.append(words("title.photos", train=words.whole(data["train"]), test=words.whole(data["test"])))
    if evidence.poc["costs"]["device"]:
        told.append(str(evidence.poc["costs"]["device"]))
    path = evidence.folder / "poc.json"
    if path.exists():
        told.append(datetime.fromtimestamp(path.stat().st_mtime).strftime("%Y-%m-%d"))
    return told
