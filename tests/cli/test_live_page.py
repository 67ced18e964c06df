"""The live page in a real browser: started as a user starts it, its slider moved, the new number read."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request

import pytest

_SECONDS = 300  # at the most, for what takes two where nothing else runs
ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Of the running page; afterwards Ctrl-C ends it, and it leaves no file behind."""
    pytest.importorskip("gradio", reason="the live page is made with gradio")
    for name in ("pandas", "sklearn"):
        pytest.importorskip(name, reason=f"its tables need {name}")
    temporary = tmp_path_factory.mktemp("temporary")
    environment = {**os.environ, "TMPDIR": str(temporary), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "accel", "demo", "--serve", "--port", "0"]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as page:
        try:
            yield page.stdout.readline().split()[1]
        finally:
            page.send_signal(signal.SIGINT)
    assert page.returncode == 0
    assert list(temporary.glob("accel_live_*")) == []


@pytest.fixture
def browser():
    pytest.importorskip("selenium", reason="selenium drives the browser")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    chromium, driver = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("needs chromium and chromedriver on the PATH")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1280,1000"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    chrome = webdriver.Chrome(options=options, service=Service(driver))
    yield chrome
    chrome.quit()


def found(browser, selector):
    from selenium.webdriver.common.by import By

    return browser.find_elements(By.CSS_SELECTOR, selector)


def tiles(browser, starts):
    """The numbers of the page, once the first one starts like that."""
    from selenium.common.exceptions import StaleElementReferenceException
    from selenium.webdriver.support.ui import WebDriverWait

    def read(_):
        texts = [tile.text for tile in found(browser, "#numbers .numbers b")]
        return texts if texts and texts[0].startswith(starts) else False

    return WebDriverWait(browser, _SECONDS, ignored_exceptions=[StaleElementReferenceException]).until(read)


def test_the_slider_moves_the_numbers(browser, address):
    from selenium.webdriver.common.keys import Keys

    browser.get(address)
    half = tiles(browser, "50 %")
    before = found(browser, "#painted img")[0].get_attribute("src")
    slider = found(browser, "#keep input[type=range]")[0]
    for _ in range(5):  # of 0.05 each
        slider.send_keys(Keys.ARROW_LEFT)
    quarter = tiles(browser, "25 %")
    assert len(half) == len(quarter) == 4 and half != quarter
    assert all(float(texts[1].removesuffix(" ms")) > 0 for texts in (half, quarter))
    assert found(browser, "#painted img")[0].get_attribute("src") != before
    assert len(found(browser, "#compared img")) == 2

    sent = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [event["params"]["request"]["url"] for event in sent if event["method"] == "Network.requestWillBeSent"]
    assert urls and [url for url in urls if not url.startswith((f"{address}/", "data:", "blob:"))] == []


def test_what_is_no_picture_is_refused_in_its_place(browser, address, tmp_path):
    from selenium.webdriver.support.ui import WebDriverWait

    browser.get(address)
    tiles(browser, "50 %")
    (tmp_path / "letter.png").write_text("dear all")
    browser.execute_script("arguments[0].click()", found(browser, "button[aria-label='Remove Image']")[0])
    wait = WebDriverWait(browser, _SECONDS)
    wait.until(lambda _: "No picture yet" in found(browser, "#numbers")[0].text)
    found(browser, "input[type=file]")[0].send_keys(str(tmp_path / "letter.png"))
    wait.until(lambda _: "cannot read the picture letter.png" in found(browser, "#numbers")[0].text)
    assert found(browser, "#painted img") == []


def test_only_this_machine_is_served(address):
    with urllib.request.urlopen(address) as answer:
        assert "default-src 'self'" in answer.headers["content-security-policy"]
    elsewhere = urllib.request.Request(address, headers={"Host": "example.org"})
    with pytest.raises(urllib.error.HTTPError, match="400"):
        urllib.request.urlopen(elsewhere)


def test_a_port_that_is_taken_is_said(address):
    from accel.cli.live_page import served
    from accel.errors import ConfigError

    with pytest.raises(ConfigError, match=r"^cannot listen on port \d+ \(.*give another with --port"):
        served(int(address.rpartition(":")[2])).__enter__()
    with pytest.raises(ConfigError, match="cannot listen on port 70000"):
        served(70000).__enter__()
