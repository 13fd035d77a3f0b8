"""A loss from outside the repository: the text of baselines/README.md as a package, installed and run."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from command import opdbench

README = Path(__file__).resolve().parents[2] / "baselines" / "README.md"
PROJECT = """[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "velocity"
version = "0.1"

[tool.setuptools]
py-modules = ["velocity"]

"""
KEYS = ("updates", "prompts", "sampler.steps")
SMALL = [f"--set={stage}.{key}=2" for stage in ("start", "teacher", "student") for key in KEYS]


def test_the_readmes_loss_is_installed_and_run(tmp_path, monkeypatch):
    section = README.read_text().partition("## Add a method")[2].partition("\n## ")[0]
    code, entry, recipe = re.findall(r"```(?:python|toml)\n(.*?)```", section, re.DOTALL)
    assert len([line for line in code.splitlines() if line]) <= 10
    package, site = tmp_path / "package", tmp_path / "site"
    package.mkdir()
    (package / "velocity.py").write_text(code)
    (package / "pyproject.toml").write_text(PROJECT + entry)
    (tmp_path / "velocity.toml").write_text(recipe)
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", str(site), str(package)], check=True)
    monkeypatch.syspath_prepend(site)
    monkeypatch.chdir(tmp_path)
    assert "velocity" in json.loads(opdbench("list", "--format", "json").stdout)["losses"]
    plan = opdbench("run", "--config", "velocity.toml", "--dry-run")
    assert plan.returncode == 0, plan.stderr
    assert re.search("student +velocity", plan.stdout)
    words = ["--config", "velocity.toml", "--tasks", "ocr", "--limit", "1", "--jobs", "1", "--format", "json"]
    done = opdbench("run", *words, *SMALL, "--set", "teacher.images=2")
    assert done.returncode == 0, done.stderr
    assert {row["method"] for row in json.loads(done.stdout)["rows"]} == {"velocity"}
    (log,) = [
        p
        for p in tmp_path.glob("runs/stages/*/log.jsonl")
        if '"name": "student"' in (p.parent / "stage.json").read_text()
    ]
    assert all(json.loads(line)["loss"] > 0 for line in log.read_text().splitlines())
