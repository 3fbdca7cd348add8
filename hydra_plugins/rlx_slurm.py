"""submitit's launcher for Slurm, which waits for every cell of a sweep however one of them ends.

A sweep of more cells than a site lets an array have (`max_array_size`) is several arrays.

Hydra looks for launchers in this folder only. It warns about files that it cannot import, so
without the packages of `pip install -e '.[cluster]'` there is no class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import make_dataclass
from importlib.util import find_spec

from hydra.core.config_store import ConfigStore
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus

SHARED = ("cpus_per_task", "gpus_per_node", "mem_gb", "name", "nodes", "stderr_to_stdout",
          "tasks_per_node", "timeout_min")  # fmt: skip

if find_spec("submitit") and find_spec("hydra_plugins.hydra_submitit_launcher"):
    from hydra_plugins.hydra_submitit_launcher import submitit_launcher
    from hydra_plugins.hydra_submitit_launcher.config import SlurmQueueConf

    target = ("_target_", str, "hydra_plugins.rlx_slurm.SlurmLauncher")
    more = [target, ("max_array_size", int, 1000)]
    Arrays = make_dataclass("Arrays", more, bases=(SlurmQueueConf,))
    ConfigStore.instance().store(group="hydra/launcher", name="slurm_arrays", node=Arrays())

    class SlurmLauncher(submitit_launcher.SlurmLauncher):
        """Job arrays, one cell per job; a cell that ends badly is one that failed."""

        def launch(
            self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
        ) -> Sequence[JobReturn]:
            import submitit  # slow: not while plugins are looked for

            options = dict(self.params)
            size = options.pop("max_array_size")
            executor = submitit.AutoExecutor(
                folder=options.pop("submitit_folder"),
                cluster="slurm",
                slurm_max_num_timeout=options.pop("max_num_timeout"),
            )
            named = {key if key in SHARED else f"slurm_{key}": x for key, x in options.items()}
            executor.update_parameters(**named)
            state = Singleton.get_state()
            calls = [
                (list(overrides), "hydra.sweep.dir", number, str(number), state)
                for number, overrides in enumerate(job_overrides, initial_job_idx)
            ]
            jobs = []
            for first in range(0, len(calls), size):
                part = calls[first : first + size]
                jobs += executor.map_array(self, *zip(*part, strict=True))
            print(f"Slurm: jobs {jobs[0].job_id} to {jobs[-1].job_id}", flush=True)
            return [outcome(job, words) for job, words in zip(jobs, job_overrides, strict=True)]


def outcome(job, overrides: Sequence[str]) -> JobReturn:
    """Wait for a job: what it returned, or a failure that says where its log is."""
    from submitit.core.utils import FailedJobError, UncompletedJobError

    from experiments.train import CellFailed

    try:
        return job.result()
    except (FailedJobError, UncompletedJobError):
        state = job.get_info().get("State", "unknown").lower()
        reason = f"job {job.job_id} ended without a result (Slurm: {state}); see {job.paths.stderr}"
        failed = JobReturn(overrides=overrides, status=JobStatus.FAILED)
        failed.return_value = CellFailed(reason)
        return failed
