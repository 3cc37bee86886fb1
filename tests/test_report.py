"""The report: its pieces on made-up files, a page of two tiny experiments, and a page in a real browser."""

import base64
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
from PIL import Image

from scripts import report, report_page, report_pictures, report_sources
from utils import CommandError, write_json

EXPERIMENT = "digits_2d_0.1mmd_4steps_4unet_4enc"
MADE = {}  # words -> a checkpoint's path and content: making one takes longer than any of the fast tests
NASTY = "<script>alert(1)</script> $title ${x} & \"quoted\""


def made(words="", **results):
    """A tiny checkpoint, a log, and result files by name; the experiment as the report reads it."""
    if words not in MADE:
        path = tiny.checkpoint(f"--model diff --dataset digits {words}")
        MADE[words] = path, path.read_bytes()
    path, content = MADE[words]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    name = path.parent.name
    log = Path("logs", name, "metrics.jsonl")
    log.parent.mkdir(parents=True)
    line = {"epoch": 1, "step": 9, "unit": "mean squared error", "train": {"loss": 0.5, "denoise": 0.4},
            "val": {"loss": 0.6, "denoise": 0.5}, "val_se": {"loss": 0.01, "denoise": 0.02}}
    log.write_text("".join(json.dumps({**line, "epoch": epoch}) + "\n" for epoch in (1, 2)) + '{"epoch": 3, "tr')
    for file, record in results.items():
        write_json(Path("results", name, f"{file}.json"), record)
    return name


def read(name):
    return report_sources.read(name, report_sources.Roots(Path("models")))


def pictures(one, dimensions=(0, 1)):
    """Made-up pictures, as report_pictures draws them."""
    from scripts.report_pictures import Codes, Traversal

    rng = np.random.default_rng(0)
    some = rng.integers(0, 256, (4, 8, 8, 1), dtype=np.uint8)
    frames = rng.integers(0, 256, (len(dimensions), 2, 11, 8, 8, 1), dtype=np.uint8)
    one.parameters = 1234
    one.pictures = {
        "samples": (some, {"seed": 0, "sampler": "dpmpp", "steps": 4}),
        "reconstructions": {"image": some, "from inferred x_T": some, "from random x_T (1)": some},
        "paths": [some],
        "codes": Codes(rng.normal(size=(4, 2)), 0.9, some, np.array([[0], [1], [0], [2]]), (NASTY,), [(NASTY,) * 3]),
        "traversal": Traversal(np.array(dimensions), rng.normal(size=(len(dimensions), 11)), frames,
                               ("inferred", "random"), np.array([3, 4]), np.full((len(dimensions), 2), 0.1)),
    }
    return one


def page_of(*names):
    return report.render([pictures(one) for one in report_sources.named_apart([read(name) for name in names])])


FAILED = {"bracket_nats": None, "over_tau": None, "tau": None,
          "per_dimension_nats": [{"interval": [0.3, 1.7]}, {"interval": [0.8, 2.2]}],
          "checks": [{"name": NASTY, "passed": False, "detail": "6.4 against 5.1"},
                     {"name": "fine", "passed": True, "detail": ""}]}


def test_everything_from_files_is_escaped(in_tmp):
    name = made(mutual_info={**FAILED, NASTY: 1.0}, other={NASTY: 2.0, f"{NASTY}_se": 0.5})
    text = page_of(name)
    assert "<script>alert" not in text and text.count("<script") == 2  # the data and the program
    assert "&lt;script&gt;alert(1)&lt;/script&gt; $title ${x}" in text
    data = re.search(r'id="data">(.*?)</script>', text, re.S)[1]
    assert json.loads(data)["latents"][0]["names"] == [NASTY]


def test_a_page_asks_for_nothing_outside_itself(in_tmp):
    text = page_of(made())
    assert not re.search(r'(src|href)="(?!data:|#)', text) and "http" not in text.replace("http-equiv", "")
    assert "default-src 'none'" in text


def test_what_is_missing_is_a_line_with_its_command(in_tmp):
    name = made("--z_dropout 0.1")
    shutil.rmtree("logs")
    text = page_of(name)
    for mode in ("train", "latent_quality", "mutual_info", "nll", "train_latent_ddim"):
        assert f"python run.py --mode {mode} " in text
    assert f"python train_classifier.py --from models/{name}<" in text and "--z_dropout 0.1" in text


