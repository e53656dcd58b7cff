"""`run.py batch`: a workflow and a table of jobs on Ray, from the files to the exit code."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from contextlib import closing
from pathlib import Path

from launch.workflow import WorkflowError, to_prompt

from .jobs import make_jobs
from .local import ClusterError, connected
from .manifest import OutputError, opened
from .table import TableError, read_table


def run(options: argparse.Namespace, comfyui: Path) -> int:
    """Runs the batch; returns the exit code: 0, 1 if a job failed or none could begin, 130 after Ctrl-C or SIGTERM."""
    try:
        rows = read_table(options.jobs)
        workflow = json.loads(options.workflow.read_text())
        with opened(options.output) as results, connected(options.address) as dashboard:
            signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C; Ray's own handler would stop no worker
            from ray.exceptions import RayError

            from .batch import Batch
            from .pool import Pool, PoolError
            from .progress import Progress, table

            print(f"Ray's dashboard: http://{dashboard} (`ray get-auth-token` prints its token)" if dashboard else "Ray runs", flush=True)
            try:
                with closing(Pool(comfyui, options.workers, options.cores, options.share)) as pool:
                    print("starting ComfyUI ...", flush=True)
                    info = pool.object_info()
                    jobs = make_jobs(options.jobs, rows, to_prompt(workflow, info), info, comfyui / "input")
                    good = Batch(pool, results, Progress(), options.retries).run(jobs)
            except (PoolError, RayError) as error:
                print(f"error: {error}", file=sys.stderr)
                return 1
            print(f"\n{table(results.records[job.name] for job in jobs)}\n{results.manifest}", flush=True)
            return 0 if good else 1
    except (OSError, ValueError, WorkflowError, TableError, OutputError, ClusterError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here")
        return 130
