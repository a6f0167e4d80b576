"""The group report: one HTML page and its tables as CSV (``rtevo study report``)."""

from __future__ import annotations

import math
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rtevo import __version__
from rtevo.command import Parser, command
from rtevo.record import RecordedSession, image_path
from rtevo.report import Session, gather
from rtevo.report.page import render, svg, thumbnail
from rtevo.study import figures
from rtevo.study.checklist import SOURCE, Item, checklist
from rtevo.study.group import Comparison, Group, GroupRun, gather_group
from rtevo.study.loading import folder_of, load

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["group_page", "main", "tables", "write"]

IMAGES = ("participant", "visit", "run", "generation", "score", "se", "true_response", "step", "progress", "level")
"""Columns of the table of images, without hints to an arm."""
BEST = 3  # number of pictures of a participant's first and last generation
_PACKAGES = ("numpy", "pandas", "scipy", "statsmodels", "matplotlib")


def write(group: Group, name: str, out: Path) -> list[Path]:
    """Write page and tables; return their paths.

    Parameters
    ----------
    group : Group
    name : str
        Name of the study.
    out : Path
        Folder; made if it does not exist.
    """
    session = _a_run(group)
    items = checklist(group, session)
    out.mkdir(parents=True, exist_ok=True)
    paths = [out / "report.html"]
    paths[0].write_text(group_page(group, name, items), encoding="utf-8")
    for title, table in tables(group, items).items():
        path = out / f"{title}.csv"
        table.to_csv(path, index=False)
        paths.append(path)
    return paths


def _a_run(group: Group) -> Session | None:
    """Return a counting run, whose settings represent all."""
    return next((gather(run.folder) for run in group.loops if run.folder in group.sessions), None)


def tables(group: Group, items: Sequence[Item]) -> dict[str, DataFrame]:
    """Return the report's tables by name; those of arms only if these are unsealed.

    Parameters
    ----------
    group : Group
    items : sequence of Item
        Of the checklist.
    """
    import pandas as pd

    found = {
        "participants": group.participants.rename_axis("participant").reset_index(),
        "trajectories": group.trajectories().rename(columns={"who": "participant"}),
        "images": group.course.images[[name for name in IMAGES if name in group.course.images]],
        "exclusions": pd.DataFrame(_exclusions(group), columns=["participant", "visit", "run", "kind", "status", "reason"]),
        "checklist": pd.DataFrame(map(asdict, items)),
    }
    if group.arms:
        found["arms"] = group.arm_trajectories().rename(columns={"who": "arm"})
        found["effects"] = pd.DataFrame([_flat(each) for each in (*group.effects, *group.motion)])
    return found


def _flat(each: Comparison) -> dict[str, Any]:
    """Return a comparison as a row."""
    row = {
        "what": each.what,
        "treated_arm": each.treated,
        "control_arm": each.control,
        **asdict(each.effect),
        "adjusted_p": each.adjusted_p,
    }
    row["alone"] = " ".join(each.effect.alone)
    if each.mixed is not None:
        row |= {f"mixed_{name}": value for name, value in asdict(each.mixed).items()}
    return row


def _exclusions(group: Group) -> list[dict[str, Any]]:
    """Return the runs that do not count, and the participants without a counting run."""
    rows = [
        {
            "participant": run.participant,
            "visit": run.visit,
            "run": run.run,
            "kind": run.kind,
            "status": run.status,
            "reason": run.excluded or run.status,
        }
        for run in group.excluded
    ]
    nothing = group.participants.index[group.participants["images"] == 0]
    return rows + [
        {"participant": who, "visit": "", "run": "", "kind": "all", "status": "", "reason": "no loop that counts"} for who in nothing
    ]


# --- the page ----------------------------------------------------------------------------------------------------------------------------


