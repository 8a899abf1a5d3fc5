"""The page of detections: what it holds, what it must not hold, and what a browser makes of it."""

import base64
import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from test_predict import run

from gfl.detections import Detections
from gfl.drawing import COLORS
from gfl.html_page import LONGEST, html_page, make_picture

NAMES = ("cat", "<b>dog</b>", "</script><script>alert(1)</script>")


def noise(height: int = 60, width: int = 80) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)


def detections(count: int = 3, **changes) -> Detections:
    """Boxes of one size, scores 0.9, 0.8, ...; each left side is 10 or 14, as likely."""
    left = torch.tensor([[18.0, 14.0, 10.0, 6.0]])
    positions = torch.cat([left, left + 1, 58 - left, 59 - left])[None].repeat(count, 1, 1)
    probabilities = torch.tensor([0.0, 0.5, 0.5, 0.0]).repeat(count, 4, 1)
    values = {
        "boxes": (probabilities * positions).sum(-1),
        "scores": 0.9 - 0.1 * torch.arange(count),
        "labels": torch.arange(count) % 3,
        "edge_std": torch.tensor([[2.0, 2.0, 0.25, 2.0]]).repeat(count, 1),
        "distributions": probabilities,
        "edge_positions": positions,
        "names": NAMES,
        **changes,
    }
    return Detections(**values)


def content_of(page: str) -> dict:
    """What the page's script reads: that element's text up to its end tag, as browsers see it."""
    [text] = re.findall(r'<script type="application/json" id="data">(.*?)</script', page, re.S)
    return json.loads(text)


def test_every_detection_is_on_the_page_best_first():
    found = detections()
    content = content_of(html_page([make_picture("a.jpg", noise(), found)], 1))
    [picture] = content["pictures"]
    assert (picture["title"], picture["width"], picture["height"]) == ("a.jpg", 80, 60)
    assert [box["label"] for box in picture["boxes"]] == [0, 1, 2]
    for row, box in enumerate(picture["boxes"]):
        assert box["score"] == pytest.approx(found.scores[row].item(), abs=1e-6)
        assert box["box"] == [12, 13, 46, 47] and box["edge_std"] == [2, 2, 0.25, 2]
        assert box["distributions"] == [[0, 0.5, 0.5, 0]] * 4
        assert box["ends"] == [[18, 6], [19, 7], [40, 52], [40 + 1, 53]]
    kinds = content["classes"]
    assert [kinds[label]["name"] for label in "012"] == list(NAMES)
    assert [tuple(kinds[label]["color"]) for label in "012"] == list(COLORS[:3])


def test_detections_without_distributions_or_names_and_pages_without_pictures():
    found = detections(distributions=None, edge_positions=None, names=())
    content = content_of(html_page([make_picture("a", noise(), found)], 1))
    assert "distributions" not in content["pictures"][0]["boxes"][0]
    assert content["classes"]["1"]["name"] == "1"
    nothing = content_of(html_page([make_picture("a", noise(), detections(0))], 1))
    assert nothing["pictures"][0]["boxes"] == [] and nothing["classes"] == {}
    assert content_of(html_page([], 0))["pictures"] == []


def test_text_of_users_stays_text():
    title = """it's "quoted" & <img src=x onerror=alert(1)> \udcff </SCRIPT>.jpg"""
    page = html_page([make_picture(title, noise(), detections())], 1)
    content = content_of(page)
    assert content["pictures"][0]["title"] == title
    empty = html_page([], 0)
    # None of it adds a tag: the page has those of the template alone.
    assert page.count("<") == empty.count("<") and "<b>" not in page and "<img" not in page


def test_the_page_needs_nothing_from_elsewhere():
    page = html_page([make_picture("a.jpg", noise(), detections())], 1)
    assert page.isascii()
    assert set(re.findall(r"https?://[^\"' ]+", page)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"<link|@import|url\((?!#)|src\s*=|fetch\(|import\(", page)
    assert "default-src 'none'" in page


def test_large_pictures_are_made_smaller_and_their_boxes_are_not():
    image = np.full((400, 3000, 3), (200, 30, 30), np.uint8)
    [picture] = content_of(html_page([make_picture("a", image, detections())], 1))["pictures"]
    kind, text = picture["jpeg"].split(",")
    assert kind == "data:image/jpeg;base64"
    jpeg = cv2.imdecode(np.frombuffer(base64.b64decode(text), np.uint8), cv2.IMREAD_COLOR)
    assert jpeg.shape == (171, LONGEST, 3) and jpeg[50, 50, 2] > 150 > jpeg[50, 50, 0]
    assert (picture["width"], picture["height"]) == (3000, 400)
    assert picture["boxes"][0]["box"] == [12, 13, 46, 47]
    small = make_picture("a", noise(), detections())
    assert cv2.imdecode(np.frombuffer(small.jpeg, np.uint8), 1).shape == (60, 80, 3)


