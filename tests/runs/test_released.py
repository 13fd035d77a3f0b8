"""Adapters of other people: both layouts load to the same function, and what is incomplete is refused."""

from __future__ import annotations

import json

import pytest
import torch
from command import opdbench
from safetensors.torch import save_file

from opdbench.diffusion import adapter_files, adapters
from opdbench.diffusion.adapters import ATTENTION, Adapter, Lora
from opdbench.errors import UserError
from opdbench.records.run import RunRecord
from opdbench.registry import recipe
from opdbench.runs import released
from opdbench.runs.budget import plan

LORA = Lora(4, 8, ATTENTION)


@pytest.fixture(scope="module")
def adapter(model):
    names = adapters.read(model.student(LORA, 1.0, 0).network)
    generator = torch.Generator().manual_seed(0)
    return Adapter({k: 0.1 * torch.randn(t.shape, generator=generator) for k, t in names.items()}, LORA)


@pytest.fixture
def peft_folder(adapter, tmp_path):
    return write(tmp_path / "OCRTeacher" / "lora", adapter)


def write(folder, adapter, scale=1.0):
    """PEFT's layout."""
    folder.mkdir(parents=True)
    tensors = {adapter_files.PEFT_PREFIX + k: scale * t for k, t in adapter.tensors.items()}
    save_file(tensors, folder / adapter_files.WEIGHTS)
    settings = {"r": 4, "lora_alpha": 8, "target_modules": list(ATTENTION), "use_dora": False, "rank_pattern": {}}
    (folder / adapter_files.CONFIG).write_text(json.dumps(settings))
    return folder


def rewrite(folder, change):
    """The adapter in `folder` with its tensors changed."""
    tensors, _ = adapters.read_file(folder / adapter_files.WEIGHTS)
    change(tensors)
    save_file(tensors, folder / adapter_files.WEIGHTS)


def test_peft_itself_writes_what_is_read(model, adapter, tmp_path):
    from peft import PeftModel, get_peft_model, set_peft_model_state_dict

    network = get_peft_model(model.frozen(None, 1.0).network.__class__.from_config(model.base.config), LORA.config())
    assert isinstance(network, PeftModel)
    set_peft_model_state_dict(network, {adapter_files.PEFT_PREFIX + k: t for k, t in adapter.tensors.items()})
    network.save_pretrained(tmp_path)
    found = released.fetch(str(tmp_path))
    assert found.lora == LORA
    assert all(torch.equal(found.tensors[k], t) for k, t in adapter.tensors.items())


def test_peft_layout(model, adapter, peft_folder):
    found = released.fetch(str(peft_folder))
    released.check(found, model.base, "x")
    assert {k: t.tolist() for k, t in found.tensors.items()} == {k: t.tolist() for k, t in adapter.tensors.items()}
    assert (found.lora.rank, found.lora.alpha) == (4, 8)


def test_diffusers_layout_with_and_without_settings(model, adapter, tmp_path):
    adapter.save(tmp_path / adapter_files.DIFFUSERS_WEIGHTS)
    found = released.fetch(str(tmp_path))
    released.check(found, model.base, "x")
    assert found.lora.alpha == 8
    bare = tmp_path / "bare.safetensors"
    save_file({f"transformer.{k}": t for k, t in adapter.tensors.items()}, bare)
    found = released.fetch(str(bare))
    released.check(found, model.base, "x")
    # As diffusers reads a file without settings.
    assert found.lora == Lora(4, 4, ATTENTION)


@pytest.mark.parametrize("gone", ["transformer_blocks.2.attn.to_k.lora_A.weight", "transformer_blocks.0.attn.to_q."])
def test_a_missing_tensor_is_an_error_not_a_zero(model, peft_folder, gone):
    def drop(tensors):
        for name in [n for n in tensors if gone in n]:
            del tensors[name]

    rewrite(peft_folder, drop)
    with pytest.raises(UserError, match="lacks"):
        released.check(released.fetch(str(peft_folder)), model.base, "x")


def test_what_does_not_fit_is_refused(model, peft_folder, tmp_path):
    name = f"{adapter_files.PEFT_PREFIX}transformer_blocks.0.attn.to_q.lora_A.weight"
    rewrite(peft_folder, lambda t: t.update({name: torch.zeros(4, 3)}))
    with pytest.raises(UserError, match=r"to_q.lora_A.weight is \(4, 3\); expected \(4, 128\)"):
        released.check(released.fetch(str(peft_folder)), model.base, "x")
    rewrite(peft_folder, lambda t: t.update({name: torch.zeros(5, 128)}))
    with pytest.raises(UserError, match=r"ranks \[4, 5\]"):
        released.fetch(str(peft_folder))
    rewrite(peft_folder, lambda t: t.update({"norm.weight": torch.zeros(3)}))
    with pytest.raises(UserError, match="LoRA matrices alone"):
        released.fetch(str(peft_folder))
    (peft_folder / adapter_files.CONFIG).write_text('{"use_dora": true}')
    with pytest.raises(UserError, match="use_dora"):
        released.fetch(str(peft_folder))
    (peft_folder / adapter_files.CONFIG).unlink()
    with pytest.raises(UserError, match="needs it"):
        released.fetch(str(peft_folder))
    with pytest.raises(UserError, match=r"expected adapter_model\.safetensors"):
        released.fetch(str(tmp_path))
    with pytest.raises(UserError, match="owner/name"):
        released.fetch("nothing")


