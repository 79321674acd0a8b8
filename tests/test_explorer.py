"""The explorer page in a real browser: Chromium, without a window."""

import base64
import http.server
import io
import pathlib
import re
import shutil
import threading

import numpy as np
import pytest
import requests
from PIL import Image
from playwright import sync_api

from kinv import images, pixels
from kinv.analysis import diversity, grids
from kinv.serving import pipeline
from tools import serve

ROOT = pathlib.Path(__file__).parent.parent
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        CHROMIUM is None, reason="needs Chromium: apt-get install chromium"
    ),
]
# The slowest answers come from two models at once.
SECONDS = 60_000


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox"]
        )
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def other_server(start_server):
    """With a third pipeline, and for pages from other places."""
    model = ("--model", "exported/fashion-robust")
    return start_server(*model, "--allow-origin", "*")


@pytest.fixture
def page(browser):
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.set_default_timeout(SECONDS)
    problems = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    yield page
    context.close()
    assert not problems


def answered(page):
    sync_api.expect(page.locator("#status")).to_contain_text(
        "answered", timeout=SECONDS
    )


def open_page(page, address):
    page.goto(address)
    answered(page)


def do(page, action):
    """An action, and the wait until its answer is there."""
    page.evaluate("document.getElementById('status').textContent = ''")
    action()
    answered(page)


def shown_pixels(page, index=0):
    """The pixels of a reconstruction as the page shows it."""
    canvas = page.locator(".pictures canvas").nth(index)
    values = canvas.evaluate(
        "c => Array.from(c.getContext('2d')"
        ".getImageData(0, 0, c.width, c.height).data)"
    )
    return np.reshape(values, (32, 32, 4))[..., :3]


def own_pixels(page):
    """The pixels of the image as the classifier sees it."""
    canvas = page.locator(".own canvas").first
    address = canvas.evaluate("c => c.toDataURL()")
    data = base64.b64decode(address.partition(",")[2])
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), "float32")


def slide(page, name, value):
    page.locator(f"#{name}").fill(str(value))


def test_first_view(served, page):
    open_page(page, served.rest)
    assert page.locator(".pictures canvas").count() == 9
    assert (
        page.locator(".classes li").first.inner_text().startswith("blue sphere")
    )
    assert re.match(r"\d of 9 get", page.locator(".summary").inner_text())
    assert page.locator("#model option").all_inner_texts() == [
        "scenes32-robust",
        "scenes32-standard",
    ]


def test_new_noise_changes_the_pictures_and_the_address(served, page):
    open_page(page, served.rest)
    before = shown_pixels(page)
    do(page, page.locator("#resample").click)
    assert "seed=2" in page.url
    assert np.abs(shown_pixels(page) - before).mean() > 2
    # The seed gives the same noise again.
    do(page, lambda: page.evaluate("location.hash = ''"))
    np.testing.assert_array_equal(shown_pixels(page), before)


def test_a_link_shows_the_same_view(served, page, browser):
    open_page(page, served.rest)
    do(page, lambda: slide(page, "scale", 0.5))
    do(page, lambda: slide(page, "shift", -2))
    do(page, page.locator("#rotate").click)
    do(page, page.locator("#examples button").nth(3).click)
    do(page, lambda: page.locator("#other").select_option("scenes32-standard"))
    assert page.locator(".result").count() == 2
    other = browser.new_page()
    open_page(other, page.url)
    assert other.locator("#scale").input_value() == "0.5"
    # A server that begins with another model shows the same, too.
    for part in ("model=scenes32-robust&", "image=kinv_scenes-3&"):
        assert part in page.url
    assert other.locator(".result").count() == 2
    for index in (0, 17):
        np.testing.assert_allclose(
            shown_pixels(other, index), shown_pixels(page, index), atol=1
        )
    other.close()


def test_a_picture_of_ones_own(served, page, tmp_path):
    picture = np.zeros((90, 120, 3), "uint8")
    picture[..., 0] = 200
    path = tmp_path / "own.png"
    images.write_image(path, picture)
    open_page(page, served.rest)
    before = shown_pixels(page)
    do(page, lambda: page.locator("#file").set_input_files(path))
    assert np.abs(shown_pixels(page) - before).mean() > 2
    own = page.locator(".own canvas").first.evaluate(
        "c => Array.from(c.getContext('2d').getImageData(16, 16, 1, 1).data)"
    )
    np.testing.assert_allclose(own, [200, 0, 0, 255], atol=1)
    # It travels in the link.
    assert "image=data" in page.url


