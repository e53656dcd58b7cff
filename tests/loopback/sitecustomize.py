"""Lets this Python talk to nobody but this machine.

`tests/conftest.py` gives it to every Python that a test starts.

What was tried is written to the file NETWORK_LOG names as well:
the error may be swallowed where it is raised.
"""

import os
import sys

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
