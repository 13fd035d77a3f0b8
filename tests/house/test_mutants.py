"""`opdbench check` sees planted faults; the whole study is `python tests/mutants.py`."""

from __future__ import annotations

import pytest
from mutants import FAULTS, ROOT, judge, plant

from opdbench.environment import environment
from opdbench.leaderboards.check import repeat
from opdbench.leaderboards.check.reference import Reference

TOLERANCE = {"loss": 1e-4, "grad_norm": 1e-4, "score": 1e-6}
"""Several times what `opdbench check --record` measures, as one run is to do here."""


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_every_fault_can_be_planted(fault):
    source = (ROOT / fault.file).read_text(encoding="utf-8")
    assert source.count(fault.before) == 1
    compile(source.replace(fault.before, fault.after), fault.file, "exec")


@pytest.fixture(scope="module")
def references(tmp_path_factory):
    """What the package does now."""
    place = tmp_path_factory.mktemp("reference")
    run = repeat.short_run(place / "run", {"OMP_NUM_THREADS": "1"})
    Reference(environment(), repeat.figures(run), TOLERANCE, ()).save(place / "references.json")
    return place / "references.json"


@pytest.mark.campaign
def test_the_trajectory_layer_sees_it_and_names_the_student(references, tmp_path):
    (fault,) = (fault for fault in FAULTS if fault.name == "teachers swapped")
    verdict, detail = judge(plant(fault, tmp_path / "site"), references, "trajectory")
    assert verdict == "diverged"
    assert detail.startswith("student update 1")