def test_transparency_is_laid_over_white(served, page, tmp_path):
    picture = np.zeros((64, 64, 4), "uint8")
    picture[..., :2] = 200
    picture[..., 3] = np.repeat([0, 128], 32)[:, None]
    path = tmp_path / "own.png"
    Image.fromarray(picture).save(path)
    open_page(page, served.rest)
    do(page, lambda: page.locator("#file").set_input_files(path))
    found = own_pixels(page)
    expected = pixels.resize(images.read_image(path)[None], len(found))[0]
    np.testing.assert_allclose(found[2:14], expected[2:14], atol=1)
    np.testing.assert_allclose(found[18:30], expected[18:30], atol=1.5)


def test_a_file_that_is_no_picture(served, page, tmp_path):
    path = tmp_path / "words.png"
    path.write_text("words")
    open_page(page, served.rest)
    page.locator("#file").set_input_files(path)
    message = page.locator("#message")
    sync_api.expect(message).to_contain_text("words.png is not a picture")
    # The next good answer takes it away.
    do(page, page.locator("#resample").click)
    assert not message.is_visible()


def drop(page, *paths):
    """Files dropped together."""
    contents = [
        [path.name, base64.b64encode(path.read_bytes()).decode()]
        for path in paths
    ]
    page.evaluate(
        """contents => {
          const types = {
            png: "image/png", svg: "image/svg+xml", txt: "text/plain",
          };
          const dataTransfer = new DataTransfer();
          for (const [name, data] of contents) {
            const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
            const type = types[name.split(".").pop()];
            dataTransfer.items.add(new File([bytes], name, { type }));
          }
          window.dispatchEvent(new DragEvent("drop", { dataTransfer }));
        }""",
        contents,
    )


def test_what_is_dropped(served, page, tmp_path):
    red, words, drawn = (tmp_path / n for n in ("r.png", "w.txt", "d.svg"))
    images.write_image(red, np.full((40, 40, 3), (200, 0, 0), "uint8"))
    words.write_text("words")
    drawn.write_text('<svg xmlns="http://www.w3.org/2000/svg"/>')
    open_page(page, served.rest)
    message = page.locator("#message")
    do(page, lambda: drop(page, words, red))
    sync_api.expect(message).to_have_text("Of 2 files r.png was taken.")
    np.testing.assert_allclose(own_pixels(page)[16, 16], [200, 0, 0], atol=1)
    # It has no pixels of its own: browsers would make a white one.
    drop(page, drawn)
    sync_api.expect(message).to_contain_text("d.svg is not a picture")
    drop(page)
    sync_api.expect(message).to_contain_text("another site cannot be read")
    # An answer that was under way does not take the message away.
    page.locator("#resample").click()
    sync_api.expect(page.locator("#status")).to_contain_text("asking")
    drop(page, words)
    sync_api.expect(message).to_contain_text("w.txt is not a picture")
    answered(page)
    assert message.is_visible()


def test_the_last_picture_that_was_opened_counts(served, page, tmp_path):
    large, small = tmp_path / "large.png", tmp_path / "small.png"
    noise = np.random.default_rng(0).integers(0, 255, (3000, 3000, 3), "uint8")
    images.write_image(large, noise)
    images.write_image(small, np.full((40, 40, 3), (0, 0, 200), "uint8"))
    open_page(page, served.rest)
    page.locator("#file").set_input_files(large)
    do(page, lambda: page.locator("#file").set_input_files(small))
    page.wait_for_timeout(1500)
    answered(page)
    np.testing.assert_allclose(own_pixels(page)[16, 16], [0, 0, 200], atol=1)


def test_nothing_old_is_shown_after_a_failure(served, page):
    open_page(page, served.rest)
    page.route("**/*:predict", lambda route: route.fulfill(status=503))
    page.locator("#examples button").nth(3).click()
    message = page.locator("#message")
    sync_api.expect(message).to_contain_text("The server refused (503)")
    assert page.locator(".pictures canvas").count() == 0
    page.unroute("**/*:predict")
    do(page, page.locator("#examples button").nth(3).click)
    assert page.locator(".pictures canvas").count() == 9