def group_page(group: Group, name: str, items: Sequence[Item]) -> str:
    """Return the report as HTML that loads nothing from elsewhere.

    Parameters
    ----------
    group : Group
    name : str
        Of the study.
    items : sequence of Item
        Of the checklist.
    """
    effect_height = 0.9 + 0.5 * len(group.effects)
    return render(
        Path(__file__).parent / "report.html",
        name=name,
        lead=_lead(group),
        unsealed=bool(group.arms),
        cards=_cards(group),
        fixed=_fixed(group),
        zero=_zero(group),
        courses=svg(4.2, [1], lambda axes: figures.courses(axes[0], group)),
        dots=svg(4.0, [1], lambda axes: figures.participants(axes[0], group)),
        forest=svg(effect_height, [1], lambda axes: figures.effects(axes[0], group.effects), left=0.14) if group.effects else "",
        effects=[_effect_row(each) for each in group.effects],
        motion=[_effect_row(each) for each in group.motion],
        notes=_notes(group),
        pictures=_pictures(group),
        participants=_participants(group),
        exclusions=[list(row.values()) for row in _exclusions(group)],
        items=items,
        source=SOURCE,
        stands=next((f"participant {r.participant}, visit {r.visit}, run {r.run}" for r in group.loops if r.folder in group.sessions), ""),
        provenance=_provenance(group),
    )


def _lead(group: Group) -> str:
    numbers = [f"{arm}: {sum(a == arm for a in group.arms.values())}" for arm in sorted(set(group.arms.values()))]
    arms = ", ".join(numbers) if numbers else "arms sealed"
    out = len(group.excluded)
    left_out = f"{out} run{'s' if out > 1 else ''} left out" if out else "none left out"
    return f"{len(group.participants)} participants ({arms})  |  {len(group.loops)} loops that count, {left_out}"


def _number(value: float, digits: int = 2) -> str:
    return "–" if math.isnan(value) else f"{value:+.{digits}f}" if math.isfinite(value) else ("∞" if value > 0 else "−∞")


def _p(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.4f}" if value >= 1e-4 else f"{value:.1e}"


def _cards(group: Group) -> list[tuple[str, str, str]]:
    known = group.participants["summary"].dropna()
    cards = [
        ("Participants with a result", f"{len(known)}", f"of {len(group.participants)}"),
        ("Images", f"{len(group.course.images)}", f"in {len(group.loops)} runs"),
        (f"{group.analysis.summary.capitalize()}, all together", _number(float(known.mean())), f"SD over participants {known.std():.2f}"),
    ]
    for each in group.effects:
        e = each.effect
        cards.append((f"{each.treated} − {each.control}", _number(e.estimate), f"{_number(e.low)} to {_number(e.high)}; p = {_p(e.p)}"))
    return cards


def _fixed(group: Group) -> str:
    what = {
        "gain": "the mean score of the last third of a participant's images less that of the first third",
        "slope": "the rise of a line through a participant's scores, from the first image to the last",
    }[group.analysis.summary]
    return f"Fixed before the study: one number a participant, {what}. Test at {group.analysis.level:g}, two-sided."


def _zero(group: Group) -> str:
    if not group.course.loose:
        several = (group.participants["runs"] > 1).any()
        return (
            "Scores of a participant's runs are on one zero, by the probes that they share."
            if several
            else "No participant has more than one run."
        )
    return (
        "Absolute gain across runs is not identified: scores of different runs share no zero, and no probes connect the runs of "
        f"{', '.join(group.course.loose)}. For all participants, the number is therefore the mean over runs of the number within a run; "
        "levels of different runs cannot be compared."
    )


def _effect_row(each: Comparison) -> list[str]:
    e, m = each.effect, each.mixed
    row = [each.what, f"{each.treated} − {each.control}", f"{e.treated} + {e.control}", _number(e.estimate, 3)]
    row += [
        f"{_number(e.low, 3)} to {_number(e.high, 3)}",
        _p(e.p),
        _p(each.adjusted_p),
        f"{_p(e.smallest_p)} ({e.allocations}{'' if e.exact else ', drawn'})",
    ]
    mixed = "–" if m is None else f"{_number(m.estimate, 3)} ({_number(m.low, 3)} to {_number(m.high, 3)}), p = {_p(m.p)}"
    return [*row, mixed + ("" if m is None or m.converged else ", not converged")]


