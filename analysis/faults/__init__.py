"""Faults injected from outside into real runs, and whether the results equal those of an undisturbed run."""