def test_a_failed_check_is_marked_and_a_passed_one_is_not(in_tmp):
    text = page_of(made(mutual_info=FAILED))
    failed = re.findall(r'<div class="note failed">(.*?)</div>', text)
    assert len(failed) == 2 and all("6.4 against 5.1" in line for line in failed)  # on top, and beside its numbers
    assert '<span class="passed">passed</span> fine' in text


def test_dimensions_come_with_their_information_the_largest_first(in_tmp):
    text = page_of(made(mutual_info=FAILED))
    assert re.findall(r"<label><span>(z\d)</span>", text) == ["z1", "z0"]
    assert "0.80 .. 2.20 nats" in text and "0.30 .. 1.70 nats" in text


def test_numbers_of_another_checkpoint_are_told_apart(in_tmp):
    name = made()
    path = Path("results", name, "other.json")
    write_json(path, {"checkpoint_hash": read(name).hash, "mse": 0.5, "mse_se": 0.25})
    text = page_of(name)
    assert "another checkpoint" not in text and '0.50 <span class="pm">± 0.25</span>' in text
    write_json(path, {"checkpoint_hash": "0" * 16, "mse": 0.5, "mse_se": 0.25})
    assert "another checkpoint" in page_of(name)


def test_a_broken_result_file_is_named(in_tmp):
    name = made(nll={"entries": [{"kind": "odd"}]})
    Path("results", name, "fid.json").write_text("{")
    text = page_of(name)
    assert "fid.json is not a readable JSON file" in text and "nll.json" in text


def test_two_experiments_show_what_differs_first(in_tmp):
    quality = {key: 1.0 for part in ("mse", "psnr", "ssim") for key in (part, f"{part}_se")}
    first = made(latent_quality={"inferred": quality, "random": {**quality, "draws": 2}, "images": 7})
    second = made("--learning_rate 1e-3 --tag other")
    text = page_of(first, f"models/{second}", first)
    assert text.count('id="traversal0"') == text.count('id="traversal1"') == 1 and 'id="traversal2"' not in text
    differ = text[text.index("Differ between") : text.index("Differ from")]
    assert re.findall(r"<code>--(\w+)", differ) == ["tag", "learning_rate"]
    assert "--a_dim" in text[text.index("Differ from") :]
    assert "7, 2 draws" in text


def test_a_result_is_repeated_by_its_call(in_tmp):
    name = made()
    one = read(name)
    record = {"checkpoint": f"models/{name}/model-1.pth", "config": {},
              "call": {"mode": "latent_quality", "sampling_number": 3, "r_seed": 0, "sample_steps": 4}}
    (line,) = report_sources.commands("latent_quality.json", record, one)
    assert line.startswith(f"python run.py --mode latent_quality --from models/{name} ")
    assert line.endswith("--sampling_number 3 --sample_steps 4 --epochs 1")
    call = {"name": "digits", "folder": "imgs/a b", "split": "test", "extrapolate": True, "nearest": None}
    assert report_sources.commands("fid.json", {"x": {"call": call}}, one) == [
        "python calc_fid.py digits 'imgs/a b' --split test --extrapolate"]


def test_charts_leave_out_what_is_no_number_and_mark_round_values():
    series = [report_page.Series("a", [1, 2, 3], [0.5, float("nan"), None]), report_page.Series("b", [1, 2], [1, 300])]
    drawn = report_page.chart("t<1", series, "epoch")
    assert drawn.count("<circle") == 3 and "nan" not in drawn and "t&lt;1" in drawn
    assert report_page.chart("empty", [report_page.Series("a", [1], [None])], "epoch") == ""
    assert report_page.scale(0.1, 0.73, False, 0, 100).ticks == pytest.approx([0.2, 0.4, 0.6])
    assert report_page.scale(1, 1000, True, 0, 100).ticks == pytest.approx([1, 10, 100, 1000])
    for ends in ((1, 1), (1, 3)):  # epochs
        assert report_page.scale(*ends, False, 0, 100, 0, whole=True).ticks == list(range(ends[0], ends[1] + 1))


