"""Thousands of independent simulated runs: on this computer's cores, or on a cluster (Dask; optional: ``pip install 'rtevo[dask]'``).

A run depends on its case alone, seed included, so the same cases give the same outcomes wherever they run and in whatever order. With a
file to keep them in, outcomes are written as they come, and a later call with the same file runs only the missing cases. Those of a lost
worker are run again by another.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rtevo.errors import ConfigError, DataError
from rtevo.evolve.rehearse import Case, Outcome, play

__all__ = ["add_options", "client", "run_all", "run_cases"]

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

CaseT = TypeVar("CaseT", bound="DataclassInstance")
OutcomeT = TypeVar("OutcomeT", bound="DataclassInstance")

ANSWER_S = 30.0  # that a scheduler has to answer
_CHUNKS = 8  # tasks for each worker at least: so that none waits long for the last one
_LARGEST = 4  # runs in a task, at most: so that progress is seen and little is lost by an interruption (a run takes 0.02 to 3 s)
_LOST = 8  # times that a task is handed in again after Dask has given it up, because each worker that had it was lost


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for where simulations run."""
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--jobs", type=int, metavar="N", help="processes on this computer (default: one for each core; 0: in this process)")
    where.add_argument("--scheduler", metavar="ADDRESS", help="a running Dask cluster, e.g. tcp://HOST:8786")
    where.add_argument("--slurm", type=int, metavar="N", help="N SLURM jobs through dask-jobqueue, as set in its jobqueue.yaml")
    parser.add_argument(
        "--keep", type=Path, metavar="FILE", help="keep outcomes in this file as they come (JSON lines); outcomes in it are not run again"
    )


@contextlib.contextmanager
def client(options: argparse.Namespace) -> Iterator[Any]:
    """Yield the workers of the options: processes of this computer, the client of a Dask cluster, or None to run in this process.

    Raises
    ------
    ConfigError
        Dask is requested and not installed, or the cluster does not answer.
    """
    if options.scheduler or options.slurm:
        with _cluster(options) as cluster:
            yield cluster
    elif options.jobs == 0:
        yield None
    else:
        jobs = options.jobs or len(os.sched_getaffinity(0))
        with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), initializer=_prepare) as processes:
            try:
                yield processes
            except BaseException:
                processes.shutdown(cancel_futures=True)
                raise


