"""The page: complete, self-contained, the same each time, and fit for a real browser."""

import json
import os
import re
import subprocess
import sys
from html import escape, unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lilliput.errors import ArtifactError
from lilliput.report import inspect_file, render

SECTIONS = ("headline", "accuracy", "loss", "pareto", "size", "memory", "confusion", "samples", "ledger", "settings")


class Outline(HTMLParser):
    """Collects ids, attributes that fetch, and the text of each identified element's place in the page."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.missing_alt = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if values.get("id"):
            self.ids.append(str(values["id"]))
        self.links += [
            str(values[name]) for name in ("src", "href", "xlink:href", "data", "srcset") if values.get(name)
        ]
        if tag == "img" and not values.get("alt"):
            self.missing_alt += 1
        assert tag not in ("script", "iframe", "object", "embed", "base"), tag


def outline(page: str) -> Outline:
    parser = Outline()
    parser.feed(page)
    return parser


def render_text(records: dict[str, Any], run_dir: Path) -> str:
    return render(records, run_dir).read_text(encoding="utf-8")


def plain(page: str) -> str:
    """The page's words, tags and style left out."""
    body = re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", "", body)).replace("\N{NO-BREAK SPACE}", " ")


def test_every_section_is_there(records: dict[str, Any], run_dir: Path) -> None:
    path = render(records, run_dir)
    assert path == run_dir / "report.html"
    found = outline(path.read_text(encoding="utf-8"))
    assert [name for name in found.ids if name in SECTIONS] == list(SECTIONS)
    assert found.missing_alt == 0


def test_numbers_come_from_records_and_file(records: dict[str, Any], run_dir: Path) -> None:
    text = plain(render_text(records, run_dir))
    size = (run_dir / "model.lil").stat().st_size
    for expected in (
        "94.44 %",  # 34 of 36, measured
        "98.06 %",
        f"{size:,} bytes instead of",
        "50.0 %",  # 568 planted zeros of 1,136 weights
        "568 of 1,136",
        "1,400 parameters",
        "A fast one",
        "lilliput C scalar, 1 thread",
        "abc1234",
        "at least 500 of 1136 weights are zero",
        "✓ holds",
        "0 of 36 predictions differ",
        "0.00123",
        "prune, finetune, quantize, export, evaluate",
        "1 of these 6 is wrong",
    ):
        assert expected in text, expected


def test_simulated_and_measured_are_told_apart(records: dict[str, Any], run_dir: Path) -> None:
    page = render_text(records, run_dir)
    table = page[page.index('id="accuracy"') : page.index('id="loss"')]
    rows = re.findall(r"<tr.*?</tr>", table, re.DOTALL)[1:]
    assert ["simulated" in row for row in rows] == [True] * 4 + [False]
    assert ["measured on model.lil" in row for row in rows] == [False] * 4 + [True]
    assert "94.44" in rows[-1]


def test_wrong_samples_are_marked(records: dict[str, Any], run_dir: Path) -> None:
    page = render_text(records, run_dir)
    items = re.findall(r"<li.*?</li>", page, re.DOTALL)
    assert len(items) == 6
    assert ['class="wrong"' in item for item in items] == [index == 4 for index in range(6)]
    assert "✗ cat</b>, not dog" in items[4]
    assert all("data:image/png;base64," in item for item in items)


def test_a_broken_claim_is_shown(records: dict[str, Any], run_dir: Path) -> None:
    records["stages"][3]["ledger"][0] = {**records["stages"][3]["ledger"][0], "holds": False}
    page = render_text(records, run_dir)
    ledger = page[page.index('id="ledger"') :]
    assert "✗ broken" in ledger
    assert "quantize ✗" in ledger
    assert ledger.count("✓ holds") == 1


def test_a_file_that_grew_is_said_to_be_larger(records: dict[str, Any], run_dir: Path) -> None:
    # So small a model takes 5,516 bytes in fp32, and the tables of its file alone a third of that.
    contents = inspect_file(run_dir / "model.lil")
    records["model"]["fp32_bytes"] = contents["fp32_bytes"]
    assert contents["file_bytes"] > contents["fp32_bytes"]
    assert "larger" in plain(render_text(records, run_dir))


def test_a_shrunk_model_is_compared_with_the_one_that_was_trained(records: dict[str, Any], run_dir: Path) -> None:
    size = inspect_file(run_dir / "model.lil")["file_bytes"]
    records["model"]["fp32_bytes"] = 5 * size
    page = plain(render_text(records, run_dir))
    assert "5.0" in page and "smaller" in page and f"instead of {5 * size:,}" in page


def test_names_are_escaped(records: dict[str, Any], run_dir: Path) -> None:
    records["title"] = "<script>alert(1)</script>"
    page = render_text(records, run_dir)
    outline(page)
    assert "&lt;script&gt;alert(1)" in page
    assert "<b>owl</b>" not in page


def test_nothing_is_fetched(records: dict[str, Any], run_dir: Path) -> None:
    page = render_text(records, run_dir)
    for link in outline(page).links:
        assert link.startswith(("#", "data:")), link
    for target in re.findall(r"url\(\s*['\"]?([^)'\"]*)", page):
        assert target.startswith(("#", "data:")), target
    assert "@import" not in page


def test_the_same_run_gives_the_same_page(records: dict[str, Any], run_dir: Path) -> None:
    first = render(records, run_dir).read_bytes()
    code = (
        "import json, pathlib, sys; from lilliput.report import render; folder = pathlib.Path(sys.argv[1]);"
        "render(json.loads((folder / 'records.json').read_text()), folder)"
    )
    environment = os.environ | {"PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo", "SOURCE_DATE_EPOCH": "1"}
    subprocess.run([sys.executable, "-c", code, str(run_dir)], env=environment, check=True)
    assert (run_dir / "report.html").read_bytes() == first


