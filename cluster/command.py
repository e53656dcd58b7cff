"""`run.py batch`: a workflow and a table of jobs on Ray, from the files to the exit code."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from launch.comfyui.server import Server, ServerError
from launch.comfyui.workflow import Json, WorkflowError, to_prompt

from .jobs import Job, draft_jobs
from .jobs.table import Row, TableError, look_over
from .local import ClusterError, connected
from .manifest import OutputError, opened


def run(options: argparse.Namespace, comfyui: Path) -> int:
    """Runs the batch.

    Args:
        options: Of the command line: workflow, jobs, output, address, workers, cores, share,
            retries.
        comfyui: The folder of this machine's ComfyUI.

    Returns:
        The exit code: 0, 1 if a job failed or none could begin, 130 after Ctrl-C or SIGTERM.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    try:
        wanted = Wanted.read(options.workflow, options.jobs, comfyui / "input")
        jobs = [] if options.address else wanted.jobs(definitions(comfyui))
        with opened(options.output) as results, connected(options.address) as dashboard:
            # Ray's own handler would stop no worker.
            signal.signal(signal.SIGTERM, signal.default_int_handler)
            from ray.exceptions import RayError

            from .batch import Batch
            from .progress import Progress, table
            from .workers.pool import Pool, PoolError

            told = f"Ray's dashboard: http://{dashboard} (`ray get-auth-token` prints its token)"
            print(told if dashboard else "Ray runs", flush=True)
            try:
                with closing(
                    Pool.start(comfyui, options.workers, options.cores, options.share)
                ) as pool:
                    print("starting ComfyUI ...", flush=True)
                    # What a cluster's machines have, only they know.
                    jobs = jobs or wanted.jobs(pool.object_info())
                    good = Batch(pool, results, Progress(), options.retries).run(jobs)
            except (PoolError, RayError) as error:
                print(f"error: {error}", file=sys.stderr)
                return 1
            print(
                f"\n{table(results.records[job.name] for job in jobs)}\n{results.manifest}",
                flush=True,
            )
            return 0 if good else 1
    except (OSError, WorkflowError, TableError, OutputError, ClusterError, ServerError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here")
        return 130


@dataclass(frozen=True)
class Wanted:
    """What a user asks for, before it is known which nodes there are.

    Attributes:
        workflow: As the editor saves it, or an API prompt.
        table: The table's file.
        rows: The table's rows.
        problems: What is wrong with these, a line each.
        inputs: The folder of the files that the workflow names.
    """

    workflow: Json
    table: Path
    rows: list[Row]
    problems: list[str]
    inputs: Path

    @classmethod
    def read(cls, workflow: Path, table: Path, inputs: Path) -> Wanted:
        """Reads the files.

        Args:
            workflow: The workflow's file.
            table: The table's file.
            inputs: The folder of the files that the workflow names.

        Returns:
            What is asked for.

        Raises:
            TableError: For a table without a row.
            WorkflowError: For a file that is no workflow.
            OSError: For a file that is not there.
        """
        rows, problems = look_over(table)
        if not rows:
            raise TableError(problems)
        return cls(read_workflow(workflow), table, rows, problems, inputs)

    def jobs(self, info: Json) -> list[Job]:
        """Makes the jobs, for a server with these node definitions.

        Raises TableError with all that is wrong with workflow and table.
        """
        try:
            jobs, problems = draft_jobs(
                self.table, self.rows, to_prompt(self.workflow, info), info, self.inputs
            )
        except WorkflowError as error:  # then nobody can say what a column sets
            jobs, problems = [], str(error).splitlines()
        if self.problems or problems:
            raise TableError([*self.problems, *problems])
        return jobs


def read_workflow(path: Path) -> Json:
    """Reads a workflow's file. Raises WorkflowError if it is none."""
    try:
        workflow = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise WorkflowError(
            f"{path.name} is no JSON ({error}). Save the workflow again."
        ) from error
    if not isinstance(workflow, dict):
        raise WorkflowError(
            f"{path.name} is no workflow: there is no object in it. Save the workflow again."
        )
    return workflow


def definitions(comfyui: Path) -> Json:
    """Asks this machine's ComfyUI, started for this alone, for its node definitions.

    Raises launch.comfyui.server.ServerError.
    """
    print("looking the table over ...", flush=True)
    with (
        tempfile.TemporaryDirectory() as folder,
        Server(comfyui, Path(folder), Path(folder, "output"), Path(folder, "server.log")) as server,
    ):
        found: Json = server.get("/object_info")
        return found
