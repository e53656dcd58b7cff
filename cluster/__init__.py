"""Many jobs on Ray: a workflow and a table of jobs, run by real ComfyUI servers.

They are on one machine or several. `python3 run.py batch` starts here (`command`). The table
becomes prompts (`table`, `values`, `jobs`), prompts go to workers (`batch`, `schedule`,
`pool`, `worker`), results to files (`manifest`). Nothing of the project imports this package: the
pack knows nothing of Ray.
"""
