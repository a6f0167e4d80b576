"""How well today's head is found, and how well that is known, on this machine, beside its peers.

``python bench/bench_place.py [known] [others] [speed] [--cases N] [--peers-every N] [--json FILE]`` prints tables. Known placements
(:mod:`placements`) are drawn from seeds that nothing was tuned on; every result is a line of a JSON lines file at once, so a run that
was ended goes on where it was.

* known: placements whose truth is known, two thirds of them of four real heads: success (mean error over the brain under 1 mm), error,
  verdicts, and how the expected error holds; peers on every n-th case, and this project's figures on exactly those cases.
* others: another person's head, which must never be called good: all pairs of real heads, real heads warped smoothly, simulated heads.
* speed: one call at two sizes, after the first; placing is checked before it is timed.

``--picture FILE`` draws one placement of a simulated head. Peers that are not installed (``pip install -e ".[bench]"``) are named and left
out.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

os.environ.setdefault("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "1")  # read by ANTs when it is loaded
sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
from bench_realign import machine
from place_peers import PEERS, Peer
from placements import HEADS, REAL, Case, _box, _rician, make_case, mean_error, other_person, sampled, source

from rtevo.kernels.rigid import matrix_from_params
from rtevo.place import Placement, draw_placement, judge, place, warm_up
from rtevo.records import Grid

PICTURE_SEED = 1006
FIRST_SEED, OTHERS_SEED, PERSONS = 50_000, 60_000, 700  # those below are for tuning
SHARES = (*REAL, *REAL, *HEADS[4:])  # of the cases: two thirds real
SPEEDS = {"80 x 80 x 35": ((80, 80, 35), (3.0, 3.0, 3.3)), "104 x 104 x 72": ((104, 104, 72), (2.0, 2.0, 2.0))}
SUCCESS_MM, SILENT_MM = 1.0, 2.0
Row = dict[str, Any]


class Results:
    """Rows of a JSON lines file, by part and key."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[tuple[str, str], Row] = {}
        if path.exists():
            for line in path.read_text().splitlines():
                row = json.loads(line)
                self.rows[row["part"], row["key"]] = row

    def get(self, part: str, key: str, make: Callable[[], Row]) -> Row:
        """Return the row, after making and writing it if it does not exist."""
        if (part, key) not in self.rows:
            row = {"part": part, "key": key, **make()}
            self.rows[part, key] = row
            with self.path.open("a") as file:
                file.write(json.dumps(row) + "\n")
        return self.rows[part, key]


def _ours(case: Case) -> Row:
    start, used = time.perf_counter(), time.process_time()
    found = place(case.reference, case.grid, case.today, case.today_grid)
    took = {"wall_s": round(time.perf_counter() - start, 3), "cpu_s": round(time.process_time() - used, 3)}
    return {"about": case.about, "error_mm": mean_error(found.matrix, case), **found.as_dict(), **took}


def _theirs(peer: Peer, case: Case) -> Row:
    start = time.perf_counter()
    try:
        error = mean_error(peer.place(case.reference, case.grid, case.today, case.today_grid), case)
    except (RuntimeError, ValueError) as trouble:
        return {"error_mm": 999.0, "wall_s": round(time.perf_counter() - start, 3), "trouble": str(trouble)[-200:]}
    return {"error_mm": error, "wall_s": round(time.perf_counter() - start, 3)}


def _available(names: Iterable[str]) -> list[str]:
    """Return the heads whose files are here."""
    found = []
    for name in dict.fromkeys(names):
        try:
            source(name)
            found.append(name)
        except FileNotFoundError as error:
            print(f"left out: {name}: {error}")
    return found


# --- known placements