def test_a_chart_has_room_for_its_bands():
    svg = report_page.chart("loss", [report_page.Series("a", [1, 2], [1.0, 1.1], se=[3.0, 0.1])], "epoch")
    (band,) = re.findall(r'<polygon points="([^"]+)"', svg)
    heights = [float(point.split(",")[1]) for point in band.split()]
    assert len(set(heights)) == 4
    assert min(heights) >= report_page.TOP and max(heights) <= report_page.HEIGHT - report_page.BOTTOM


def test_the_headline_is_of_this_checkpoint_alone(in_tmp):
    """Fault: numbers of another checkpoint stood in the headline, and a loss in nats was called a noise error."""
    name = made(classification={"inputs": {"z": {"measure": "accuracy", "classifier": "logistic", "mean": 0.75}}},
                mutual_info={**FAILED, "bracket_nats": {"interval": [1.0, 2.0]}})
    one = read(name)
    names = ["accuracy of classes from z, logistic", "I(x; z) in nats, from .. to",
             "held-out noise error, mean squared error"]
    assert [name for name, _ in report.headline(one)] == names
    one.log[-1] |= {"unit": "nats"}
    for file in ("classification.json", "mutual_info.json"):
        one.results[file]["checkpoint_hash"] = "0" * 16
    assert [name for name, _ in report.headline(one)] == ["held-out denoising loss, nats"]
    assert report.per_dimension(one) is None
    one.log[-1] |= {"step": one.step + 1, "val": {"denoise": 7.0}}  # trained on since
    assert report.headline(one) == [(names[-1], report_page.measured(0.5, 0.02))]


def test_samples_and_held_out_points_are_drawn_on_one_scale(in_tmp):
    """Fault: each had a scale of its own, so that samples far beyond the data looked like the data."""
    one = read(made())
    points = np.array([[0.0, 0.0], [2.0, 1.0], [1.0, 1.0], [0.5, 0.5]])
    drawn = np.concatenate([points[:3], [[-90.0, 140.0]]])
    one.pictures = {"samples": (drawn, {"seed": 0, "sampler": "dpmpp", "steps": 4}), "data": points}
    text = report.samples(one)
    panels = re.findall(r"<svg.*?</svg>", text)
    samples, held_out = (re.findall(r'cx="(.*?)" cy="(.*?)"', panel) for panel in panels)
    assert samples == held_out[:3] and len(held_out) == 4
    for panel in panels:
        assert re.findall(r"<text.*?>(.*?)</text>", panel) == ["−0.2", "2.2", "−0.7", "1.7"]
    assert "samples, 25.0% of them beyond the edges" in text and text.count("beyond") == 2  # and for a screen reader


def test_without_its_data_a_page_says_so(in_tmp, monkeypatch, capsys):
    def absent(*_):
        raise CommandError("no data in ./data <here>")

    monkeypatch.setattr(report_pictures, "Held", absent)
    monkeypatch.setattr(report_pictures, "samples", absent)
    assert report.main([made()]) == 0
    text = Path("report.html").read_text()
    for part in ("Samples", "Reconstructions", "Interpolations", "The traversal", "The codes"):
        assert f"{part} could not be drawn: no data in ./data &lt;here&gt;" in text
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 5 and all(line.endswith("could not be drawn: no data in ./data <here>") for line in said)


@pytest.mark.parametrize("words, said", [
    (["nothing"], f"no checkpoint in nothing or models/nothing (there: {EXPERIMENT})"),
    ([f"{EXPERIMENT[:-1]}"], f"did you mean {EXPERIMENT}?"),
    ([EXPERIMENT, "--output", "models"], "models"),
    ([EXPERIMENT, "--sample_steps", "1"], "--sample_steps"),
])
def test_mistakes_are_one_line(in_tmp, capsys, words, said):
    made()
    assert report.main(words) == 2
    assert said in capsys.readouterr().err and not Path("report.html").exists()


def test_a_latent_diffusion_is_no_experiment(in_tmp):
    with pytest.raises(CommandError, match="cannot be read"):
        Path("broken.pth").write_bytes(b"PK")
        read("broken.pth")


