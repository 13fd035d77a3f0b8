"""Runs in one file: what goes in comes out, and what no run has stays out."""

from __future__ import annotations

import json
import shutil
import stat
import zipfile
from dataclasses import replace

import pytest
from command import opdbench
from records import make_run

from opdbench.files import write_sealed
from opdbench.records.run import RunRecord
from opdbench.records.store import Store


@pytest.fixture
def run(tmp_path):
    """A finished run in `runs` whose stages are there."""
    folder = make_run(tmp_path / "runs")
    for stage in RunRecord.load(folder).stages:
        keep(folder.parent, stage.digest, stage.name)
    return folder


def keep(root, digest, content):
    store = Store(root)
    place = store.stage(digest)
    (place / "adapter.safetensors").write_text(content)
    (place / "log.jsonl").write_text("{}\n")
    store.keep_stage(digest, {"digest": digest, "meter": {}})


@pytest.fixture
def archived(run, tmp_path):
    done = opdbench("runs", "archive", run, "--to", tmp_path / "a.zip")
    assert done.returncode == 0, done.stderr
    return tmp_path / "a.zip"


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_imported_run_is_the_archived_one(run, archived, tmp_path):
    done = opdbench("runs", "import", archived, "--out", tmp_path / "new")
    assert done.returncode == 0, done.stderr
    expected = {name: value for name, value in contents(run.parent).items() if not name.startswith("locks")}
    assert contents(tmp_path / "new") == expected
    assert opdbench("runs", "verify", tmp_path / "new").returncode == 0
    again = opdbench("runs", "import", archived, "--out", tmp_path / "new")
    assert again.returncode == 0, again.stderr
    assert "imported" not in again.stdout
    assert f"already there: run {run.name}" in again.stdout
    assert opdbench("compare", "--runs", tmp_path / "new").returncode == 0


def test_nothing_is_overwritten(run, archived, tmp_path):
    out, record = tmp_path / "new", RunRecord.load(run)
    first = record.stages[0].digest
    keep(out, first, "trained on another machine")
    before = contents(out)
    assert opdbench("runs", "import", archived, "--out", out).returncode == 0
    assert all(contents(out)[name] == value for name, value in before.items())
    found = Store(out / run.name, (out,)).finished_stage(first)
    assert (found / "adapter.safetensors").read_text() == record.stages[0].name  # the run has its own
    replace(record, command="another").save(out / run.name)
    before = contents(out)
    done = opdbench("runs", "import", archived, "--out", out)
    assert (done.returncode, "exists with another content; import into another --out" in done.stderr) == (2, True)
    assert contents(out) == before
    done = opdbench("runs", "archive", run, "--to", archived)
    assert (done.returncode, "exists; choose another --to" in done.stderr) == (2, True)


def rewrite(source, change):
    """The archive with its members changed; the manifest fits what `change` leaves."""
    with zipfile.ZipFile(source) as file:
        members = {name: file.read(name) for name in file.namelist()}
    files = json.loads(members.pop("manifest.json"))["files"]
    entries = change(members, files) or list(members.items())
    with zipfile.ZipFile(source, "w") as file:
        file.writestr("manifest.json", json.dumps({"schema": 1, "files": files}))
        for name, content in entries:
            file.writestr(name, content)


def add(name):
    """A member that has its checksum, as a forger would write it."""

    def change(members, files):
        members[name] = b""
        files[name] = {"bytes": 0, "sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"}

    return change


def link(members, files):
    name = next(name for name in members if name.endswith("log.jsonl"))
    entry = zipfile.ZipInfo(name)
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    return [(entry if key == name else key, value) for key, value in members.items()]


def flip(members, files):
    name = next(name for name in members if name.endswith("adapter.safetensors"))
    members[name] = members[name][:-1] + b"X"


def double(members, files):
    return [*members.items(), next(iter(members.items()))]


def drop(members, files):
    del members[next(name for name in members if name.endswith("log.jsonl"))]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (add("../../evil.txt"), "has the member '../../evil.txt', which no run has"),
        (add("runs/../../evil/record.json"), "which no run has"),
        (add("/tmp/evil/record.json"), "which no run has"),
        (add("runs/x/samples/../../../record.json"), "which no run has"),
        (add("runs/.hidden/record.json"), "which no run has"),
        (add("runs/x/code.py"), "which no run has"),
        (add("stages/0123456789abcdef/weights.pt"), "which no run has"),
        (link, "is no plain file"),
        (flip, "adapter.safetensors is not what was written"),
        (double, "does not hold what its manifest.json says"),
        (drop, "does not hold what its manifest.json says"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_what_no_run_has_is_refused_and_nothing_is_written(archived, tmp_path, change, message):
    rewrite(archived, change)
    out = tmp_path / "deep" / "new"
    out.mkdir(parents=True)
    before = contents(tmp_path)
    done = opdbench("runs", "import", archived, "--out", out)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert contents(tmp_path) == before
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("cut", [0, 20, 2000])
def test_an_archive_that_was_cut_is_one_line(archived, tmp_path, cut):
    archived.write_bytes(archived.read_bytes()[:cut])
    done = opdbench("runs", "import", archived, "--out", tmp_path / "new")
    assert (done.returncode, "cannot read the archive" in done.stderr) == (2, True)
    absent = opdbench("runs", "import", tmp_path / "absent.zip", "--out", tmp_path / "new")
    assert (absent.returncode, "no archive" in absent.stderr) == (2, True)


def test_a_run_that_is_damaged_or_lacks_a_stage_is_not_archived(run, tmp_path):
    shutil.rmtree(run.parent / "stages" / RunRecord.load(run).stages[0].digest)
    done = opdbench("runs", "archive", run, "--to", tmp_path / "b.zip")
    assert (done.returncode, "is absent; run it again" in done.stderr) == (2, True)
    rows = next((run / "samples").glob("*.jsonl"))
    rows.write_text(rows.read_text()[:-5])
    done = opdbench("runs", "archive", run, "--to", tmp_path / "b.zip")
    assert (done.returncode, "has another samples/" in done.stderr) == (2, True)
    write_sealed(run / "record.json", {"schema": 99})
    assert opdbench("runs", "archive", run, "--to", tmp_path / "b.zip").returncode == 2
    assert not (tmp_path / "b.zip").exists()
