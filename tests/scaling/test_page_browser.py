"""A page in headless Chromium: it renders, answers to mouse and keys, and asks no network."""

import json
import shutil

import pytest

from rlx.scaling import page
from tests.scaling.paged import NASTY, study

pytestmark = pytest.mark.browser
webdriver = pytest.importorskip("selenium.webdriver", reason="pip install -e '.[browser]'")
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.wait import WebDriverWait  # noqa: E402

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = (
    *("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run"),
    *("disable-background-networking", "disable-component-update", "disable-sync"),
)
LOCAL = ("file:", "data:", "about:", "chrome:", "chrome-extension:", "devtools:")


@pytest.fixture(scope="module")
def browser():
    if not CHROMIUM or not DRIVER:
        pytest.skip("no chromium or chromedriver: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in FLAGS:
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def blob():
    fit, data, windows = study(NASTY, title="a study")
    last = data.frame["compute"].tolist()
    axes = {"training step": [10 * C for C in last], "wall-clock time (s)": [C**0.5 for C in last]}
    configs = {run: {"lr": i, "env.name": "digits"} for i, run in enumerate(fit.runs)}
    return page.page_data(fit, data, windows, axes=axes, configs=configs)


@pytest.fixture(scope="module")
def file(blob, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    page.write_page(blob, path)
    return path


@pytest.fixture
def shown(browser, file):
    """The page, wide and light, and afterwards no error in the console and no request."""
    seen(browser)
    screen(browser, 1200)
    browser.get(file.as_uri())
    yield browser
    assert browser.get_log("browser") == []
    assert [url for url in seen(browser) if not url.startswith(LOCAL)] == []


def seen(browser):
    """Addresses requested since the last call."""
    logged = [json.loads(x["message"])["message"] for x in browser.get_log("performance")]
    sent = [x["params"] for x in logged if x["method"] == "Network.requestWillBeSent"]
    return [params["request"]["url"] for params in sent]


def screen(browser, width, scheme="light"):
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    dark = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": dark})


def text(browser, name):
    return browser.find_element(By.ID, name).text


def picture(browser):
    """What the chart's canvas holds."""
    return browser.execute_script("return document.querySelector('#chart canvas').toDataURL()")


def keys(browser, name, *pressed):
    browser.find_element(By.ID, name).send_keys(*pressed)


def test_it_renders(shown, blob):
    assert shown.title == text(shown, "title") == "a study"
    assert "3 runs of 2 recipes" in text(shown, "summary")
    page_text = shown.find_element(By.TAG_NAME, "main").text
    for row in blob["ceilings"]:
        assert f"{row['q50']:.3f} [{row['q05']:.3f}, {row['q95']:.3f}]" in page_text
    for problem in blob["check"]["problems"]:
        assert problem in page_text
    sections = [x.text for x in shown.find_elements(By.CSS_SELECTOR, "nav a")]
    assert sections[:3] == ["Curves", "Ceilings", "Efficiency"] and len(sections) == 8
    canvas = shown.find_element(By.CSS_SELECTOR, "#chart canvas")
    assert canvas.size["width"] > 800 and len(picture(shown)) > 10_000
    rows = shown.find_elements(By.CSS_SELECTOR, "#runs-table tbody tr")
    assert len(rows) == 3


def test_a_name_with_a_script_is_text(shown):
    assert shown.execute_script("return window.pwned") is None
    cell = shown.find_element(By.CSS_SELECTOR, "#runs-table tbody td")
    assert cell.get_attribute("textContent") == NASTY


def test_hovering_reads_values(shown, blob):
    over = shown.find_element(By.CSS_SELECTOR, "#chart .u-over")
    ActionChains(shown).move_to_element(over).perform()
    words = text(shown, "readout")
    assert "training compute C" in words and "curve 0." in words and "Brackets hold 90 %" in words
    tip = shown.find_element(By.ID, "tip")
    assert tip.is_displayed() and "new evaluation" in tip.text
    ActionChains(shown).move_to_element_with_offset(over, 150, 0).perform()
    assert text(shown, "readout") != words


def test_arrow_keys_read_values(shown):
    keys(shown, "chart", Keys.ARROW_RIGHT)
    first = text(shown, "readout")
    keys(shown, "chart", Keys.ARROW_RIGHT)
    second = text(shown, "readout")
    assert "curve 0." in first and first != second
    assert first.partition(": ")[0] == second.partition(": ")[0]  # the same curve
    keys(shown, "chart", Keys.ARROW_DOWN)
    assert text(shown, "readout").partition(": ")[0] != first.partition(": ")[0]
    keys(shown, "chart", Keys.ESCAPE)
    assert "arrow keys" in text(shown, "readout")


def test_the_window_moves_by_key_and_by_mouse(shown, blob):
    assert text(shown, "share") == "50 %" and "the rest of the page" in text(shown, "score")
    before = picture(shown)
    keys(shown, "window", Keys.ARROW_LEFT)
    assert text(shown, "share") == "25 %"
    early = blob["windows"][0]
    assert f"Of {early['later']} later evaluations {early['inside']} (" in text(shown, "score")
    assert picture(shown) != before
    slider = shown.find_element(By.ID, "window")
    there = slider.size["width"] // 2
    drag = ActionChains(shown).move_to_element_with_offset(slider, 8 - there, 0)
    drag.click_and_hold().move_by_offset(2 * there - 16, 0).release().perform()
    assert text(shown, "share") == "50 %" and picture(shown) == before
    said = slider.get_attribute("aria-valuetext")
    assert said.startswith("50 % of compute")


@pytest.mark.parametrize(
    ("slider", "value"), [("target", "target-value"), ("spend", "spend-value")]
)
def test_other_sliders(shown, slider, value):
    before = text(shown, value)
    keys(shown, slider, Keys.ARROW_LEFT)
    assert text(shown, value) != before
    assert shown.find_element(By.ID, slider).get_attribute("aria-valuetext")


def test_axes_and_scales(shown):
    pictures = [picture(shown)]
    for label in ("training step", "wall-clock time (s)"):
        keys(shown, "axis", Keys.ARROW_DOWN)
        pictures.append(picture(shown))
        assert f"drawn against {label}" in text(shown, "axis-note")
    for selector in ("input[value=linear]", "input[value=recipe]", "#new", "#ahead"):
        shown.find_element(By.CSS_SELECTOR, selector).click()
        pictures.append(picture(shown))
    assert len(set(pictures)) == len(pictures)


def test_recipes_are_shown_and_hidden(shown):
    before = picture(shown)
    boxes = shown.find_elements(By.CSS_SELECTOR, "#recipes input")
    assert len(boxes) == 2
    boxes[0].send_keys(Keys.SPACE)
    assert picture(shown) != before
    none = shown.find_elements(By.CSS_SELECTOR, "#recipes button")[1]
    none.click()
    assert text(shown, "readout") == "No recipe is chosen."
    shown.find_elements(By.CSS_SELECTOR, "#recipes button")[0].click()
    assert picture(shown) == before


def test_every_control_is_reached_by_tab_and_has_a_name(shown):
    names, reached = [], []
    for _ in range(60):
        ActionChains(shown).send_keys(Keys.TAB).perform()
        at = shown.switch_to.active_element
        names.append(at.accessible_name)
        reached.append(at.get_attribute("id"))
    order = [x for x in reached if x in ("window", "axis", "new", "reset", "chart", "target")]
    assert order[:6] == ["window", "axis", "new", "reset", "chart", "target"]
    assert all(names[: reached.index("target") + 1])


def test_dark_mode(shown):
    def colours():
        style = "getComputedStyle(document.body)"
        return shown.execute_script(f"return [{style}.backgroundColor, {style}.color]")

    light, before = colours(), picture(shown)
    screen(shown, 1200, "dark")
    assert light[0] == "rgb(255, 255, 255)" and colours()[0] == "rgb(21, 24, 28)"
    WebDriverWait(shown, 10).until(lambda driver: picture(driver) != before)


@pytest.mark.parametrize("width", [360, 1200])
def test_no_horizontal_scrolling(shown, width):
    screen(shown, width)
    shown.refresh()
    wide = shown.execute_script("return document.documentElement.scrollWidth")
    assert wide <= width
    canvas = shown.find_element(By.CSS_SELECTOR, "#chart canvas")
    assert 0.8 * width < canvas.size["width"] <= width


def test_tables_are_sorted_by_their_heads(shown):
    def column():
        cells = shown.find_elements(By.CSS_SELECTOR, "#runs-table tbody td:nth-child(10)")
        return [float(cell.text) for cell in cells]

    head = shown.find_element(By.CSS_SELECTOR, "#runs-table th:nth-child(10) button")
    head.send_keys(Keys.ENTER)
    up = column()
    head.send_keys(Keys.ENTER)
    assert up == sorted(up) and column() == up[::-1] and up[0] < up[-1]
