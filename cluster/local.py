"""Ray: a cluster that runs, or one on this machine alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from launch.environment import ROOT

# What an actor needs of the checkout; ComfyUI and the pack are on every machine.
SHIPPED = {"py_modules": [str(ROOT / "cluster"), str(ROOT / "launch")], "excludes": ["__pycache__"]}
# Ray takes this machine's outer address unless clusters are off, and gives its workers a low priority. Its dashboard asks the metadata
# services of clouds which of them this is, with usage statistics or without: through a proxy that is not there it asks nobody.
ALONE = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_worker_niceness": "0"}
QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
NOWHERE = {"http_proxy": "http://127.0.0.1:9", "no_proxy": "127.0.0.1,localhost"}


class ClusterError(RuntimeError):
    """There is no Ray to be had; the message says why and what to do."""


@contextmanager
def connected(address: str | None, **options: Any) -> Iterator[str]:
    """Ray at an address, or without one started on this machine, where only this machine reaches it; `options` go to `ray.init`.

    Comes before anything that imports Ray, which reads its settings then.

    Yields the address of its dashboard. Raises ClusterError.
    """
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0"} if address else ALONE
    import ray

    try:
        context = _join(address) if address else _start(options)
    except (OSError, RuntimeError, ValueError) as error:
        where = f"at {address}" if address else "on this machine"
        raise ClusterError(f"no Ray {where}: {error}. See docs/cluster.md.") from error
    try:
        yield str(context.dashboard_url)
    finally:
        ray.shutdown()


def _join(address: str) -> Any:
    import ray

    return ray.init(address=address, runtime_env=SHIPPED, **QUIET)


def _start(options: dict[str, Any]) -> Any:
    import ray

    before = {name: os.environ.get(name, "") for name in NOWHERE}
    os.environ |= NOWHERE
    try:
        environment = {**SHIPPED, "env_vars": before}
        here = {"include_dashboard": True, "dashboard_host": "127.0.0.1", "_node_ip_address": "127.0.0.1"}
        return ray.init(address="local", runtime_env=environment, **{**here, **QUIET, **options})
    finally:
        os.environ |= before
