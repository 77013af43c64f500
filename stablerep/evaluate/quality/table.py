"""The numbers for the terminal, each with a sentence that says what it means, and what a reader must know besides."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from stablerep.data.picture_files import counted
from stablerep.evaluate.config import PIXELS, UNTRAINED
from stablerep.evaluate.quality.domain_gap import MOST

WORST = 3  # classes named below the table
NAMED = 5  # damaged pictures in a line


def table(results: dict[str, Any]) -> Table:
    """A row a number; beside it what as many fresh photos reach among the others."""
    pictures = f"{results['synthetic_images']:,} pictures of {results['synthetic']}"
    photos = f"{results['real_images']:,} photos of {results['real']}"
    shown = Table(title=f"{pictures}\nbeside {photos}, by {results['features']}", box=SIMPLE_HEAD, pad_edge=False)
    shown.add_column("", no_wrap=True)
    shown.add_column("pictures", justify="right", no_wrap=True)
    shown.add_column("photos", justify="right", no_wrap=True)
    shown.add_column("what it means")
    for row in _rows(results):
        shown.add_row(*row)
    return shown


def _rows(results: dict[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    k, photos = results["config"]["neighbours"], results["photos"]
    meanings: dict[str, tuple[str, Callable[[float | None], str], str]] = {
        "frechet_distance": ("Fréchet distance", _number, "how far apart: small is good"),
        "kid": ("KID", _number, "how far apart, fair to few pictures: 0 is best"),
        "precision": ("precision", _share, "pictures that look like photos: high is good"),
        "recall": ("recall", _share, "photos that look like pictures: high is good"),
        "density": ("density", _number, "how deep among photos; far above theirs: only usual ones"),
        "coverage": ("coverage", _share, f"photos with a picture among their {k} nearest; low: kinds are missing"),
        "vendi_score": ("Vendi score", _number, "as varied as so many unlike ones: near the photos' is good"),
    }
    for name, (title, text, meaning) in meanings.items():
        yield title, text(results[name]), text(photos[name]), meaning
    if (ratio := results["diversity_within_prompt"]) is not None:
        yield "prompt diversity", _number(ratio), "", "within a prompt; 0: copies, 1: as unlike as of different prompts"
    if (agreement := results["prompt_agreement"]) is not None:
        if results["prompt_agreement_kind"] == "text":
            yield "prompt agreement", _number(agreement), "", "cosine of picture and prompt: high is good"
        else:
            meaning = "taken for the class asked for by a classifier of photos: high is good"
            yield "prompt agreement", _share(agreement), _share(results["class_agreement_real"]), meaning
    memorised, gap = results["memorised"], results["domain_gap"]
    chance = memorised["expected_share"] * results["synthetic_images"]
    meaning = "too near to a training photo; more than fresh photos would be: look at the pairs"
    yield "memorised", f"{memorised['count']:,}", _number(chance), meaning
    accuracy = f"{100 * gap['accuracy']:.1f} ± {100 * gap['ci95']:.1f} %"
    yield "domain gap", accuracy, "50.0 %", "told from photos by a classifier; 100 %: always, low is good"


def notes(results: dict[str, Any]) -> list[str]:
    """What a reader of the numbers must know, a line each."""
    photos = results["photos"]["images"]
    return [
        f"photos: what {photos:,} of them, drawn, reach among the others",
        *_cautions(results),
        *_of_classes(results),
        *_of_files(results),
    ]


def _cautions(results: dict[str, Any]) -> Iterator[str]:
    features, width = results["features"], results["feature_width"]
    if features == PIXELS:
        yield "pixels see where light falls and little of what is shown; a trained encoder (--features) says more"
    if features.startswith(UNTRAINED):
        yield "an untrained encoder sees colours and edges; a trained encoder (--features) says more"
    few = min(results["synthetic_images"], results["real_images"])
    if few <= 2 * width:
        yield (
            f"{few:,} pictures are few for {width:,} features: the Fréchet distance is too high; go by KID, compare "
            "only sets of as many pictures"
        )
    memorised = results["memorised"]
    photos = memorised["training_photos"]
    one_in = f"one in {1 / memorised['expected_share']:,.0f} of {photos:,} training photos"
    yield f"memorised: a similarity above {memorised['threshold']:.3f}, which {one_in} has with another"
    if photos * memorised["expected_share"] < 1:
        yield f"{photos:,} training photos set the threshold of memorised by their nearest pair"
    if results["config"]["max_real"] is not None:
        yield f"memorised pictures were searched among {photos:,} drawn training photos, not all (--max-real)"
    if few > MOST:
        yield f"the domain gap is of {MOST:,} pictures of each side, drawn"


def _of_classes(results: dict[str, Any]) -> Iterator[str]:
    classes = results["per_class"]
    if not classes:
        yield "no class is known of both sides: nothing per class, and no agreement with the class asked for"
        return
    measured = [row for row in classes if row["coverage"] is not None]
    worst = sorted(measured, key=lambda row: row["coverage"])[:WORST]
    if worst:
        named = ", ".join(f"{row['class']} {_share(row['coverage'])}" for row in worst)
        yield f"least covered of {len(measured)} classes: {named}"
    asked = [row for row in classes if row["prompt_agreement"] is not None]
    if results["prompt_agreement_kind"] == "class" and asked:
        named = ", ".join(
            f"{row['class']} {_share(row['prompt_agreement'])}"
            for row in sorted(asked, key=lambda row: row["prompt_agreement"])[:WORST]
        )
        yield f"least often taken for what they should be: {named}"


def _of_files(results: dict[str, Any]) -> Iterator[str]:
    if damaged := results["damaged"]:
        more = f" and {len(damaged) - NAMED} more" if len(damaged) > NAMED else ""
        yield f"{len(damaged)} could not be decoded, left out: {', '.join(damaged[:NAMED])}{more}"
    for side, files in results["files_not_read"].items():
        if files:
            yield f"{counted(files)} of the {side} set left out, not read as pictures"
    yield "numbers, classes and prompts: {0}/quality.json; nearest pairs, left synthetic: {0}/pairs".format(
        results["config"]["out"]
    )


def _share(value: float | None) -> str:
    return "none" if value is None else f"{100 * value:.1f} %"


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