def test_settings_of_stages_that_did_not_run_are_left_out(records: dict[str, Any], run_dir: Path) -> None:
    records["recipe"]["stages"].remove("prune")
    page = render_text(records, run_dir)
    settings = page[page.index('id="settings"') :]
    assert "<dt>epochs</dt><dd>12</dd>" in settings
    assert "<dt>stem</dt><dd>channels=32 stride=2</dd>" in settings
    assert "<dt>layers</dt><dd>none</dd>" in settings
    assert "<h3>prune</h3>" not in settings


def test_a_run_of_fewer_stages_without_samples_or_claims(records: dict[str, Any], run_dir: Path) -> None:
    records["stages"] = [stage for stage in records["stages"] if stage["stage"] not in ("prune", "finetune")]
    for stage in records["stages"]:
        stage["ledger"] = []
    records["stages"][-1]["samples"] = []
    records["stages"][-1]["confusion"] = [[12, 0, 0], [0, 12, 0], [0, 0, 12]]
    text = plain(render_text(records, run_dir))
    assert "This run kept no samples" in text
    assert "No pass of this run promised anything" in text
    assert "No image was mistaken" in text


def test_many_classes_become_a_picture(records: dict[str, Any], run_dir: Path) -> None:
    classes = 30
    records["data"]["classes"] = [f"class {index}" for index in range(classes)]
    confusion = [[5 if row == column else 0 for column in range(classes)] for row in range(classes)]
    confusion[7][9] = 2
    records["stages"][-1]["confusion"] = confusion
    page = render_text(records, run_dir)
    section = page[page.index('id="confusion"') : page.index('id="samples"')]
    assert 'class="matrix-picture"' in section
    assert "2 of 7" in plain(section)


def test_an_incomplete_run_is_refused(records: dict[str, Any], run_dir: Path) -> None:
    (run_dir / "model.lil").unlink()
    with pytest.raises(ArtifactError, match=r"model\.lil"):
        render(records, run_dir)
    assert not (run_dir / "report.html").exists()


PROBE = """
<script>
const SECTIONS = NAMES;
const wide = [...document.querySelectorAll('main *')].filter(e => e.getBoundingClientRect().right > innerWidth + 1
  && !e.closest('.scroll')).map(e => e.tagName + '.' + (e.className.baseVal ?? e.className));
const broken = [...document.images].filter(image => !(image.complete && image.naturalWidth)).length;
const letters = [...document.querySelectorAll('svg text')].map(t => t.getBoundingClientRect().height);
parent.document.body.dataset.probe = JSON.stringify({
  width: innerWidth, wide, broken, images: document.images.length, smallest: Math.min(...letters),
  fetched: performance.getEntriesByType('resource').map(e => e.name).filter(name => !name.startsWith('data:')),
  sections: [...document.querySelectorAll('[id]')].map(e => e.id).filter(id => SECTIONS.includes(id)),
  figures: document.querySelectorAll('svg[role=img] > title').length,
  paper: getComputedStyle(document.body).backgroundColor, ink: getComputedStyle(document.querySelector('h1')).color,
});
</script>
"""


def console_messages(log: str) -> list[str]:
    return [line for line in log.splitlines() if "CONSOLE" in line or "ERR_" in line]


@pytest.mark.parametrize(("width", "scheme"), [(1280, 1), (400, 0)])
def test_a_real_browser_shows_it(records: dict[str, Any], run_dir: Path, browser: Any, width: int, scheme: int) -> None:
    path = render(records, run_dir)
    page = path.read_text(encoding="utf-8").replace("</body>", PROBE.replace("NAMES", json.dumps(SECTIONS)) + "</body>")
    framed = run_dir / "framed.html"  # a frame, because a window is never narrower than 500 pixels
    frame = f'<iframe style="width: {width}px; height: 900px; border: 0" srcdoc="{escape(page)}"></iframe>'
    framed.write_text(f'<html style="color-scheme: light dark"><meta charset="utf-8"><body>{frame}</body></html>')
    color_scheme = f"--blink-settings=preferredColorScheme={scheme}"
    result = browser(framed, "--dump-dom", "--window-size=1400,1000", color_scheme)
    assert console_messages(result.stderr) == []
    match = re.search(r'data-probe="([^"]*)"', result.stdout)
    assert match is not None
    probe = json.loads(unescape(match[1]))
    assert probe["width"] == width
    assert probe["wide"] == []
    assert (probe["images"], probe["broken"], probe["fetched"]) == (6, 0, [])
    assert probe["smallest"] >= 9  # pixels, of the smallest text in a plot
    dark = sum(map(int, re.findall(r"\d+", probe["paper"])[:3])) < 3 * 64
    assert dark == (scheme == 0)
    assert probe["paper"] != probe["ink"]
    assert probe["sections"] == list(SECTIONS)
    assert probe["figures"] == 4


def test_a_real_browser_paints_it(records: dict[str, Any], run_dir: Path, browser: Any, tmp_path: Path) -> None:
    picture = tmp_path / "page.png"
    browser(render(records, run_dir), "--window-size=1280,1200", f"--screenshot={picture}", "--hide-scrollbars")
    with Image.open(picture) as image:
        assert image.size == (1280, 1200)
        colors = image.convert("RGB").getcolors(1 << 24)
    assert colors is not None
    assert len(colors) > 50  # letters, dots and lines, not a blank sheet