def _notes(group: Group) -> list[str]:
    """Return notes for readers of the effects."""
    notes = []
    for each in group.effects:
        name = f"{each.treated} − {each.control}"
        if each.effect.alone:
            notes.append(
                f"{name}: left out, because the pair or block has no participant left in the other arm: {', '.join(each.effect.alone)}."
            )
        if each.effect.smallest_p > group.analysis.level:
            notes.append(
                f"{name}: {each.effect.allocations} allocations cannot reject at {group.analysis.level:g}, whatever the data: too few "
                "participants."
            )
        if each.without:
            notes.append(f"{name}: no mixed model ({each.without}).")
    return notes


def _participants(group: Group) -> list[list[str]]:
    """Return the rows of the table of participants."""
    rows = []
    for who, p in group.participants.iterrows():
        arm = f"{p['arm']}, {p['block']}" if group.arms else "sealed"
        row = [str(who), arm, f"{p['runs']:.0f}", f"{p['images']:.0f}", _number(p["summary"])]
        row += ["–" if math.isnan(value) else f"{value:.2f}" for value in (p["se"], p["displacement_mm"])]
        rows.append([*row, _number(p["true_summary"])])
    return rows


def _pictures(group: Group) -> list[dict[str, Any]]:
    """Return the fittest pictures of each participant's first and last generation."""
    rows = []
    order = sorted(
        group.participants.index, key=lambda who: (group.arms.get(who, "") != group.analysis.treated, group.arms.get(who, ""), who)
    )
    for who in order:
        own = [run for run in group.loops if run.participant == who and run.folder in group.sessions]
        if own:
            ends = (_fittest(group.sessions[own[0].folder], own[0], 0), _fittest(group.sessions[own[-1].folder], own[-1], -1))
            rows.append({"who": who, "arm": group.arms.get(who, ""), "first": ends[0], "last": ends[1]})
    return rows


def _fittest(session: RecordedSession, run: GroupRun, which: int) -> list[dict[str, str]]:
    """Return the pictures with the highest scores in a run's first (0) or last (-1) scored generation."""
    trials = session.trials
    scored = trials[trials["probe"].isna() & trials["score"].notna()]
    if scored.empty:
        return []
    generation = sorted(scored["generation"].unique())[which]
    best = scored[scored["generation"] == generation].nlargest(BEST, "score")
    return [
        {
            "data": thumbnail(image_path(session.out, int(row["generation"]), int(row["candidate"]))),
            "label": f"{row['score']:+.2f}",
            "title": f"visit {run.visit}, run {run.run}, generation {row['generation']:.0f}, image {row['candidate']:.0f}",
        }
        for _, row in best.iterrows()
    ]


def _provenance(group: Group) -> list[tuple[str, str]]:
    """Return the software that recorded the runs, and that made this page."""
    recorded = sorted({version for session in group.sessions.values() for version in session.versions})
    found = {d.metadata["Name"].lower(): d.version for d in metadata.distributions() if d.metadata["Name"].lower() in _PACKAGES}
    packages = ", ".join(f"{name} {found[name]}" for name in _PACKAGES if name in found)
    return [
        ("runs were recorded by", ", ".join(f"rtevo {version}" for version in recorded) or "not recorded"),
        ("this page was made by", f"rtevo {__version__}, Python {platform.python_version()}, {packages}"),
    ]


# --- the command line --------------------------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line, and return the exit status."""
    p = Parser(
        prog="python -m rtevo.study report",
        description="Write the group report: courses of participants and arms, the effect by a randomisation test over the sealed "
        "allocation with its interval, a mixed model beside it, pictures, exclusions, the CRED-nf checklist; one HTML page and tables as "
        "CSV. While the study is sealed it shows all participants together, without arms.",
    )
    p.add_argument("--study", type=Path, metavar="FOLDER", help="the study's folder (default: the current one, or one above it)")
    p.add_argument("--to", type=Path, metavar="DIR", help="folder to write into (default: report, in the study's)")
    options = p.parse_args(arguments)

    def work() -> None:
        study = load(folder_of(options.study))
        group = gather_group(study, study.file.analysis)
        print("\n".join(map(str, write(group, study.file.study.name, options.to or study.folder / "report"))))

    return command(work)


if __name__ == "__main__":
    sys.exit(main())