def test_scores_to_start_with():
    known = [make_picture("a", noise(), detections(thresholds=(0.1, 0.45, 0.7)))]
    content = content_of(html_page(known, 1))
    assert content["recommended"] and content["score"] == 0.3
    assert [content["classes"][label]["threshold"] for label in "012"] == [0.1, 0.45, 0.7]
    chosen = content_of(html_page(known, 1, score=0.0))
    assert not chosen["recommended"] and chosen["score"] == 0
    unknown = content_of(html_page([make_picture("a", noise(), detections())], 1))
    assert not unknown["recommended"] and unknown["classes"]["0"]["threshold"] == 0.3


def test_order_limit_and_predictions_that_stay_the_same(
    checkpoint,
    pictures,
    tmp_path,
    capsys,
):
    out, plain = tmp_path / "out", tmp_path / "plain"
    sources = [pictures / "b.png", pictures / "a.png", pictures / "below"]
    assert run(checkpoint, *sources, "--out", plain) == 0
    assert not (plain / "predictions.html").exists()
    assert run(checkpoint, *sources, "--out", out, "--html", "--html-limit", 2) == 0
    assert (out / "predictions.json").read_bytes() == (plain / "predictions.json").read_bytes()
    page = (out / "predictions.html").read_text()
    content, entries = content_of(page), json.loads((out / "predictions.json").read_text())
    assert content["total"] == 3 and len(content["pictures"]) == 2
    for picture, entry in zip(content["pictures"], entries, strict=False):
        assert picture["title"] == entry["source"]
        assert len(picture["boxes"]) == len(entry["detections"]) > 3
        for box, found in zip(picture["boxes"], entry["detections"], strict=True):
            assert box["box"] == pytest.approx(found["box"], abs=1e-3)
            assert content["classes"][str(box["label"])]["name"] == found["class_name"]
    assert run(checkpoint, *sources, "--out", out, "--html", "--html-limit", 2) == 0
    assert (out / "predictions.html").read_text() == page


def test_frames_of_a_video(checkpoint, tmp_path):
    video = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter_fourcc(*"MJPG"), 5.0, (128, 96))
    for _ in range(3):
        writer.write(noise(96, 128))
    writer.release()
    assert run(checkpoint, video, "--out", tmp_path / "out", "--html", "--html-limit", 2) == 0
    content = content_of((tmp_path / "out" / "predictions.html").read_text())
    assert [p["title"] for p in content["pictures"]] == [f"{video}, frame {n}" for n in (0, 1)]
    assert content["total"] == 3 and "ends" in content["pictures"][1]["boxes"][0]


@pytest.mark.parametrize("options", [(), ("--tile", 64)])
def test_the_distributions_of_a_network_lie_around_its_sides(
    options,
    checkpoint,
    pictures,
    tmp_path,
):
    arguments = (pictures / "a.png", "--out", tmp_path, "--html", "--no-pictures", *options)
    assert run(checkpoint, *arguments) == 0
    [picture] = content_of((tmp_path / "predictions.html").read_text())["pictures"]
    inside = 0
    for box in picture["boxes"]:
        for side, value in enumerate(box["box"]):
            probabilities = np.array(box["distributions"][side])
            positions = np.linspace(*box["ends"][side], len(probabilities))
            expected = probabilities @ positions
            limit = picture["width"] if side % 2 == 0 else picture["height"]
            # A piece's border clips as well: sides on it can not be compared.
            if options == () or 1 < value < 63:
                assert value == pytest.approx(np.clip(expected, 0, limit), abs=0.1)
                inside += 0 < expected < limit
    assert inside > 10


# In a browser ------------------------------------------------------------------------------------


def screen(browser, width: int, height: int) -> None:
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def shown(browser) -> list[int]:
    """Rows of the boxes on the page, best first."""
    boxes = browser.find_elements("css selector", ".box")
    return sorted(int(box.get_attribute("data-index")) for box in boxes)


def panel(browser) -> dict[str, str]:
    fields = browser.find_elements("css selector", "#panel [data-field]")
    return {field.get_attribute("data-field"): field.text for field in fields}


def move_slider(browser, score: float) -> None:
    browser.execute_script(
        "const s = document.getElementById('score'); s.value = arguments[0];"
        "s.dispatchEvent(new Event('input'))",
        score,
    )


