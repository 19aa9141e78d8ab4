"""A run's processes: where they are placed, how they are called, and which of them are alive."""

import os

# Ray reads these variables when it is imported, which the modules of this room do.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_DEDUP_LOGS", "0")
