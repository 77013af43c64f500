"""The page in a browser: silent, alone, readable by everyone, and a decision on two screens."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

import stablerep
from stablerep.shards import Picture, Sample, start_dataset, write_shard
from tests.report.poc_folder import poc

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

SECTIONS = ["answer", "comparison", "cost", "pictures", "failures", "quality", "risks"]
SERIOUS = ("serious", "critical")
DESK, PHONE = (1280, 800), (390, 844)
SAYS = {"en": "Synthetic pictures are worth it here", "ja": "合成画像は有効です"}
PRICES: dict[str, Any] = {"usd_per_photo": 0.4, "usd_per_label": 0.12}


@pytest.fixture(scope="session")
def pages(poc_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    out = tmp_path_factory.mktemp("pages")
    return {lang: stablerep.report(run=poc_folder, lang=lang, out=out / f"{lang}.html", **PRICES) for lang in SAYS}


@contextmanager
def opened(browser: Browser, path: Path, size: tuple[int, int] = DESK, scheme: Any = "light") -> Iterator[Page]:
    """The page, which must stay silent and alone: no error, no warning, no request but for itself."""
    context = browser.new_context(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme)
    page = context.new_page()
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(path.as_uri())
    yield page
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [path.as_uri()]
    context.close()


def test_a_decision_fits_on_two_screens(chromium: Browser, pages: dict[str, Path]) -> None:
    for path in pages.values():
        with opened(chromium, path) as page:
            boxes = {name: page.locator(f"#{name}").bounding_box() for name in SECTIONS}
            bottoms = {name: box["y"] + box["height"] for name, box in boxes.items() if box}
            assert list(bottoms) == SECTIONS and max(bottoms.values()) <= 2 * DESK[1], bottoms
            assert all(bottoms[name] <= DESK[1] for name in ("answer", "comparison", "cost")), bottoms
            assert not sideways(page)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("lang", list(SAYS))
def test_axe_finds_nothing_serious(
    chromium: Browser, pages: dict[str, Path], screenshots: Path, lang: str, scheme: str
) -> None:
    with opened(chromium, pages[lang], DESK, scheme) as page:
        assert SAYS[lang] in page.inner_text("#answer") and page.get_attribute("html", "lang") == lang
        page.screenshot(path=screenshots / f"{lang}_{scheme}.png", full_page=True)
        assert serious_findings(page) == []


def test_it_reads_on_a_phone(chromium: Browser, pages: dict[str, Path], screenshots: Path) -> None:
    for lang, path in pages.items():
        with opened(chromium, path, PHONE) as page:
            page.screenshot(path=screenshots / f"{lang}_phone.png", full_page=True)
            assert not sideways(page)
            assert lang != "en" or serious_findings(page) == []


def test_axe_would_find_something(chromium: Browser, tmp_path: Path) -> None:
    (tmp_path / "bad.html").write_text('<!doctype html><html><body><img src="data:,"><p style="color:#ccc">pale')
    with opened(chromium, tmp_path / "bad.html") as page:
        assert {rule for rule, _ in serious_findings(page)} >= {"image-alt", "color-contrast"}


def test_the_toggle_works_by_keyboard(chromium: Browser, pages: dict[str, Path]) -> None:
    for scheme, first, then in (("light", "false", "true"), ("dark", "true", "false")):
        with opened(chromium, pages["en"], scheme=scheme) as page:
            ground = "getComputedStyle(document.body).backgroundColor"
            before = page.evaluate(ground)
            page.keyboard.press("Tab")
            assert page.evaluate("document.activeElement.className") == "skip"
            page.keyboard.press("Tab")
            assert page.get_attribute("#scheme:focus", "aria-pressed") == first
            page.keyboard.press("Enter")
            assert page.get_attribute("#scheme", "aria-pressed") == then and page.evaluate(ground) != before
            page.keyboard.press("Space")
            assert page.evaluate(ground) == before


def test_a_reader_finds_headings_names_and_numbers(chromium: Browser, pages: dict[str, Path]) -> None:
    with opened(chromium, pages["en"]) as page:
        assert [each.get_attribute("id") for each in page.get_by_role("region").all()][:7] == SECTIONS
        assert page.get_by_role("main").count() == page.get_by_role("banner").count() == 1
        levels = page.evaluate("[...document.querySelectorAll('h1,h2,h3')].map(each => +each.tagName[1])")
        assert levels[0] == 1 and all(b - a <= 1 for a, b in itertools.pairwise(levels))
        assert page.evaluate("[...document.images].every(each => each.alt.length > 5 && each.complete && each.width)")
        row = page.get_by_role("row", name="Synthetic only").first
        assert row.get_by_role("rowheader").inner_text() == "Synthetic only"
        assert row.get_by_role("cell").all_inner_texts() == ["4,000", "83.6 ± 0.5", "72.5 ± 0.9", "81.7 ± 0.6"]
        for chart in page.locator(".chart").all():
            assert chart.get_attribute("aria-label")
            assert chart.locator("xpath=following-sibling::details//tbody/tr").count() > 2  # its numbers


def test_it_prints(chromium: Browser, pages: dict[str, Path], screenshots: Path) -> None:
    for lang, path in pages.items():
        with opened(chromium, path, scheme="dark") as page:
            page.emulate_media(media="print")
            assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
            assert not page.is_visible("#scheme")
            page.emulate_media(media=None)
            printed = page.pdf(path=screenshots / f"{lang}.pdf", prefer_css_page_size=True)
            assert 2 <= printed.count(b"/Type /Page\n") <= 9


HOSTILE = (
    "<script>alert(1)</script>",
    "\"'><img src=x onerror=alert(2)>",
    "{{ 7 * 7 }} ${7 * 7} &amp; &lt;b&gt;",
    "Donaudampfschifffahrtsgesellschaftskapitän" * 12,
    "صورة لحذاء رياضي أسود \u202e reversed",
    "]]><!--</style></title>",
)


@pytest.fixture
def hostile_page(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    painted = folder / "painted" / "x"
    painted.mkdir(parents=True)
    start_dataset(painted, {"prompts": HOSTILE[0]}, {"flags": {"prompts": HOSTILE[1], "model": HOSTILE[3]}})
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 200, 3), np.uint8)).save(buffer, "png")
    row = {"guidance_scale": 2.0, "reason": ""}
    samples = [Sample(n, text, "png", [Picture(0, buffer.getvalue(), row)]) for n, text in enumerate(HOSTILE)]
    write_shard(painted, 0, samples)
    told = poc(HOSTILE)
    told["arms"][0] |= {"name": HOSTILE[0], "kind": "strange"}
    told["arms"][2]["arch"] = HOSTILE[3]
    told["costs"]["device"] = HOSTILE[1]
    told["commands"] = list(HOSTILE)
    told["costs"]["steps"][0]["name"] = HOSTILE[4]
    (folder / "poc.json").write_text(json.dumps(told))
    results = {
        "per_class": [{"class": text, "accuracy": 50.0, "photos": 9} for text in HOSTILE],
        "confusion": [[1] * 6] * 6,
    }
    for arm in ("synthetic", "real"):
        place = folder / "measured" / arm / "seed-0"
        place.mkdir(parents=True)
        for at, row_ in enumerate(results["per_class"]):
            row_["accuracy"] = 50.0 - at - 20 * (arm == "synthetic")
        (place / "results.json").write_text(json.dumps(results))
    return stablerep.report(run=folder, generator_licence=HOSTILE[0], prompts_licence=HOSTILE[4], **PRICES)


@pytest.mark.parametrize("size", [DESK, PHONE])
def test_hostile_text_stays_text(
    chromium: Browser, hostile_page: Path, screenshots: Path, size: tuple[int, int]
) -> None:
    with opened(chromium, hostile_page, size) as page:
        page.screenshot(path=screenshots / f"hostile_{size[0]}.png", full_page=True)
        for place in ("#pictures", "#failures", "pre"):
            said = page.locator(place).first.evaluate("each => each.textContent")
            for text in HOSTILE if place == "pre" else HOSTILE[:5]:
                assert text in said
        assert page.locator("script").count() == page.locator("style").count() == 1
        assert page.locator("[onerror]").count() == page.locator("img[src=x]").count() == 0
        assert not sideways(page)


def test_the_policy_stops_what_would_slip_through(chromium: Browser, pages: dict[str, Path], tmp_path: Path) -> None:
    """Were the escaping to fail one day, nothing would run and nothing be asked for."""
    text = pages["en"].read_text()
    assert text.count("<script>") == 1 and " on" + "load=" not in text and "style=" not in text
    assert "http://" not in text and "https://" not in text
    slipped = '<img src="https://example.com/x.png" onerror="document.title=1"><script>document.title=2</script></main>'
    (tmp_path / "slipped.html").write_text(text.replace("</main>", slipped))
    context = chromium.new_context()
    page = context.new_page()
    refused: list[str] = []
    page.on("console", lambda message: refused.append(message.text))
    sent: list[str] = []
    context.route("https://**", lambda route: (sent.append(route.request.url), route.abort()))
    page.goto((tmp_path / "slipped.html").as_uri())
    assert page.title().startswith("Is synthetic data worth it?") and sent == []
    assert len(refused) >= 2 and all("Content Security Policy" in line for line in refused)
    context.close()


def serious_findings(page: Page) -> list[tuple[str, str]]:
    """What axe-core finds of serious or critical impact, in folded tables too: the rule, and where first."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page.evaluate("for (const each of document.querySelectorAll('details')) each.open = true")
    found = axe.run(page).response["violations"]
    return [(each["id"], each["nodes"][0]["html"]) for each in found if each["impact"] in SERIOUS]


def sideways(page: Page) -> bool:
    """Whether it has to be scrolled sideways."""
    return page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth")