@pytest.mark.browser
def test_hovering_tells_what_predictions_json_says(
    browser,
    checkpoint,
    pictures,
    tmp_path,
):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    assert run(checkpoint, pictures, "--out", tmp_path, "--html", "--html-limit", 2) == 0
    entries = json.loads((tmp_path / "predictions.json").read_text())
    screen(browser, 1280, 800)
    browser.get((tmp_path / "predictions.html").as_uri())
    assert browser.find_element("id", "note").text == "the first 2 of 3 pictures"

    scores = [found["score"] for found in entries[0]["detections"]]
    cut = round(scores[len(scores) // 2], 2)
    move_slider(browser, cut)
    want = [row for row, score in enumerate(scores) if score >= cut]
    assert shown(browser) == want and 0 < len(want) < len(scores)
    assert f"{len(want)} of {len(scores)} boxes" in browser.find_element("id", "count").text

    # The smallest box lies on top of all others.
    rows = {row: entries[0]["detections"][row] for row in want}
    smallest = min(rows, key=lambda row: area(rows[row]["box"]))
    hit = browser.find_element("css selector", f".box[data-index='{smallest}'] .area")
    ActionChains(browser).move_to_element(hit).perform()
    check_panel(browser, rows[smallest])
    charts = browser.find_elements("css selector", "#panel svg")
    assert len(charts) == 4 and browser.find_elements("css selector", "#detail rect")

    browser.find_element("tag name", "body").send_keys(Keys.ESCAPE)
    assert panel(browser) == {}
    first = browser.find_elements("css selector", ".box")[0]
    browser.execute_script("arguments[0].focus()", first)
    check_panel(browser, rows[int(first.get_attribute("data-index"))])
    browser.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
    move_slider(browser, 0)
    assert len(shown(browser)) == len(entries[1]["detections"])
    assert not browser.find_element("id", "next").is_enabled()

    browser.find_elements("css selector", "#classes input")[0].click()
    left = [entries[1]["detections"][row]["class_name"] for row in shown(browser)]
    assert left and set(left) == {"disc"}
    for width, height in ((1280, 800), (390, 844)):
        screen(browser, width, height)
        assert browser.execute_script("return document.scrollingElement.scrollWidth") <= width
        assert browser.save_screenshot(str(tmp_path / f"{width}.png"))
    assert [entry for entry in browser.get_log("browser")] == []


def area(box: list[float]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def check_panel(browser, found: dict) -> None:
    values = panel(browser)
    assert values.pop("class") == found["class_name"]
    assert float(values.pop("score")) == pytest.approx(found["score"], abs=6e-4)
    for side, name in enumerate(("left", "top", "right", "bottom")):
        assert float(values.pop(name)) == pytest.approx(found["box"][side], abs=0.06)
        deviation = float(values.pop(f"{name}_std"))
        assert deviation == pytest.approx(found["edge_std"][side], abs=0.06)
    assert values == {}


@pytest.mark.browser
def test_names_show_as_themselves_and_recommended_scores_come_first(browser, tmp_path):
    title = """it's "quoted" & <i>.jpg"""
    found = detections(6, thresholds=(0.1, 0.45, 0.75))  # 0.9 0.8 0.7 0.6 0.5 0.4
    page = html_page([make_picture(title, noise(), found)], 1)
    path = Path(tmp_path / "page.html")
    path.write_text(page)
    browser.get(path.as_uri())
    assert browser.find_element("id", "choose").text.strip() == f"1/1 {title}"
    labels = browser.find_elements("css selector", "#classes label")
    assert [label.text for label in labels] == list(NAMES)
    assert shown(browser) == [0, 1, 3, 4]
    texts = [text.text for text in browser.find_elements("css selector", ".box text")]
    assert f"{NAMES[1]} 0.80" in texts and "cat 0.90" in texts
    move_slider(browser, 0.65)
    assert shown(browser) == [0, 1, 2]
    browser.find_element("id", "own").click()
    assert shown(browser) == [0, 1, 3, 4]
    path.write_text(html_page([make_picture(title, noise(), found)], 1, score=0.498))
    browser.refresh()
    assert shown(browser) == [0, 1, 2, 3, 4]
    # Doubtful sides have a band, of one deviation to both sides; the sure one has none.
    bands = browser.find_elements("css selector", ".box[data-index='0'] .band")
    assert len(bands) == 3
    assert [float(bands[0].get_attribute(name)) for name in ("x", "width")] == [10, 4]
    assert browser.get_log("browser") == []


@pytest.mark.browser
def test_a_page_without_pictures_is_no_error(browser, tmp_path):
    (tmp_path / "page.html").write_text(html_page([], 0))
    browser.get((tmp_path / "page.html").as_uri())
    assert shown(browser) == [] and browser.get_log("browser") == []