def _prepare() -> None:
    """Leave an interruption to the process that began this one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextlib.contextmanager
def _cluster(options: argparse.Namespace) -> Iterator[Any]:
    """Yield the client of the Dask cluster that the options name."""
    try:
        import distributed

        if options.slurm:
            import dask_jobqueue
    except ImportError as missing:
        raise ConfigError(f"{missing.name} is not installed: pip install 'rtevo[dask]', or --jobs N to run on this computer") from None
    with contextlib.ExitStack() as stack:
        cluster: Any = options.scheduler
        if options.slurm:
            cluster = stack.enter_context(dask_jobqueue.SLURMCluster())
            cluster.scale(jobs=options.slurm)
        try:
            yield stack.enter_context(distributed.Client(cluster, timeout=ANSWER_S))
        except OSError as problem:
            if not options.scheduler:
                raise
            raise ConfigError(f"--scheduler {options.scheduler}: no Dask scheduler answers there: {problem}") from None


def run_cases(
    cases: Sequence[Case],
    where: Any = None,
    keep: Path | None = None,
    play_case: Callable[[Case], Outcome] = play,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Outcome]:
    """Run cases.

    Parameters
    ----------
    cases : sequence of Case
        All different.
    where : concurrent.futures.Executor or distributed.Client, optional
        None: in this process.
    keep : Path, optional
        File of outcomes so far; appended to.
    play_case : callable
        Runs one case.
    on_progress : callable, optional
        Called with how many are done, and of how many.

    Returns
    -------
    list of Outcome
        In the order of the cases.
    """
    return run_all(cases, play_case, Case, Outcome, where, keep, on_progress)


def run_all(
    cases: Sequence[CaseT],
    play_case: Callable[[CaseT], OutcomeT],
    case_type: type[CaseT],
    outcome_type: type[OutcomeT],
    where: Any = None,
    keep: Path | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[OutcomeT]:
    """Run cases of any kind: dataclasses of numbers, texts and tuples of these, whose fields have no name in common; see :func:`run_cases`.

    Parameters
    ----------
    cases : sequence of CaseT
        All different.
    play_case : callable
        Runs one case; a function of a module, where there are workers.
    case_type, outcome_type : type
        The dataclasses.
    where : distributed.Client, optional
        None: in this process.
    keep : Path, optional
        File of outcomes so far; appended to.
    on_progress : callable, optional
        Called with how many are done, and of how many.

    Returns
    -------
    list of OutcomeT
        In the order of the cases.
    """
    known = _read(keep, case_type, outcome_type)
    left = [case for case in cases if _key(case) not in known]
    done = len(cases) - len(left)
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(keep.open("a", encoding="utf-8")) if keep is not None and left else None
        for case, outcome in _outcomes(left, where, play_case):
            known[_key(case)] = outcome
            done += 1
            if file is not None:
                file.write(json.dumps({**asdict(case), **asdict(outcome)}) + "\n")
                file.flush()
            if on_progress is not None:
                on_progress(done, len(cases))
    return [known[_key(case)] for case in cases]


def _outcomes(cases: list[CaseT], where: Any, play_case: Callable[[CaseT], OutcomeT]) -> Iterator[tuple[CaseT, OutcomeT]]:
    """Yield outcomes as they come."""
    if where is None:
        for case in cases:
            yield case, play_case(case)
        return
    own = isinstance(where, ProcessPoolExecutor)
    workers = len(os.sched_getaffinity(0)) if own else max(1, len(where.scheduler_info(n_workers=-1)["workers"]))
    size = min(max(1, len(cases) // (_CHUNKS * workers)), _LARGEST)
    chunks = [cases[k : k + size] for k in range(0, len(cases), size)]
    if own:
        waiting = {where.submit(_play_all, chunk, play_case): chunk for chunk in chunks}
        try:
            for done in as_completed(list(waiting)):
                yield from zip(waiting.pop(done), done.result(), strict=True)
        except BrokenProcessPool:
            raise DataError(
                "a process that simulated runs was killed (no memory left?): run the command again, it continues from the kept outcomes"
            ) from None
        return
    import distributed

    futures = {where.submit(_play_all, chunk, play_case, pure=False): (chunk, 0) for chunk in chunks}
    coming = distributed.as_completed(list(futures))
    for future in coming:
        chunk, lost = futures.pop(future)
        try:
            outcomes = future.result()
        except distributed.scheduler.KilledWorker:
            if lost == _LOST:
                raise
            again = where.submit(_play_all, chunk, play_case, pure=False)
            futures[again] = (chunk, lost + 1)
            coming.add(again)
            continue
        yield from zip(chunk, outcomes, strict=True)


def _play_all(cases: list[CaseT], play_case: Callable[[CaseT], OutcomeT]) -> list[OutcomeT]:
    """Run a few cases, in a worker."""
    return [play_case(case) for case in cases]


def _key(case: DataclassInstance) -> str:
    return json.dumps(asdict(case), sort_keys=True)


def _read(keep: Path | None, case_type: type[CaseT], outcome_type: type[OutcomeT]) -> dict[str, OutcomeT]:
    """Read outcomes; a last line that was cut short is left out."""
    known: dict[str, OutcomeT] = {}
    if keep is None or not keep.exists():
        return known
    text = keep.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        keep.write_text(whole, encoding="utf-8")
    names = [field.name for field in fields(outcome_type)]
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            row = {name: tuple(value) if isinstance(value, list) else value for name, value in json.loads(line).items()}
            outcome = outcome_type(**{name: row.pop(name) for name in names})
            known[_key(case_type(**row))] = outcome
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ConfigError(f"--keep {keep} line {number}: expected an outcome kept by this command, found something else") from None
    return known
