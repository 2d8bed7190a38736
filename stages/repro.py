"""`dvc repro` with several stages at once: each starts as soon as what it depends on is there.

DVC runs one stage after the other, but lets other processes of its own run others while a stage's command runs. On a
few cores stages side by side, a thread each, are faster than each of them on all cores: much of a stage's time is its
start, and work of a single thread.
"""

import gc
import multiprocessing
import os
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import nullcontext
from graphlib import TopologicalSorter

import click
import networkx as nx
from _command import POSITIVE, Stage, option
from _warm import warm
from dvc.cli import main as dvc
from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc.repo.reproduce import collect_stages


def planned(targets: Sequence[str]) -> tuple[dict[str, set[str]], set[str]]:
    """What each stage that the targets need depends on, by name, in dvc.yaml's order; and those that may have to run.

    These are those whose record differs from what there is, and all that depend on them.
    """
    with Repo() as repo:
        name = {stage: stage.addressing for stage in repo.index.stages}
        graph = nx.relabel_nodes(repo.index.graph, name)  # an edge from a stage to each that it depends on
        wanted = {name[stage] for stage in collect_stages(repo, targets)} if targets else set(graph)
        needed = graph.subgraph(wanted.union(*(nx.descendants(graph, stage) for stage in wanted)))
        stale = needed.nodes & repo.status()
    stale = stale.union(*(nx.ancestors(needed, stage) for stage in stale))
    return {stage: set(needed.successors(stage)) for stage in name.values() if stage in needed}, stale


def reproduce(stage: str) -> int:
    """Run `dvc repro` for a stage alone; its exit code."""
    return dvc(["--wait-for-lock", "repro", "--single-item", stage])


def run(depends_on: dict[str, set[str]], stale: set[str], jobs: int) -> list[str]:
    """Reproduce stale stages, `jobs` at a time, and return those that failed.

    One process takes those first for which the longest chain of others waits. The others take the shortest chains:
    tables and pictures, which so are made while it computes, for DVC's own part of a stage, a second, is done by one
    process at a time. Of equals dvc.yaml's first is taken. After a failure no other stage starts; those that run go on
    to their end. A line tells of each that has ended.
    """
    chain = dict.fromkeys(depends_on, 0)
    for stage in reversed(list(TopologicalSorter(depends_on).static_order())):
        chain.update({needed: max(chain[needed], chain[stage] + 1) for needed in depends_on[stage]})
    places = {stage: place for place, stage in enumerate(depends_on)}
    order = TopologicalSorter(depends_on)
    order.prepare()
    ready: list[str] = []
    running: dict[Future[int], tuple[str, float]] = {}
    leading: Future[int] | None = None
    failed: list[str] = []
    n_ended, began = 0, time.monotonic()
    # Forked, for DVC takes a second to be imported; what garbage it makes, a few MB a stage, is not worth the search.
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("fork"), initializer=gc.disable) as pool:
        while order.is_active() and not failed:
            for stage in order.get_ready():
                if stage in stale:
                    ready.append(stage)
                else:
                    order.done(stage)
            while ready and len(running) < jobs:
                leads = leading not in running
                stage = min(ready, key=lambda stage: (-chain[stage] if leads else chain[stage], places[stage]))
                ready.remove(stage)
                future = pool.submit(reproduce, stage)
                running[future] = stage, time.monotonic()
                leading = future if leads else leading
            for ended in wait(running, return_when=FIRST_COMPLETED).done if running else ():
                stage, since = running.pop(ended)
                order.done(stage)
                failed += [stage] * bool(ended.result())
                n_ended, now = n_ended + 1, time.monotonic()
                told = f"{stage} has ended after {now - since:.0f} s"
                click.echo(f"{n_ended} of {len(stale)} stages, {now - began:.0f} s: {told}")
    return failed + [stage for ended, (stage, _since) in running.items() if ended.result()]


@click.command(cls=Stage)
@option("--jobs", POSITIVE, help="How many stages at once.")
@click.argument("targets", nargs=-1)
def main(jobs: int, targets: tuple[str, ...]) -> None:
    """Reproduce TARGETS, or all, as `dvc repro` does, with several stages at once."""
    try:
        depends_on, stale = planned(targets)
    except DvcException as error:
        raise ValueError(str(error)) from error
    os.environ.setdefault("CXLIB_THREADS", str(max(1, len(os.sched_getaffinity(0)) // jobs)))
    # NumPy's own: what it multiplies is too small for more threads, which would change last digits and wait for cores.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # Huge pages, which Linux has to be asked for: a tenth of the time of passes on a CPU. Read as a process starts.
    os.environ.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
    with warm() if stale else nullcontext():
        failed = run(depends_on, stale, jobs)
    if failed:
        raise click.ClickException(f"failed to reproduce {', '.join(failed)}")
    click.echo(f"{len(depends_on)} stages are up to date")


if __name__ == "__main__":
    main()
