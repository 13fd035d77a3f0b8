"""Tables of `opdbench bench`: rates against the machine's limits, shares of an update, ratios."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from opdbench.leaderboards.tables.document import Block, block_of, plain

SHARE = re.compile(r"share_of_update\[(.+)\]")
SCORED = re.compile(r"scored_per_second\[(.+)\]")


@dataclass(frozen=True)
class Line:
    """A row of the first table.

    Attributes:
        key: name of the figure.
        text: what it is.
        limit: name of the figure that is its share of the limit; "" if it has none.
    """

    key: str
    text: str
    limit: str = ""


LINES = (
    Line("update_seconds", "seconds per update", "flops_utilisation_update"),
    Line("forwards_per_second", "denoiser forwards per second of a rollout", "flops_utilisation_rollout"),
    Line("images_per_second", "pictures walked and decoded per second"),
    Line("matmul_peak_tflops", "limit: matrix products, TFLOP/s"),
    Line("memory_gb_per_second", "limit: memory, GB/s"),
    Line("peak_mib", "peak memory, MiB"),
    Line("compared_records_per_second", "scored pictures that compare reads per second"),
    Line("load_seconds", "seconds to load the model in a new process"),
    Line("help_seconds", "seconds of --help"),
)
RATIOS = {
    "peft_update_over_update": "the first edition's update (PEFT's LoRA layers)",
    "default_two_pass_over_update": "the official two-pass loop with the libraries' defaults",
}


def speed_blocks(figures: Mapping[str, float], stopped: str = "") -> list[Block]:
    """Tables of the figures that are there.

    Args:
        figures: by name, as `opdbench bench --format json` prints them.
        stopped: why the measurement ended early; "" if it did not.
    """
    lines = [line for line in LINES if line.key in figures]
    names, values = [line.text for line in lines], [f"{figures[line.key]:,.4g}" for line in lines]
    limits = [f"{figures[line.limit]:.0%} of the matrix peak" if line.limit in figures else "" for line in lines]
    for key, value in figures.items():
        if task := SCORED.fullmatch(key):
            names.append(f"pictures judged per second: {task[1]}")
            values.append(f"{value:,.4g}")
            limits.append("")
    notes = [f"{figures['pictures_per_update']:.0f} pictures per update; medians of the rounds"]
    notes += [f"ended early: {stopped}; figures that are missing were not measured"] if stopped else []
    blocks = [block_of("this machine", [plain("figure", names), plain("value", values), plain("limit", limits)], notes)]
    shares = {match[1]: value for key, value in figures.items() if (match := SHARE.fullmatch(key))}
    if shares:
        percents = [f"{100 * value:.1f}" for value in shares.values()]
        note = "parts run one after another; the backward is what is left of the fused walk"
        blocks.append(block_of("an update", [plain("part", list(shares)), plain("% of the time", percents)], [note]))
    ratios = {text: figures[key] for key, text in RATIOS.items() if key in figures}
    if ratios:
        times = [f"{value:.2f}" for value in ratios.values()]
        blocks.append(block_of("times as long as an update", [plain("loop", list(ratios)), plain("times", times)]))
    return blocks
