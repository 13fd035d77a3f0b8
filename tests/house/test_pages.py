"""The pages that people read: their length, links, file names, commands and code hold."""

from __future__ import annotations

import os
import re
import runpy
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from opdbench.cli import app
from opdbench.recipes.config import load_recipe
from opdbench.registry import names, parse_methods, parse_tasks, preset, recipes

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("opdbench", "baselines", "evaluators", "leaderboards", "tests", ".github")
PAGES = [ROOT / "README.md", *sorted(page for folder in FOLDERS for page in (ROOT / folder).rglob("*.md"))]
COMMANDS = typer.main.get_command(app).commands
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
NEW = {"velocity.toml", "velocity.py", "inference.yml"}
"""Names of files that a reader makes, as the examples call them."""
MADE = ("runs/", "OUT/", "stages/", "evals/", "samples/", "variance-")
"""Where runs keep their files: a page may name these, and a clone has none of them."""
OTHER_TOOLS = {"--campaign-seed", "--campaign-seconds", "--campaign-summary", "--use_fsdp", "--nproc_per_node"}
"""Options of the launchers that the pages speak of."""
PLACEHOLDERS = {r"^NAME$": "opd", r"^G$": "1", r"\$e$": "analytic"}
"""What a reader or a loop fills in, and a value that belongs there."""

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


def prose(page: Path) -> str:
    """A page without its code blocks."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def blocks(page: Path, *languages: str) -> list[str]:
    """The code blocks of a page in some languages, in order."""
    return [code for language, code in FENCE.findall(page.read_text(encoding="utf-8")) if language in languages]


def spans(page: Path) -> list[str]:
    """The inline code of a page."""
    return re.findall(r"`([^`\n]+)`", prose(page))


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    titles = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_the_readme_is_one_screen_that_a_stranger_reads():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 170


@each_page
def test_every_relative_link_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = page.parent / path if path else page
        assert linked.exists(), f"{target} does not exist"
        if anchor and linked.suffix == ".md":
            assert anchor in anchors(linked), f"{target}: no such heading"


@each_page
def test_every_named_file_exists(page):
    for span in spans(page):
        is_file = re.fullmatch(r"[\w./*-]+\.(py|toml|md|yml)", span)
        is_path = re.fullmatch(rf"({'|'.join(map(re.escape, FOLDERS))}|\.ci)/[\w./*-]*", span)
        if not (is_file or is_path) or span in NEW or span.startswith(MADE):
            continue
        hits = (any(place.glob(span)) for place in (page.parent, ROOT))
        assert any(hits) or ("/" not in span and any(ROOT.glob(f"*/**/{span}"))), f"{span} does not exist"


def shell_lines(page: Path) -> Iterator[list[str]]:
    """Simple commands of a page as lists of words: blocks of shell, and inline code that is a command with options."""
    texts = [line for code in blocks(page, "bash", "sh") for line in code.replace("\\\n", " ").splitlines()]
    texts += [span for span in spans(page) if " -" in span and re.search(r"(^|[ (])opdbench [a-z]", span)]
    for text in texts:
        words = shlex.shlex(text, posix=True, punctuation_chars=True)
        words.whitespace_split = True
        command: list[str] = []
        for word in [*words, ";"]:
            if set(word) <= set("();<>|&"):
                yield command
                command = []
            else:
                command.append(word)


def filled(word: str) -> str:
    """A word of a command with its placeholder filled in."""
    for pattern, value in PLACEHOLDERS.items():
        word = re.sub(pattern, value, word)
    return word


def opdbench_calls(page: Path) -> list[list[str]]:
    """What the page passes to `opdbench`, verb first."""
    calls = []
    for command in shell_lines(page):
        if "opdbench" in command and not {"pip", "cd", "ruff", "mypy"} & set(command[: command.index("opdbench")]):
            calls.append([filled(word) for word in command[command.index("opdbench") + 1 :] if word != "..."])
    return [call for call in calls if call]


@each_page
def test_every_command_is_accepted(page):
    for call in opdbench_calls(page):
        assert call[0] in COMMANDS, f"opdbench {shlex.join(call)}: no such command"
        command, words = COMMANDS[call[0]], call[1:]
        if hasattr(command, "commands"):  # `opdbench runs verify`
            command, words = command.commands[words[0]], words[1:]
        values = command.make_context(call[0], words).params  # raises where an option or a value is unknown
        if call[0] == "run" and not values["config"]:
            tasks = parse_tasks(values["tasks"] or "ocr,geneval", ("evaluators", "judges"))
            over = preset(values["preset"]) if values["preset"] else None
            for source in parse_methods(values["method"] or "opd"):
                load_recipe(source, tasks, values["set_"] or (), recipes(), over)


@each_page
def test_every_named_option_exists(page):
    known = {option for command in COMMANDS.values() for parameter in command.params for option in parameter.opts}
    for span in spans(page):
        if span.startswith("--"):
            option = re.match(r"[\w-]+", span)[0]
            assert option in known | OTHER_TOOLS, f"no command takes {option}"


@each_page
def test_every_named_verb_exists(page):
    for span in spans(page):
        if match := re.match(r"opdbench ([a-z]+)", span):
            assert match[1] in COMMANDS, f"{span}: no such command"


@each_page
def test_python_modules_that_are_run_exist(page):
    for name in re.findall(r"python -m (opdbench\.[\w.]+)", page.read_text(encoding="utf-8")):
        _, first, *rest = name.split(".")
        base = ROOT / first if first in FOLDERS else ROOT / "opdbench" / first
        assert base.joinpath(*rest).with_suffix(".py").exists(), f"no module {name}"


@pytest.mark.parametrize(
    "page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.relative_to(ROOT).as_posix()
)
def test_python_blocks_run_where_they_stand(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    script = tmp_path / "page.py"
    script.write_text("\n".join(blocks(page, "python")), encoding="utf-8")
    assert runpy.run_path(os.fspath(script), run_name="page")


@pytest.mark.parametrize(("section", "listed"), [("## The methods", recipes()), ("## Equations", names("losses"))])
def test_every_method_and_every_loss_has_a_row(section, listed):
    rows = prose(ROOT / "baselines" / "README.md").partition(section)[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `([\w-]+)` \|", rows, re.MULTILINE)) == set(listed) - {"velocity"}


def test_every_command_is_on_the_page_of_the_package():
    section = prose(ROOT / "opdbench" / "README.md").partition("## All commands")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `opdbench (\w+)` \|", section, re.MULTILINE)) == set(COMMANDS)


def test_the_tree_of_the_package_lists_every_room_from_the_top_floor_down():
    tree = next(code for code in blocks(ROOT / "opdbench" / "README.md", "text") if "core.py" in code)
    rooms = [line.split()[0].strip("/").removesuffix(".py") for line in tree.splitlines()]
    floors = runpy.run_path(os.fspath(ROOT / "tests" / "house" / "test_layout.py"))["FLOOR"]
    assert sorted(rooms) == sorted(floors)
    heights = [floors[room] for room in rooms]
    assert heights == sorted(heights, reverse=True)


def test_the_page_of_the_tests_lists_every_folder():
    listed = re.findall(r"^\| `(\w+)` \|", prose(ROOT / "tests" / "README.md"), re.MULTILINE)
    assert listed == sorted(
        path.name for path in (ROOT / "tests").iterdir() if path.is_dir() and path.name[0] not in "_."
    )
