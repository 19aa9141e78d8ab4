"""The cluster profiles that come with the project, so that ``--cluster laptop`` names one from any folder."""

from __future__ import annotations

from pathlib import Path

from ray_l4.errors import ConfigError, nearest

PROFILES = Path(__file__).parent / "profiles"
"""Folder of the profiles: a link to ``cluster_configs`` of the repository, its files in an installed package."""


def profile_path(name: str | Path) -> Path:
    """Return the file of a profile: the file ``name`` if there is one, else the project's profile of that name.

    Raises:
        ConfigError: there is neither; the message names the profiles of the project.
    """
    path = Path(name)
    known = {file.stem: file for file in PROFILES.glob("*.yaml")}
    plain = path.parent == Path() and path.suffix in ("", ".yaml", ".yml")
    if path.is_file() or not plain:
        return path  # reading it names what is wrong with it
    if path.stem in known:
        return known[path.stem]
    hint = nearest(path.stem, known, f"{PROFILES} holds no profiles.")
    names = "" if not known or hint.startswith("Known") else f" Known: {', '.join(sorted(known))}."
    raise ConfigError(f"--cluster {name}: no such file, and no profile of the project has this name. {hint}{names}")