def test_a_choice_that_changes_nothing_is_none_to_go_back_from(served, page):
    open_page(page, served.rest)
    do(page, page.locator("#examples button").nth(2).click)
    before = page.evaluate("history.length")
    do(page, page.locator("#examples button").nth(2).click)
    do(page, page.locator("#reset").click)
    assert page.evaluate("history.length") == before
    # No model stands beside itself.
    do(page, lambda: page.locator("#other").select_option("scenes32-standard"))
    do(page, lambda: page.locator("#model").select_option("scenes32-standard"))
    assert page.locator(".result").count() == 1


def test_a_page_of_one_server_names_why_it_may_ask_no_other(served, page):
    other = served.rest.replace("127.0.0.1", "localhost").rstrip("/")
    page.goto(f"{served.rest}?server={other}")
    message = page.locator("#message")
    sync_api.expect(message).to_contain_text("tools/serve.py --page")


@pytest.mark.parametrize("factor", [0.0, 0.5, 2.0])
def test_sharpness_is_that_of_pillow(served, page, factor):
    open_page(page, served.rest)
    before = own_pixels(page)
    do(page, lambda: slide(page, "sharpness", factor))
    after = own_pixels(page)
    expected = pixels.adjust_sharpness(before[None], factor)[0]
    np.testing.assert_allclose(after, expected, atol=1.5)


def test_brightness_and_rotation(served, page):
    open_page(page, served.rest)
    before = own_pixels(page)
    do(page, page.locator("#rotate").click)
    after = own_pixels(page)
    np.testing.assert_array_equal(after, np.rot90(before))
    do(page, page.locator("#reset").click)
    do(page, lambda: slide(page, "brightness", 0.5))
    after = own_pixels(page)
    np.testing.assert_allclose(after, before / 2, atol=1)


def test_between_two_images_and_repeated(served, page):
    open_page(page, served.rest)
    do(page, lambda: page.locator("input[value=between]").check())
    captions = page.locator(".pictures figcaption b").all_inner_texts()
    assert (captions[0], captions[-1]) == ("0\u00a0%", "100\u00a0%")
    # At the end it is the other image's inversion with the same noise.
    last = shown_pixels(page, 8)
    do(page, page.locator("#examples button").nth(1).click)
    do(page, lambda: page.locator("input[value=noise]").check())
    np.testing.assert_allclose(shown_pixels(page, 0), last, atol=3)

    do(page, lambda: page.locator("input[value=repeat]").check())
    captions = page.locator(".pictures figcaption b").all_inner_texts()
    assert captions == [f"pass {index}" for index in range(1, 9)]


def test_the_widest_is_chosen_as_by_invert(served, page):
    open_page(page, served.rest)
    model = pipeline.Pipeline.load(ROOT / "exported/scenes32-robust")
    image = images.read_image(ROOT / "docs/images/7-purple-cube.png")
    noise = np.random.default_rng(0).standard_normal((1, 12, model.noise_dim))
    pictures = model.reconstruct(image[None], noise.astype("float32"))[0]
    expected = diversity.picture_distances(pictures)
    found = page.evaluate(
        """pictures => {
          const rows = pictures.map(bands);
          return [rows.map(one => rows.map(other => distance(one, other))),
            farthest(rows, 5), meanDistance(rows), deviationMap(pictures)];
        }""",
        pictures.tolist(),
    )
    np.testing.assert_allclose(found[0], expected, atol=1e-3)
    assert found[1] == diversity.farthest(expected, 5).tolist()
    assert found[2] == pytest.approx(
        diversity.mean_distance(expected), rel=1e-5
    )
    np.testing.assert_allclose(
        found[3],
        grids.deviation_map(pictures.std(axis=0, ddof=1)),
        atol=0.51,
    )


