"""Ray stays on this machine, whichever file of tests imports it first,
and leaves no token in the home folder.
"""

from __future__ import annotations

import os
import secrets

from cluster.local import ALONE

os.environ |= {**ALONE, "RAY_AUTH_TOKEN": secrets.token_hex(32)}
