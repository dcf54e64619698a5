"""How a batch run goes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from radglint.batch_cases import Case, Skipped

TIMEOUT_S = 900.0


@dataclass(frozen=True)
class BatchOptions:
    """How a run goes.

    Attributes:
        threshold: as for `Pipeline.ask`.
        masks: write masks too.
        parquet: also write results.parquet at the end.
        retry_failed: try cases again that failed in an earlier run.
        shard: in words, which part of the cases this is; a run of another part is another run.
        whole: the cases of all parts, if this is one of several; `batch_merge` needs to know.
        skipped: what a search has found that is no case; kept in skipped.jsonl.
        memory_bytes: of all cases in work together; None = four fifths of what there is.
        timeout_s: seconds after which a case that cannot be read is given up.
        show_progress: a bar on stderr; None = if it is a terminal.
    """

    threshold: float | None = None
    masks: bool = False
    parquet: bool = False
    retry_failed: bool = False
    shard: str = "all"
    whole: Sequence[Case] | None = None
    skipped: Sequence[Skipped] = ()
    memory_bytes: int | None = None
    timeout_s: float = TIMEOUT_S
    show_progress: bool | None = None