def known(results: Results, count: int, every: int, kinds: list[type[Peer]]) -> list[Row]:
    """Place known cases; every n-th also by the peers."""
    heads = [name for name in SHARES if name in _available(SHARES)]
    peers = []
    for kind in kinds:
        try:
            peers.append(kind())
        except ImportError as error:
            print(f"left out: {kind.name}: {error}")
    rows = []
    for n in range(count):
        name, seed = heads[n % len(heads)], FIRST_SEED + n
        wanted = [p for p in peers if every and n % every == 0]
        missing = [("known", str(n))] + [(p.name, str(n)) for p in wanted]
        case = make_case(name, seed) if any(k not in results.rows for k in missing) else None
        rows.append(results.get("known", str(n), lambda case=case: _ours(case)))
        for peer in wanted:
            results.get(peer.name, str(n), lambda peer=peer, case=case: _theirs(peer, case))
    return rows


def _percent(values: Iterable[bool]) -> str:
    found = list(values)
    return f"{100 * sum(found) / len(found):.1f}%" if found else "-"


CONDITIONS: dict[str, Callable[[Row], bool]] = {
    "all": lambda a: True,
    "coverage 60% or more": lambda a: a["coverage"] >= 0.6,
    "coverage under 60%": lambda a: a["coverage"] < 0.6,
    "real heads, 60% or more": lambda a: a["head"] in REAL and a["coverage"] >= 0.6,
    "simulated heads, 60% or more": lambda a: a["head"] not in REAL and a["coverage"] >= 0.6,
    **{f"{h}, 60% or more": lambda a, h=h: a["head"] == h and a["coverage"] >= 0.6 for h in REAL},
    **{o: lambda a, o=o: a["orientation"] == o for o in ("axial", "coronal", "sagittal", "oblique")},
    "reference cut": lambda a: a["cut"] == "reference" and a["coverage"] < 0.95,
    "today cut": lambda a: a["cut"] == "today" and a["coverage"] < 0.95,
    "shift over 25 mm and turn over 25 degrees": lambda a: a["shift_mm"] > 25 and a["turn_deg"] > 25,
    "contrast the same": lambda a: a["contrast"] == "same",
    "contrast by a power": lambda a: a["contrast"] == "power",
    "fluid no longer bright": lambda a: a["contrast"] == "fluid",
    "coil shading": lambda a: a["shaded"],
    "dropout": lambda a: a["dropout"],
    "fat and background": lambda a: a["fat"],
    "distorted (smooth, 0.8 to 1.6 mm)": lambda a: a["distorted"],
    "neither distorted nor fat, 60% or more": lambda a: not (a["distorted"] or a["fat"]) and a["coverage"] >= 0.6,
    "voxels over 3.4 mm": lambda a: max(a["voxel_mm"]) > 3.4,
}


def print_known(rows: list[Row], results: Results) -> None:
    """One table by condition, one of the expected error, one of the peers."""
    print("\n| known placements | n | under 1 mm | median mm | p90 | p99 | max | good | doubtful | bad | good and over 2 mm |")
    print("|---" * 11 + "|")
    for name, chosen in CONDITIONS.items():
        part = [r for r in rows if chosen(r["about"])]
        if not part:
            continue
        errors = np.array([r["error_mm"] for r in part])
        p50, p90, p99 = np.percentile(errors, [50, 90, 99])
        words = [sum(r["verdict"] == v for r in part) for v in ("good", "doubtful", "bad")]
        silent = sum(r["verdict"] == "good" and r["error_mm"] > SILENT_MM for r in part)
        numbers = f"{p50:.3f} | {p90:.2f} | {p99:.2f} | {errors.max():.2f} | {' | '.join(map(str, words))} | {silent}"
        print(f"| {name} | {len(part)} | {_percent(errors < SUCCESS_MM)} | {numbers} |")
    enough = [r for r in rows if r["about"]["coverage"] >= 0.6]
    within = _percent(r["error_mm"] <= 2 * r["expected_error_mm"] for r in rows)
    print(f"\ncalled good, of those with 60% coverage or more: {_percent(r['verdict'] == 'good' for r in enough)}")
    print(f"errors within twice the expected error: {within} (of those called good: "
          f"{_percent(r['error_mm'] <= 2 * r['expected_error_mm'] for r in rows if r['verdict'] == 'good')})")  # fmt: skip
    for name in ("wall_s", "cpu_s"):
        print(f"time, {name}: p50 {np.median([r[name] for r in rows]):.2f}, p99 {np.percentile([r[name] for r in rows], 99):.2f}, "
              f"max {max(r[name] for r in rows):.2f}")  # fmt: skip
    print("\n| method | cases (60% or more) | under 1 mm | median mm | p90 | time s, p50 | rtevo on the same: under 1 mm | median mm |")
    print("|---" * 8 + "|")
    for kind in PEERS:
        pairs = [(results.rows[kind.name, r["key"]], r) for r in enough if (kind.name, r["key"]) in results.rows]
        if pairs:
            theirs, ours = (np.array([p[k]["error_mm"] for p in pairs]) for k in (0, 1))
            took = np.median([p[0]["wall_s"] for p in pairs])
            p50, p90 = np.percentile(theirs, [50, 90])
            same = f"{_percent(ours < SUCCESS_MM)} | {np.median(ours):.3f}"
            print(f"| {kind.name} | {len(pairs)} | {_percent(theirs < SUCCESS_MM)} | {p50:.3f} | {p90:.2f} | {took:.1f} | {same} |")


