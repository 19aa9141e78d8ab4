"""The processes of a run: placement, start, calls, and membership."""

import os

# Ray reads these variables when it is imported, and the modules of this package import it.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_DEDUP_LOGS", "0")