def test_offline_the_hub_is_one_clear_line(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="cannot fetch the adapter 'nobody/nothing/OCRTeacher/lora'"):
        released.fetch("nobody/nothing/OCRTeacher/lora")


SHORT = ["--limit", "1", *(word for key in ("start.updates=1", "start.prompts=3", "student.updates=1",
         "student.prompts=2", "base_sampler.steps=1", "student.eval_sampler.steps=1", "teacher.eval_sampler.steps=1",
         "student.sampler.steps=2", "start.sampler.steps=1") for word in ("--set", key))]  # fmt: skip


def test_a_run_takes_a_release_in_place_of_its_teachers(adapter, tmp_path):
    for k, folder in enumerate(dict.fromkeys(released.FOLDERS.values())):
        write(tmp_path / "release" / folder, adapter, 0.1 * (k + 1))
    args = ["run", *SHORT, "--out", tmp_path / "runs", "--teachers"]
    done = opdbench(*args, tmp_path / "release", "--jobs", "1", "--format", "json")
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "runs").glob("opd+released-*")
    record = RunRecord.load(folder)
    assert [(s.name, s.loss, s.reused, s.meter.total() > 0) for s in record.stages] == [
        ("start", "opd", False, True),
        ("teacher-ocr", "released", True, False),
        ("teacher-geneval", "released", True, False),
        ("student", "opd", False, True),
    ]
    assert {p.name for p in record.policies} == {"base", "teacher-ocr", "teacher-geneval", "student"}
    about = json.loads((tmp_path / "runs" / "stages" / record.stages[1].digest / "stage.json").read_text())
    assert about["place"] == str(tmp_path / "release" / "OCRTeacher" / "lora")
    kept = adapters.Adapter.load(tmp_path / "runs" / "stages" / record.stages[1].digest / "adapter.safetensors")
    assert kept.digest() == released.fetch(about["place"]).digest()
    # The weights count, not where they are.
    (tmp_path / "release").rename(tmp_path / "moved")
    places = {task: tmp_path / "moved" / folder for task, folder in released.FOLDERS.items()}
    two = [f"ocr={places['ocr']}", "--teachers", f"geneval={places['geneval']}"]
    assert "is finished" in opdbench(*args, *two).stderr
    rewrite(places["geneval"], lambda tensors: tensors.update({k: 2 * t for k, t in tensors.items()}))
    lines = opdbench(*args, *two, "--dry-run").stdout.splitlines()
    assert [line.split()[-1] for line in lines[:4]] == ["finished", "released", "released", "train"]
    assert [one.digest in line for one, line in zip(record.stages, lines, strict=False)] == [True, True, False, False]


def test_stages_that_only_a_replaced_teacher_needs_are_left_out(adapter):
    def stages(name, *tasks):
        found = released.replace_teachers(
            plan(recipe(name), ("ocr", "geneval")), dict.fromkeys(tasks, released.GivenAdapter("x", adapter))
        )
        return [(stage.name, stage.loss) for stage in found.stages]

    teachers = [("teacher-ocr", "released"), ("teacher-geneval", "released")]
    assert stages("teachers", "ocr", "geneval") == teachers
    assert stages("merge", "ocr", "geneval") == [*teachers, ("student", "merge")]
    assert stages("teachers", "ocr") == [("start", "opd"), teachers[0], ("teacher-geneval", "nft")]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--teachers", "orc=x"], "expected task=place with one of the tasks ocr, geneval"),
        (["--teachers", "ocr="], "expected task=place"),
        (["--teachers", "ocr=a", "--teachers", "b"], "has its adapter already"),
        (["--teachers", "{}"], "/OCRTeacher/lora/OCRTeacher/lora'; expected a file, a folder, or owner/name"),
        (["--method", "cascade-rl", "--teachers", "ocr={}"], "'cascade-rl' trains no teacher of 'ocr'"),
        (["--teachers", "ocr={}", "--tasks", "ocr", "--method", "opd,base"], "'base' trains no teacher"),
    ],
)
def test_bad_places_are_one_clear_line(args, message, peft_folder, tmp_path):
    done = opdbench("run", *(a.format(peft_folder) for a in args), "--out", tmp_path / "runs")
    assert (done.returncode, len(done.stderr.strip().splitlines())) == (2, 1), done.stderr
    assert message in done.stderr


def test_an_incomplete_release_is_refused_by_name(peft_folder, tmp_path):
    rewrite(peft_folder, lambda tensors: tensors.pop(next(name for name in tensors if "lora_B" in name)))
    done = opdbench("run", "--teachers", f"ocr={peft_folder}", "--out", tmp_path / "runs")
    assert (done.returncode, len(done.stderr.strip().splitlines())) == (2, 1)
    assert f"adapter {str(peft_folder)!r} lacks the tensor" in done.stderr