def test_the_widest_view(served, page):
    open_page(page, served.rest)
    assert page.locator(".deviation canvas").count() == 1

    model = pipeline.Pipeline.load(ROOT / "exported/scenes32-robust")
    noise = page.evaluate(f"noiseRows(CANDIDATES, {model.noise_dim})")
    image = own_pixels(page)[None]
    pictures = model.reconstruct(image, np.array([noise], "float32"))[0]
    away = np.linalg.norm(model.logits(pictures) - model.logits(image), axis=1)
    distances = diversity.picture_distances(pictures)
    near = np.flatnonzero(away <= np.median(away))
    chosen = near[diversity.farthest(distances[np.ix_(near, near)], 6)]
    do(page, lambda: page.locator("input[value=widest]").check())
    shown = [
        shown_pixels(page, i) for i in range(page.locator("figure b").count())
    ]
    assert len(shown) == 6
    told = re.search(
        r"; (\d+) of 255 apart \(usual (\d+)\)",
        page.locator(".summary").inner_text(),
    )
    widest, usual = map(int, told.groups())
    expected = diversity.mean_distance(distances[np.ix_(chosen, chosen)])
    assert widest == pytest.approx(expected, abs=1)
    assert usual == pytest.approx(diversity.mean_distance(distances), abs=1)
    assert widest == pytest.approx(
        diversity.mean_distance(diversity.picture_distances(np.array(shown))),
        abs=1,
    )
    # The same again from its address.
    first = shown_pixels(page)
    assert "view=widest" in page.url
    do(page, page.reload)
    np.testing.assert_array_equal(shown_pixels(page), first)


def test_download(served, page, tmp_path):
    open_page(page, served.rest)
    with page.expect_download() as download:
        page.locator("#download").click()
    download.value.save_as(tmp_path / "kinv.png")
    picture = np.asarray(Image.open(tmp_path / "kinv.png").convert("RGB"))
    assert picture.shape[1] > 1000 and picture.std() > 20


def test_keyboard_alone(served, page):
    open_page(page, served.rest)
    page.locator("#examples button").first.focus()
    page.keyboard.press("Tab")
    do(page, lambda: page.keyboard.press("Enter"))
    assert "image=kinv_scenes-1" in page.url
    page.locator("#scale").focus()
    do(page, lambda: page.keyboard.press("ArrowLeft"))
    assert "scale=0.95" in page.url


def test_back_undoes_a_choice(served, page):
    open_page(page, served.rest)
    before = shown_pixels(page)
    do(page, page.locator("#examples button").nth(2).click)
    do(page, lambda: slide(page, "scale", 0.5))
    # As a slider that is drawn: many values, one choice.
    do(page, lambda: slide(page, "scale", 0.25))
    do(page, page.go_back)
    assert page.locator("#scale").input_value() == "1"
    assert page.locator("#examples [aria-pressed=true]").count() == 1
    assert "image=kinv_scenes-2" in page.url
    do(page, page.go_back)
    np.testing.assert_allclose(shown_pixels(page), before, atol=1)
    do(page, page.go_forward)
    assert "image=kinv_scenes-2" in page.url


def test_a_model_gets_examples_of_its_own_data_set(other_server, page):
    open_page(page, other_server.rest)

    def offered():
        return page.locator("#examples button:visible").evaluate_all(
            "buttons => buttons.map(button => button.title)"
        )

    scenes_offered = offered()
    assert "ankle boot" not in scenes_offered
    do(page, lambda: page.locator("#model").select_option("fashion-robust"))
    assert len(offered()) == 10 and "ankle boot" in offered()
    assert page.locator("#examples [aria-pressed=true]").count() == 1
    assert page.locator(".classes li").first.inner_text().startswith("T-shirt")
    # A link shows the same, and Back the scenes again.
    other = page.context.new_page()
    open_page(other, page.url)
    assert other.locator("#examples button:visible").count() == 10
    do(page, page.go_back)
    assert offered() == scenes_offered


def test_examples_have_different_names(served, page):
    open_page(page, served.rest)
    names = page.locator("#examples button").evaluate_all(
        "all => all.map(button => button.getAttribute('aria-label'))"
    )
    assert len(names) == len(set(names)) == 8


def test_a_phone_shows_a_reconstruction_and_takes_a_thumb(served, browser):
    phone = browser.new_page(
        viewport={"width": 390, "height": 664}, has_touch=True
    )
    open_page(phone, served.rest)
    first = phone.locator(".pictures canvas").first.bounding_box()
    assert first["y"] + first["height"] < 664
    zone = phone.locator(".file").bounding_box()
    assert zone["y"] + zone["height"] < 664
    border = phone.locator(".file").evaluate(
        "zone => getComputedStyle(zone).borderStyle"
    )
    assert border == "dashed"
    for details in phone.locator("summary").all():
        details.click()
    targets = phone.locator(
        "button:visible, select:visible, summary, input[type=range], .file, "
        ".views label"
    )
    small = []
    for target in targets.all():
        box = target.bounding_box()
        if min(box["width"], box["height"]) < 44:
            small.append((target.inner_text(), box))
    assert targets.count() > 20 and not small
    phone.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_sticks_out_on_a_phone(served, browser, scheme):
    phone = browser.new_page(
        viewport={"width": 360, "height": 740}, color_scheme=scheme
    )
    open_page(phone, f"{served.rest}/#other=scenes32-standard")
    width = phone.evaluate("document.documentElement.scrollWidth")
    assert width <= 360
    # Readable: text against its background by WCAG's 4.5 to 1.
    assert _contrast(phone, "header p") > 4.5
    assert _contrast(phone, "button.primary") > 4.5
    phone.close()


