"""Ray stays on this machine, whichever file of tests imports it first."""

from __future__ import annotations

import os

from cluster.local import ALONE

os.environ |= ALONE
