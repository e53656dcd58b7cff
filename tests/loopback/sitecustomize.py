"""Lets this Python talk to nobody but this machine, and begin sooner.

`tests/conftest.py` gives it to every Python that a test starts.

What was tried is written to the file NETWORK_LOG names as well:
the error may be swallowed where it is raised.
"""

import importlib
import os
import sys
from importlib.machinery import PathFinder, SourceFileLoader
from types import ModuleType

# Where the other end stands among what Python's audit hooks are told.
ADDRESSES = {
    "socket.connect": 1,
    "socket.sendto": 1,
    "socket.sendmsg": 1,
    "socket.getaddrinfo": 0,
    "socket.gethostbyname": 0,
}
HERE = ("localhost", "::1", "::ffff:127.0.0.1", "0.0.0.0", "", None)


def refuse(event, arguments):
    """Raises PermissionError for what leaves the machine."""
    if event not in ADDRESSES:
        return
    address = arguments[ADDRESSES[event]]
    host = (
        address[0]
        if isinstance(address, tuple)
        else address
        if event.startswith("socket.get")
        else None
    )
    host = host.decode() if isinstance(host, bytes) else host
    if not isinstance(host, str) or host in HERE or host.startswith("127."):
        return
    with open(os.environ["NETWORK_LOG"], "a") as log:
        log.write(f"{event} {host} by {' '.join(sys.argv)}\n")
    raise PermissionError(f"tests talk to this machine alone, not to {host}")


sys.addaudithook(refuse)

# torchvision 0.29 asks torch's compiler one question, and imports all of it for that: a third of
# the time that ComfyUI takes to start. It is imported when the question is put.
ASKING, COMPILER = "torchvision.ops.roi_align", "torch._dynamo.utils"


class Later(SourceFileLoader):
    """Loads the module that asks with an answer in place of the compiler."""

    def exec_module(self, module):
        answer = ModuleType(COMPILER)
        answer.is_compile_supported = lambda device: importlib.import_module(
            COMPILER
        ).is_compile_supported(device)
        sys.modules[COMPILER] = answer
        try:
            super().exec_module(module)
        finally:
            del sys.modules[COMPILER]


class Finder:
    """Finds that module for `Later`."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name != ASKING or COMPILER in sys.modules:
            return None
        found = PathFinder.find_spec(name, path, target)
        if found is not None and type(found.loader) is SourceFileLoader:
            found.loader = Later(found.loader.name, found.loader.path)
        return found


sys.meta_path.insert(0, Finder)
