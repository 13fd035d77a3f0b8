"""Findings in the forms that continuous integration reads: JUnit's XML, and annotations of GitHub's workflows."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence

from opdbench.leaderboards.check.verdict import Finding, Verdict
from opdbench.leaderboards.tables.formats import visible

JUNIT: dict[Verdict, str] = {
    "diverged": "failure", "inconclusive": "error", "not comparable": "error", "skipped": "skipped",
}  # fmt: skip
LEVELS: dict[Verdict, str] = {"diverged": "error", "inconclusive": "warning", "not comparable": "warning"}


def junit(findings: Sequence[Finding]) -> str:
    """One test suite per layer and one test case per finding; a finding that is not reproduced fails its case."""
    suites = ElementTree.Element("testsuites", name="opdbench check")
    for layer in dict.fromkeys(finding.layer for finding in findings):
        same = [finding for finding in findings if finding.layer == layer]
        suite = ElementTree.SubElement(suites, "testsuite", name=layer, tests=str(len(same)))
        for kind, name in (("failure", "failures"), ("error", "errors"), ("skipped", "skipped")):
            suite.set(name, str(sum(JUNIT.get(finding.verdict) == kind for finding in same)))
        for finding in same:
            classname = f"opdbench.check.{layer}"
            case = ElementTree.SubElement(suite, "testcase", name=visible(finding.subject), classname=classname)
            if finding.verdict in JUNIT:
                detail = visible(finding.detail)
                about = ElementTree.SubElement(case, JUNIT[finding.verdict], message=detail)
                if finding.verdict != "skipped":
                    about.set("type", finding.verdict)
            output = ElementTree.SubElement(case, "system-out")
            output.text = visible(finding.detail) + "\n$ " + visible(finding.command)
    ElementTree.indent(suites)
    return ElementTree.tostring(suites, encoding="unicode", xml_declaration=True) + "\n"


def github(findings: Sequence[Finding]) -> str:
    """One workflow command per finding: an error for diverged, a warning for open ones, else a notice."""
    lines = []
    for finding in findings:
        title = _escaped(f"{finding.layer}: {finding.subject}").replace(":", "%3A").replace(",", "%2C")
        text = _escaped(f"{finding.verdict}: {finding.detail}\n{finding.command}")
        lines.append(f"::{LEVELS.get(finding.verdict, 'notice')} title={title}::{text}\n")
    return "".join(lines)


def _escaped(text: str) -> str:
    """As GitHub's toolkit escapes the data of a command."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