@pytest.mark.slow
@pytest.mark.parametrize("words, sections", [
    ("--model diff --dataset digits", {"traversal", "samples", "reconstructions", "interpolation", "latents"}),
    ("--model vae --dataset digits --kld_weight 1 --mmd_weight 0",
     {"traversal", "samples", "reconstructions", "interpolation", "latents"}),
    ("--model vanilla --dataset digits", {"samples", "reconstructions", "interpolation"}),
    ("--model diff --dataset moons", {"samples", "latents"}),
    ("--model diff --dataset mvn", {"samples"}),
])
def test_every_kind_of_model_has_a_page(in_tmp, words, sections):
    path = tiny.checkpoint(words)
    assert report.main([str(path.parent), "--sample_steps", "2", "--output", "p/page.html"]) == 0
    found = re.findall(r'<section id="(\w+)"', Path("p/page.html").read_text())
    assert set(found) - {"config", "results", "curves"} == sections


@pytest.mark.slow
def test_a_page_in_a_browser(in_tmp):
    """Sliders move the picture, the keys work, nothing is asked of a network, and 400 pixels are wide enough."""
    browser = chromium(in_tmp)
    try:
        made(mutual_info=FAILED)
        assert report.main([f"models/{EXPERIMENT}", "--sample_steps", "4"]) == 0
        browser.get("about:blank")
        browser.get_log("performance")  # of the browser's own first tab
        for width in (1280, 400):
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride",
                                    {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False})
            browser.get(Path("report.html").absolute().as_uri())
            look_at(browser)
            assert browser.execute_script("return document.documentElement.scrollWidth <= "
                                          "document.documentElement.clientWidth"), width
        asked = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
        asked = [one["params"]["request"]["url"] for one in asked if one["method"] == "Network.requestWillBeSent"]
        assert {url for url in asked if not url.startswith("data:")} == {Path("report.html").absolute().as_uri()}
        assert browser.get_log("browser") == []
    finally:
        browser.quit()


def chromium(folder):
    """A headless Chromium of the system's, driven by selenium; the test is skipped where either is absent."""
    webdriver = pytest.importorskip("selenium.webdriver")
    from selenium.webdriver.chrome.service import Service

    binary, driver = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if not (binary and driver):
        pytest.skip("no Chromium and chromedriver here")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for word in ("headless", "no-sandbox", "disable-gpu", "disable-background-networking", "no-first-run",
                 "disable-component-update", "disable-sync", f"user-data-dir={folder / 'profile'}"):
        options.add_argument(f"--{word}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    return webdriver.Chrome(options=options, service=Service(driver))


def look_at(browser):
    """Move a slider by key, all of them at once, go through the latents by key, and see each picture change."""
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import WebDriverWait

    def pixels(selector):
        return browser.execute_script("return document.querySelector(arguments[0]).toDataURL()", selector)

    def find(selector):
        return browser.find_element(By.CSS_SELECTOR, selector)

    wait = WebDriverWait(browser, 30)
    wait.until(lambda _: find(".card output").text)
    wait.until(lambda _: find(".words").text)
    picture, slider = ".card .pictures canvas:last-child", find(".card input")
    before, value = pixels(picture), find(".card output").text
    slider.send_keys(Keys.HOME)
    low = pixels(picture)
    slider.send_keys(Keys.END)
    assert len({before, low, pixels(picture)}) >= 2 and low != pixels(picture)
    assert find(".card output").text != value or slider.get_attribute("value") == slider.get_attribute("max")
    find(".all input").send_keys(Keys.HOME)
    assert pixels(picture) == low
    find(".all button").click()
    assert pixels(picture) == before and find(".card output").text == value
    thumbnail, words = pixels(".shown canvas"), find(".words").text
    find("svg.plane").send_keys(Keys.ARROW_RIGHT)
    assert find(".words").text != words and pixels(".shown canvas") != thumbnail
    size = browser.execute_script("return [...document.images].every((image) => image.naturalWidth > 0)")
    assert size


def test_pictures_of_strips_keep_their_order(in_tmp):
    tiles = np.stack([np.full((8, 8, 3), value, np.uint8) for value in (0, 100, 200)])
    markup = report_page.strip(tiles, 2, NASTY, shown=16, gap=2)
    assert 'width="34" height="34"' in markup and "<script" not in markup
    content = base64.b64decode(re.search(r"base64,([^\"]+)", markup)[1])
    picture = np.asarray(Image.open(io.BytesIO(content)))
    assert picture[8, 8].tolist() == [0, 0, 0, 255] and picture[8, 26].tolist() == [100, 100, 100, 255]
    assert picture[26, 8].tolist() == [200, 200, 200, 255] and picture[26, 26, 3] == 0