# --- other people


def _pairs(simulated: int) -> list[tuple[str, Callable[[], Case]]]:
    """Name and way to make each case of another person's head."""
    found: list[tuple[str, Callable[[], Case]]] = []
    real = [name for name in _available(REAL)]
    for ours in real:
        for theirs in real:
            if ours != theirs:
                found += [
                    (f"real pairs/{ours}/{theirs}/{k}",
                     lambda o=ours, t=theirs, k=k: make_case(t, OTHERS_SEED + k, reference=source(o), coverage=1.0))
                    for k in range(4)
                ]  # fmt: skip
        found += [
            (f"warped real/{ours}/{k}",
             lambda o=ours, k=k: make_case(other_person(o, PERSONS + k), OTHERS_SEED + k, reference=source(o), coverage=1.0))
            for k in range(6)
        ]  # fmt: skip
    for k in range(simulated):
        base = HEADS[4 + k % 4]
        found.append((
            f"simulated/{base}/{k}",
            lambda b=base, k=k: make_case(other_person("simulated", PERSONS + k), OTHERS_SEED + k, reference=source(b), coverage=1.0),
        ))  # fmt: skip
    return found


def others(results: Results, simulated: int) -> list[Row]:
    """Place other people's heads, and those of simulated ones."""
    return [results.get("others", key, lambda make=make: _ours(make())) for key, make in _pairs(simulated)]


def print_others(rows: list[Row]) -> None:
    """One table."""
    print("\n| another person's head | n | good | doubtful | bad | correlation p50 | max |\n" + "|---" * 7 + "|")
    for kind in dict.fromkeys(r["key"].split("/")[0] for r in rows):
        part = [r for r in rows if r["key"].startswith(kind)]
        words = [sum(r["verdict"] == v for r in part) for v in ("good", "doubtful", "bad")]
        correlation = np.array([r["correlation"] for r in part])
        print(f"| {kind} | {len(part)} | {' | '.join(map(str, words))} | {np.median(correlation):.2f} | {correlation.max():.3f} |")


# --- speed


def _timed(case: Case, rounds: int) -> dict[str, list[tuple[float, float]]]:
    times: dict[str, list[tuple[float, float]]] = {"place": [], "judge": [], "another head": []}
    other = np.flip(case.today, 2).copy()
    found: Placement | None = None
    for n in range(rounds + 1):
        for name in times:
            start, used = time.perf_counter(), time.process_time()
            if name == "judge":
                assert found is not None
                judge(found.matrix, case.reference, case.grid, case.today, case.today_grid)
            else:
                result = place(case.reference, case.grid, other if name == "another head" else case.today, case.today_grid)
                found = result if name == "place" else found
            if n:
                times[name].append((time.perf_counter() - start, time.process_time() - used))
        assert found is not None
        assert mean_error(found.matrix, case) < 1.0
    return times