def _contrast(page, selector):
    colors = page.locator(selector).first.evaluate(
        """e => {
          let box = e;
          const color = x => getComputedStyle(x).backgroundColor;
          while (box && color(box) === 'rgba(0, 0, 0, 0)')
            box = box.parentElement;
          return [getComputedStyle(e).color, color(box)];
        }"""
    )

    def luminance(text):
        values = np.array([int(n) for n in re.findall(r"\d+", text)[:3]]) / 255
        linear = np.where(
            values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4
        )
        return linear @ [0.2126, 0.7152, 0.0722]

    dark, light = sorted(map(luminance, colors))
    return (light + 0.05) / (dark + 0.05)


def test_the_page_as_a_file_in_front_of_another_server(
    other_server, page, tmp_path
):
    path = tmp_path / "explorer.html"
    model = "exported/scenes32-robust"
    serve.main(["--model", model, "--page", str(path)])
    # A model that the page was not made for is described by the server.
    open_page(
        page,
        f"file://{path}?server={other_server.rest}&model=scenes32-standard"
        "#model=scenes32-standard",
    )
    assert page.locator(".pictures canvas").count() == 9
    name = page.locator(".classes li").first.inner_text()
    assert name and not name.startswith("class ")


def test_an_address_that_means_nothing_shows_the_first_view(served, page):
    open_page(
        page,
        f"{served.rest}/#scale=no&image=99&view=x&model=y&rotation=7&seed=1e9",
    )
    assert page.locator("#scale").input_value() == "1"
    assert page.locator(".pictures canvas").count() == 9


class WithoutPreflight(http.server.BaseHTTPRequestHandler):
    """Stands for TensorFlow Serving: it answers no `OPTIONS`."""

    def answer(self):
        length = int(self.headers.get("Content-Length", 0))
        address = self.server.behind + self.path
        answer = requests.request(
            self.command, address, data=self.rfile.read(length), timeout=60
        )
        self.reply(answer.status_code, answer.content)

    def do_OPTIONS(self):  # noqa: N802 (the base class's name)
        self.server.preflights += 1
        self.reply(400, b'{"error": "Malformed request: OPTIONS"}')

    do_GET = do_POST = answer  # noqa: N815

    def reply(self, status, content):
        self.send_response(status)
        if self.server.allows:
            self.send_header("Access-Control-Allow-Origin", "*")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args):
        pass


@pytest.mark.parametrize("allows", [True, False])
def test_the_page_as_a_file_asks_without_a_preflight(
    served, page, tmp_path, allows
):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), WithoutPreflight)
    server.behind, server.allows, server.preflights = served.rest, allows, 0
    threading.Thread(target=server.serve_forever, daemon=True).start()
    path = tmp_path / "explorer.html"
    serve.main(["--model", "exported/scenes32-robust", "--page", str(path)])
    address = f"http://127.0.0.1:{server.server_port}"
    page.goto(f"file://{path}?server={address}")
    if allows:
        answered(page)
        assert page.locator(".pictures canvas").count() == 9
    else:
        message = page.locator("#message")
        for option in ("--rest_api_enable_cors_support=true", "--allow-origin"):
            sync_api.expect(message).to_contain_text(option, timeout=SECONDS)
    server.shutdown()
    server.server_close()
    assert server.preflights == 0


def test_a_server_that_is_gone_is_named(other_server, page):
    # The last test: no other one can use it.
    open_page(page, other_server.rest)
    other_server.process.kill()
    other_server.process.wait()
    page.locator("#resample").click()
    sync_api.expect(page.locator("#message")).to_contain_text(
        f"The server {other_server.rest} does not answer", timeout=SECONDS
    )
