"""What README.md and the pages in docs/ say of commands and modules is true."""

import ast
import importlib
import pathlib
import re
import shlex
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from kinv import __main__
from kinv.classifiers import loading

ROOT = pathlib.Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (
        *sorted(ROOT.glob("*.md")),
        *sorted((ROOT / "docs").glob("*.md")),
    )
}
# Fences may be indented, within lists.
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.M | re.S)
BLOCKS = [
    (page, language, block)
    for page, text in PAGES.items()
    for _, language, block in FENCE.findall(text)
]
# In fences alone: measurements.md names options of earlier commits in its text.
COMMANDS = [
    (page, line)
    for page, language, block in BLOCKS
    if not language
    for line in block.replace("\\\n", " ").splitlines()
    if "tools/" in line and not line.startswith("#")
]
# What paths in the text begin with that nobody has made yet.
EXAMPLES = ("exported/NAME", "exported/my-", "tools/X.py")
PYTHON = [block for _, language, block in BLOCKS if language == "python"]


def numbered(pages):
    """Names of tests that say on which page, without what stands there."""
    return [f"{page}-{number}" for number, page in enumerate(pages)]


@pytest.fixture(params=PAGES)
def page(request):
    return ROOT / request.param


def headings(page):
    """The anchors of a page's headings, as GitHub makes them."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    titles = re.findall(r"^#+ (.*)$", text, re.M)
    return {
        re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")
        for title in titles
    }


@pytest.mark.parametrize(
    "command",
    [command for _, command in COMMANDS],
    ids=numbered(page for page, _ in COMMANDS),
)
def test_the_tools_take_the_commands(command):
    words = shlex.split(command)
    tool = next(word for word in words if word.startswith("tools/"))
    module = importlib.import_module(f"tools.{pathlib.Path(tool).stem}")
    module.parse_arguments(words[words.index(tool) + 1 :])


def test_the_command_has_every_tool():
    names = {
        path.stem.replace("_", "-")
        for path in (ROOT / "tools").glob("*.py")
        if path.read_text(encoding="utf-8").startswith("#!")
    }
    # Started by the benchmark alone.
    assert set(__main__.TOOLS) == names - {"benchmark-peer"}


def test_there_are_commands_of_every_step():
    tools = {
        re.search(r"tools/(\w+)\.py", line)[1]
        for page, line in COMMANDS
        if page == README.name
    }
    assert {"train_classifier", "train", "export", "invert"} <= tools


def test_no_fence_is_left_open(page):
    text = page.read_text(encoding="utf-8")
    assert "```" not in FENCE.sub("", text)


def test_the_links_lead_somewhere(page):
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith("https://"):
            continue
        place, _, anchor = link.partition("#")
        target = page.parent / place if place else page
        assert target.exists(), link
        assert not anchor or anchor in headings(target), link


def test_the_paths_in_the_text_exist(page):
    text = page.read_text(encoding="utf-8")
    for path in re.findall(
        r"`((?:deploy|docs|exported|kinv|tests|tools)/[\w./-]+)`", text
    ):
        if not path.startswith(EXAMPLES):
            assert (ROOT / path).exists(), path


def test_every_page_is_linked_from_the_readme():
    text = README.read_text(encoding="utf-8")
    for name in PAGES:
        assert name == README.name or f"]({name})" in text, name


def test_every_package_is_on_the_map():
    text = README.read_text(encoding="utf-8")
    for path in (ROOT / "kinv").glob("*/__init__.py"):
        assert re.search(rf"^\| `kinv/{path.parent.name}/`", text, re.M), path


def test_every_module_is_in_the_architecture():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for path in (ROOT / "kinv").rglob("[!_]*.py"):
        assert re.search(rf"^\|.*`{path.stem}`", text, re.M), path


def test_every_dependency_has_a_comment():
    lines = (ROOT / "setup.py").read_text(encoding="utf-8").splitlines()
    names = []
    for before, line in zip(lines, lines[1:], strict=False):
        required = re.match(r' +"([\w-]+)[<>]=.*",(.*)$', line)
        if required:
            names.append(required[1])
            assert "# " in required[2] or before.strip().startswith("#"), line
    assert {"tensorflow", "psutil", "playwright", "jax"} <= set(names)


@pytest.mark.parametrize(
    "code",
    PYTHON,
    ids=numbered(page for page, language, _ in BLOCKS if language == "python"),
)
def test_python_is_python_and_imports_what_there_is(code):
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("kinv"):
            for alias in node.names:
                importlib.import_module(f"{node.module}.{alias.name}")


def test_the_exported_model_answers_without_kinv():
    [code] = [block for block in PYTHON if "signatures[" in block]
    blocked = "import sys; sys.modules['kinv'] = None\n"
    result = subprocess.run(
        [sys.executable, "-c", blocked + code],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    name, shape = result.stdout.splitlines()
    assert name == "lime cylinder"
    assert shape == "(1, 8, 32, 32, 3)"


def test_a_saved_model_is_wrapped(tmp_path, monkeypatch):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((224, 224, 3))
    pooled = keras.layers.AveragePooling2D(112)(inputs)
    outputs = keras.layers.Dense(4)(keras.layers.Flatten()(pooled))
    model = keras.Model(inputs, outputs)

    @tf.function(
        input_signature=[tf.TensorSpec((None, 224, 224, 3), tf.float32)]
    )
    def call(images):
        return model(images)

    module = tf.Module()
    module.model, module.__call__ = model, call
    monkeypatch.chdir(tmp_path)
    tf.saved_model.save(module, "mobilenet")
    [code] = [block for block in PYTHON if "mobilenet" in block]
    exec(code, {})  # noqa: S102 (what the page tells users to run)
    classifier = loading.load_classifier("classifier")
    images = np.random.default_rng(0).uniform(0, 255, (2, 224, 224, 3))
    expected = model(images / 255)[:, 1:]
    np.testing.assert_allclose(classifier(images), expected, rtol=1e-3)


def test_the_digits_become_a_folder(tmp_path):
    [code] = [block for block in PYTHON if "load_digits" in block]
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    folders = sorted(path.name for path in (tmp_path / "digits").iterdir())
    assert folders == list("0123456789")
    assert len(list((tmp_path / "digits").rglob("*.png"))) == 1797
