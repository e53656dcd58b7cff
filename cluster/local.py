"""Ray: a cluster that runs, or one on this machine alone."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from launch.environment import ROOT

# What an actor needs of the checkout; ComfyUI and the pack are on every machine.
SHIPPED = {"py_modules": [str(ROOT / "cluster"), str(ROOT / "launch")], "excludes": ["__pycache__"]}
# Ray takes this machine's outer address unless clusters are off, and gives its workers a low
# priority. Its dashboard asks the metadata services of clouds which of them this is, with usage
# statistics or without: through a proxy that is not there it asks nobody.
ALONE = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_worker_niceness": "0",
}
LONGEST = 500  # letters of what Ray says
PATIENCE = 10.0  # seconds
QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
NOWHERE = {"http_proxy": "http://127.0.0.1:9", "no_proxy": "127.0.0.1,localhost"}


class ClusterError(RuntimeError):
    """There is no Ray to be had; the message says why and what to do."""


@contextmanager
def connected(address: str | None, **options: Any) -> Iterator[str]:
    """Connects to Ray at an address, or starts it on this machine.

    Only this machine reaches a Ray that is started here. Comes before anything that imports Ray,
    which reads its settings then.

    Args:
        address: Of a cluster that runs, as `ray.init` takes it; None starts one.
        **options: More for `ray.init` where one is started.

    Yields:
        The address of its dashboard.

    Raises:
        ClusterError: If there is no Ray to be had.
    """
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0"} if address else ALONE
    try:
        import ray
    except Exception as error:  # whatever a broken one raises
        found = f"Ray cannot be imported ({_in_a_line(error)})"
        raise ClusterError(
            f"{found}. In ComfyUI's environment: pip install 'ray[default]'."
        ) from error
    try:
        context = _join(address) if address else _start(options)
    except Exception as error:  # it has many, and some are of no class of their own
        with suppress(Exception):  # a broken one cannot even do this
            ray.shutdown()
        where = f"at {address}" if address else "on this machine"
        raise ClusterError(f"no Ray {where}: {_in_a_line(error)}. See docs/cluster.md.") from error
    try:
        yield str(context.dashboard_url)
    finally:
        ray.shutdown()


def _in_a_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:LONGEST].rstrip(". ")


def _join(address: str) -> Any:
    import ray

    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():  # Ray itself would knock for minutes where nobody is
        socket.create_connection((host.strip("[]"), int(port)), PATIENCE).close()
    return ray.init(address=address, runtime_env=SHIPPED, **QUIET)


def _start(options: dict[str, Any]) -> Any:
    import ray

    before = {name: os.environ.get(name, "") for name in NOWHERE}
    os.environ |= NOWHERE
    try:
        environment = {**SHIPPED, "env_vars": before}
        here = {
            "include_dashboard": True,
            "dashboard_host": "127.0.0.1",
            "_node_ip_address": "127.0.0.1",
        }
        return ray.init(address="local", runtime_env=environment, **{**here, **QUIET, **options})
    finally:
        os.environ |= before
