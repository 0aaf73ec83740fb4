"""Published claims, each with a verdict that follows from `results/` by a stated rule."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from diffmix.experiments.results import read_result

Verdict = Literal["holds", "does not hold", "undecided", "not measured yet"]


@dataclasses.dataclass(frozen=True)
class Finding:
    """What a result says about a claim."""

    verdict: Verdict
    numbers: str
    written_by: str | None = None  # the command that the result names as its own


@dataclasses.dataclass(frozen=True)
class Claim:
    """A claim, how it is judged, on which result, and what measures that."""

    statement: str
    rule: str
    result: str  # results/RESULT.json
    command: str
    judge: Callable[[Mapping[str, Any]], Finding]


class RowMissingError(Exception):
    """A result was written without the row that a claim is about."""


def judge_claims(claims: Sequence[Claim], results: Path) -> list[tuple[Claim, Finding]]:
    """Every claim with its finding; a claim whose result is missing is not measured yet."""
    found = []
    for claim in claims:
        path = results / f"{claim.result}.json"
        finding = Finding("not measured yet", f"`{claim.command}` measures it")
        if path.is_file():
            try:
                result = read_result(path)
                finding = dataclasses.replace(claim.judge(result), written_by=result.get("command"))
            except RowMissingError as missing:
                finding = Finding(
                    "not measured yet", f"the result holds no row of {missing}; `{claim.command}` measures it"
                )
        found.append((claim, finding))
    return found


def claims_table(claims: Sequence[Claim], results: Path) -> str:
    """`claims` as Markdown, one section each: the verdict, the numbers, the rule, the result they come from."""
    judged = judge_claims(claims, results)
    lines = ["| claim | verdict |", "|---|---|"]
    lines += [f"| {claim.statement} | **{finding.verdict}** |" for claim, finding in judged]
    for claim, finding in judged:
        source = f"`results/{claim.result}.json`, written by `{finding.written_by or claim.command}`"
        numbers = finding.numbers[:1].upper() + finding.numbers[1:]
        lines += ["", f"### {claim.statement}", "", f"**{finding.verdict.capitalize()}.** {numbers}.", ""]
        lines += [f"- Rule: {claim.rule}.", f"- Source: {source}."]
    return "\n".join(lines)


def by_interval(low: float, high: float, target: float) -> Verdict:
    """Whether a number reaches `target`, by its interval."""
    if low >= target:
        return "holds"
    return "does not hold" if high < target else "undecided"
