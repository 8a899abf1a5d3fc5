"""The pages in docs/ and the README: links lead somewhere, programs run, commands parse."""

import itertools
import re
import runpy
import shlex

import pytest
import torch
from builders import tiny_config
from conftest import REPOSITORY

import gfl
from gfl.build import build_model
from gfl.cli.main import COMMANDS
from gfl.config import load_config
from gfl.engine.checkpoint import save_checkpoint
from gfl.errors import UserError
from gfl.sample import make_shapes

PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]


def blocks(page, language: str) -> list[str]:
    """Fenced blocks of a language, without those that say that they are not run."""
    text = page.read_text(encoding="utf-8")
    found = re.findall(rf"(<!-- not run[^>]*-->\n)?```{language}\n(.*?)```", text, re.DOTALL)
    return [code for skipped, code in found if not skipped]


# Those with programs that are run.
PYTHON_PAGES = [page for page in PAGES if blocks(page, "python")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (page.parent / target).exists(), target


def test_the_index_names_every_page():
    index = (REPOSITORY / "docs" / "README.md").read_text(encoding="utf-8")
    for page in PAGES[1:]:
        assert page.name == "README.md" or f"({page.name})" in index, page.name


def test_the_licences_page_names_every_dependency(monkeypatch):
    setuptools = pytest.importorskip("setuptools")
    said: dict = {}
    monkeypatch.setattr(setuptools, "setup", lambda **values: said.update(values))
    runpy.run_path(str(REPOSITORY / "setup.py"))
    needed = [*said["install_requires"], *itertools.chain(*said["extras_require"].values())]
    page = (REPOSITORY / "docs" / "licences.md").read_text(encoding="utf-8")
    assert len(needed) > 15
    for requirement in needed:
        assert f"| {re.match(r'[a-z-]+', requirement)[0]} |" in page, requirement


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder like a user's: data/shapes, data/bccd, a trained checkpoint, a picture."""
    folder = tmp_path_factory.mktemp("user")
    for name in ("shapes", "bccd"):
        make_shapes(folder / "data" / name, 4, 2, seed=0, size=(128, 96))
    annotations = folder / "data" / "bccd" / "annotations"
    (annotations / "test.json").write_bytes((annotations / "val.json").read_bytes())
    torch.manual_seed(0)
    config = tiny_config(folder / "data" / "shapes")
    names = ["disc", "rectangle", "triangle", "ring", "cross", "star"]
    model = build_model(config, len(names))
    torch.nn.init.normal_(model.head.cls_out.weight, std=0.5)
    (folder / "runs" / "mine").mkdir(parents=True)
    class_map = {"names": names, "category_ids": [1, 2, 4, 7, 9, 12]}
    content = {"model": model.state_dict(), "weights": "raw", "class_map": class_map}
    content |= {"config": config.to_dict(), "step": 1, "epoch": 1}
    save_checkpoint(folder / "runs" / "mine" / "best.pt", content)
    picture = gfl.read_image(str(folder / "data" / "shapes" / "images" / "val_000000.jpg"))
    for name in ("picture.jpg", "pictures/a.jpg", "more/a.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        gfl.save_picture(folder / name, picture)
    return folder


# What a program on a page may add to.
TABLES = ("ASSIGNERS", "BACKBONES", "BOX_REPRESENTATIONS")


@pytest.mark.parametrize("page", PYTHON_PAGES, ids=lambda page: page.name)
def test_programs_run_one_after_the_other(page, place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    tables = {name: dict(getattr(gfl.build, name)) for name in TABLES}
    names: dict = {"__name__": "__main__"}
    try:
        for code in blocks(page, "python"):
            exec(compile(code, str(page), "exec"), names)
        assert set(names) > {"__name__", "__builtins__"}  # they have run, and made something
    finally:
        for name, table in tables.items():
            getattr(gfl.build, name).clear()
            getattr(gfl.build, name).update(table)


def commands(page) -> list[list[str]]:
    """The project's own command lines on a page, as (command, arguments)."""
    runner = r"^\s*(?:&& )?(?:torchrun(?: --[a-z-]+(?: [^-\s]\S*)?)+|\S*python3?) "
    found = []
    for block in blocks(page, "bash"):
        for line in re.sub(r"\\\n", " ", block).splitlines():
            line = re.sub(runner + r"tools/(\w+)\.py", r"gfl \1", line)
            line = re.sub(runner + r"data/make_shapes\.py", "gfl sample", line)
            if line.startswith("gfl "):
                words = shlex.split(line.split(" && ")[0], comments=True)[1:]
                found.append([words[0].replace("_", "-"), *words[1:]])
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_are_understood(page, monkeypatch):
    """Every option exists, every config is shipped, every override is a key."""
    for name, *arguments in commands(page):
        assert name in COMMANDS, f"gfl {name}"
        if name in ("train", "check-data"):
            config = next(a for a in arguments if not a.startswith("-"))
            overrides = [a for a in arguments if re.match(r"[a-z_]+\.?[\w.]*=", a)]
            try:
                load_config(config.removeprefix("configs/").removesuffix(".yaml"), overrides)
            except UserError as error:
                raise AssertionError(f"{page.name}: gfl {name} {arguments}: {error}") from None
        module = __import__(COMMANDS[name][0], fromlist=["main"])
        help_text = _help_of(module)
        for option in (a for a in arguments if a.startswith("--")):
            assert option.split("=")[0] in help_text, f"{page.name}: gfl {name} {option}"


def _help_of(module) -> str:
    import contextlib
    import io

    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        module.main(["-h"])
    return text.getvalue()


def test_commands_are_found_on_the_pages():
    """The test above can fail: it sees the README's lines."""
    seen = [words[0] for page in PAGES for words in commands(page)]
    assert seen.count("train") >= 6 and "convert" in seen and "predict" in seen
