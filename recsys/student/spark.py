"""Training on Spark: its TorchDistributor starts the processes that train together, as `torchrun` would."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from recsys.ingest.dataset import Dataset
from recsys.runtime import Runtime
from recsys.soft_labels import SoftLabels
from recsys.spark import spark_session
from recsys.student.config import DistillConfig


def distill_on_spark(
    dataset: Dataset,
    soft_labels: SoftLabels | None,
    config: DistillConfig,
    out: Path,
    scratch: Path,
    runtime: Runtime,
    *,
    force: bool = False,
) -> None:
    """Train the student in `config.processes` processes, which open dataset and soft labels by path.

    On a cluster they are Spark's tasks, started together (barrier mode); on `local[…]` they are processes beside the
    driver. The first one writes the artifact.

    Args:
        dataset: as for `distill`.
        soft_labels: as for `distill`.
        config: as for `distill`.
        out: where the artifact goes; on a cluster all machines must see it, and the inputs, under the same paths.
        scratch: for Spark's files.
        runtime: seed, device and precision.
        force: train again even when `out` is up to date.

    Raises:
        InputError: Spark cannot be started, or a process failed.
        MissingExtraError: pyspark is not installed.
    """
    local = config.spark.master.startswith("local")
    with spark_session(config.spark, scratch, runtime, stage="distill", otherwise="local"):
        from pyspark.ml.torch.distributor import TorchDistributor

        distributor: Any = TorchDistributor(
            num_processes=config.processes, local_mode=local, use_gpu=runtime.torch_device().type == "cuda"
        )
        distributor.run(
            partial(_together, os.environ.get("GLOO_SOCKET_IFNAME", "lo") if local else None),
            dataset.path,
            None if soft_labels is None else soft_labels.path,
            config.model_copy(update={"engine": "local"}).model_dump_json(),
            out.resolve(),
            # Threads are shared out: processes that take all cores each would stand in each other's way.
            replace(
                runtime, progress=False, threads=max((runtime.threads or os.cpu_count() or 1) // config.processes, 1)
            ),
            force,
        )


def _together(
    interface: str | None,
    dataset: Path,
    soft_labels: Path | None,
    config: str,
    out: Path,
    runtime: Runtime,
    force: bool,
) -> None:
    from recsys.student.distill import distill

    if interface is not None:
        os.environ["GLOO_SOCKET_IFNAME"] = interface
    labels = None if soft_labels is None else SoftLabels.open(soft_labels)
    given = DistillConfig.model_validate_json(config)
    distill(Dataset.open(dataset), labels, given, out, runtime=runtime, force=force)