def speed(rounds: int) -> list[Row]:
    """Times of one call at two sizes."""
    rows = []
    head = source("simulated 0")
    for label, (shape, size) in SPEEDS.items():
        rng = np.random.default_rng(zlib.crc32(label.encode()))
        grids = []
        for _ in range(2):
            box = _box(np.array([0.0, -14.0, 12.0]) + rng.uniform(-5, 5, 3), np.eye(3), np.array(size), np.array(size) * shape)
            grids.append(Grid(shape, box.affine))
        matrix = matrix_from_params([8.0, -6.0, 5.0, 0.12, -0.05, 0.08], [0.0, -14.0, 12.0])
        poses = zip(grids, (np.eye(4), matrix), strict=True)
        volumes = [_rician(np.nan_to_num(sampled(head.volumes[0], head.volumes_grid, g, m)), 15.0, rng) for g, m in poses]
        case = Case(volumes[0], grids[0], volumes[1], grids[1], matrix, volumes[0] > 300)
        for name, values in _timed(case, rounds).items():
            wall, used = np.array(values).T
            p50, p99 = np.percentile(wall, [50, 99])
            row = {"size": label, "call": name, "n": rounds, "p50_s": p50, "p99_s": p99, "max_s": wall.max(), "cpu_s": np.median(used)}
            rows.append(row)
    return rows


def print_speed(rows: list[Row]) -> None:
    """One table."""
    print("\n| both volumes | call | n | p50 s | p99 | max | processor, p50 |\n" + "|---" * 7 + "|")
    for r in rows:
        print(f"| {r['size']} | {r['call']} | {r['n']} | {r['p50_s']:.2f} | {r['p99_s']:.2f} | {r['max_s']:.2f} | {r['cpu_s']:.2f} |")


# --- picture


def picture(path: Path) -> None:
    """Draw a simulated head's placement as an operator sees it: another grid, part of the head, another contrast."""
    case = make_case("simulated 1", PICTURE_SEED, coverage=0.85)
    points = case.grid.affine[:3, :3] @ np.indices(case.grid.shape).reshape(3, -1) + case.grid.affine[:3, 3:]
    weight = np.zeros(case.grid.shape)
    for side in (-1, 1):
        offset = points - np.array([[side * 24.0], [-76.0], [4.0]])
        weight += np.exp(-((offset / np.array([[16.0], [12.0], [12.0]])) ** 2).sum(axis=0)).reshape(case.grid.shape)
    weight *= case.brain
    found = place(case.reference, case.grid, case.today, case.today_grid, weight=weight)
    print(f"error {mean_error(found.matrix, case):.3f} mm; {found.as_dict()}")
    volumes = (case.reference, case.grid, case.today, case.today_grid)
    draw_placement(path, found, *volumes, weight=weight, title="sub-01, decoder of 3 May, run of 17 May")


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("parts", nargs="*", metavar="known|others|speed", help="default: all")
    parser.add_argument("--picture", type=Path, help="only draw a placement of a simulated head as an operator sees it")
    parser.add_argument("--cases", type=int, default=504, help="known placements (default 504)")
    parser.add_argument("--peers-every", type=int, default=12, help="peers place every n-th case, 0: none (default 12)")
    parser.add_argument("--simulated", type=int, default=40, help="simulated other people (default 40)")
    parser.add_argument("--rounds", type=int, default=15, help="calls that are timed (default 15)")
    parser.add_argument("--json", type=Path, default=Path("bench_place.jsonl"), help="lines are appended; what is there is kept")
    options = parser.parse_args()
    if options.picture:
        picture(options.picture)
        return
    parts = options.parts or ["known", "others", "speed"]
    if unknown := set(parts) - {"known", "others", "speed"}:
        parser.error(f"expected known, others or speed, got {', '.join(sorted(unknown))}")
    print(json.dumps(machine()))
    warm_up()
    results = Results(options.json)
    if "known" in parts:
        print_known(known(results, options.cases, options.peers_every, PEERS), results)
    if "others" in parts:
        print_others(others(results, options.simulated))
    if "speed" in parts:
        print_speed(speed(options.rounds))


if __name__ == "__main__":
    main()
