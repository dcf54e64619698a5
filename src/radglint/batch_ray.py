"""`radglint batch --engine ray`: the cases of a run spread over a Ray cluster, with Ray Data.

    this process    cases in small batches out; answers in, written as they come, by this process alone
    workers         one actor each, which loads the model once and works as `batch` does: read ahead, answer, measure

A worker may die at any moment: Ray starts another, which gets the batch again, one case at a time. A case at which
workers die again and again is named as a failure, and the run goes on. Only answers that have come back are written,
so nothing is there twice. Inputs must lie under the same paths on every machine; the results only on this one.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from radglint import writing
from radglint.batch import progress_bar
from radglint.batch_cases import Case
from radglint.batch_files import RunFolder
from radglint.batch_options import BatchOptions
from radglint.batch_worker import Deaths, Outcome, Worker, pack_case, unpack_outcome
from radglint.errors import ConfigError, InputError
from radglint.pipeline import Device, Pipeline

CASES_AT_ONCE = 8
MAX_CHARACTERS = 300
LOCAL_STORE_BYTES = 200_000_000


class RayEngine:
    """The engine that is a Ray cluster: the one of `RAY_ADDRESS`, one that is connected already, else one made here.

    Args:
        workers: how many; None = one for each GPU, or for each CPU where there is none. They share all CPUs.
        device: where each runs the model.

    Raises:
        ConfigError: Ray is not installed.
    """

    def __init__(self, workers: int | None = None, device: Device = "auto") -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anyone
        if "RAY_ADDRESS" not in os.environ:
            os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # "one machine": on the loopback address
        try:
            import ray.data  # noqa: F401
        except ImportError as error:
            raise ConfigError('--engine ray needs Ray; `pip install "radglint[ray]"`, or leave it out') from error
        self.workers = workers
        self.device: Device = device

    def __call__(
        self, pipeline: Pipeline, cases: Sequence[Case], queries: Sequence[str], run: RunFolder, options: BatchOptions
    ) -> None:
        """Ask all these cases on the cluster; see `batch.Engine`.

        Raises:
            InputError: the workers cannot start, for example because a disk or the model is missing there.
        """
        from ray.exceptions import RayError

        with _cluster(), progress_bar(len(run.done), len(cases), options) as bar:
            try:
                for place, outcome in self._outcomes(pipeline, cases, queries, options):
                    if cases[place].id not in run.done:
                        _keep(run, cases[place], outcome)
                        bar.update()
            except RayError as error:
                raise InputError(
                    f"--engine ray: {reason_of(error)}; mend it, then give the same command again"
                ) from error
        lost = [case.id for case in cases if case.id not in run.done]
        if lost:
            raise InputError(f"--engine ray: {len(lost)} cases came back from no worker; give the same command again")

    def _outcomes(
        self, pipeline: Pipeline, cases: Sequence[Case], queries: Sequence[str], options: BatchOptions
    ) -> Iterator[tuple[int, Outcome]]:
        """The place of each case and what has become of it, as they come."""
        import ray
        from ray.data import ActorPoolStrategy, from_items

        workers, cpus, gpus = _shares(self.workers, self.device)
        size = max(1, min(CASES_AT_ONCE, len(cases) // (2 * workers)))
        deaths = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Deaths).remote()
        nodes = sum(1 for node in ray.nodes() if node["Alive"])
        worker = {
            "model": str(Path(pipeline.model.folder).resolve()), "fingerprint": pipeline.model.fingerprint,
            "device": self.device, "queries": list(queries), "at": os.getcwd(), "deaths": deaths,
            "options": dataclasses.replace(options, whole=None, skipped=(), show_progress=False),
            "share": -(-workers // nodes),
        }  # fmt: skip
        rows = [{"place": place, "case": pack_case(case)} for place, case in enumerate(cases)]
        answers = from_items(rows, override_num_blocks=-(-len(rows) // size)).map_batches(
            Worker, batch_size=size, batch_format="pyarrow", compute=ActorPoolStrategy(size=workers),
            fn_constructor_kwargs=worker, num_cpus=cpus, num_gpus=gpus,
        )  # fmt: skip
        for row in answers.iter_rows():
            yield row["place"], unpack_outcome(row["outcome"])


def _keep(run: RunFolder, case: Case, outcome: Outcome) -> None:
    """Masks first, then the line, as the plain engine does."""
    if outcome.failure is not None:
        run.add_failure(case, *outcome.failure)
        return
    assert outcome.line is not None
    if outcome.masks:
        with run.masks_of(case) as folder:
            for name, content in outcome.masks:
                writing.write_bytes(folder / name, content)
    run.add_result(outcome.line)


@contextmanager
def _cluster() -> Iterator[None]:
    """A connection to a cluster; one that is made here is ended here. Ray's own talk is kept to what went wrong."""
    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS")
    local: dict[str, Any] = {
        "include_dashboard": False,
        "object_store_memory": LOCAL_STORE_BYTES,
        "_node_ip_address": "127.0.0.1",
    }
    ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **({} if address else local))
    try:
        yield
    finally:
        ray.shutdown()


def _shares(workers: int | None, device: Device) -> tuple[int, float, float | None]:
    """How many workers, and how many CPUs and GPUs each takes: all of the cluster's in equal parts."""
    import ray

    whole = ray.cluster_resources()
    cpus, gpus = int(whole.get("CPU", 1)), int(whole.get("GPU", 0)) if device in ("auto", "cuda") else 0
    workers = workers or max(1, gpus or cpus)
    smallest = min(int(node["Resources"].get("CPU", cpus)) for node in ray.nodes() if node["Alive"])
    each = cpus / workers
    part = int(each * 1000) / 1000 if each < 1 else max(1, min(int(each), smallest))
    return workers, part, min(1.0, int(gpus / workers * 1000) / 1000) if gpus else None


def reason_of(error: BaseException) -> str:
    """What went wrong in a worker: the last error in Ray's report that is not Ray's own."""
    named = re.findall(r"^(?!ray\.)(?:[\w.]+\.)?(\w*(?:Error|Exception): .+)$", str(error), re.MULTILINE)
    return named[-1].strip() if named else f"{type(error).__name__}: {' '.join(str(error).split())[:MAX_CHARACTERS]}"
