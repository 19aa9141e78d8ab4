"""Run directories: their files, and the copy of a run directory on other storage."""
