"""Where a model is: in a folder, in the hub's cache on this machine, or on the hub, if that can be reached."""

from __future__ import annotations

import os
import socket
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

from ray_l4.config.paths import expand_home, is_path
from ray_l4.errors import ModelError, first_line

_HUB_TIMEOUT = 3.0
"""Seconds to wait for a connection to the hub."""
_CACHED = ("config.json", "tokenizer_config.json")
"""Files of which a cached model or tokeniser has at least one."""


def located(name: str, where: str = "model.name", trusted: bool = False) -> dict[str, bool]:
    """Return the arguments with which the libraries load a model: no code that comes with it, no unreachable hub.

    ``where``: the key or file that names the model, for messages. ``trusted``: let code that comes with it run
    (``model.trust_custom_code``). Raises ModelError, saying where it was looked for, if there is no such folder and it
    cannot be on the hub: the libraries would try to connect for half a minute.
    """
    # Said outright: without it, Transformers asks at the terminal whether to run code that comes with a model.
    code = {"trust_remote_code": trusted}
    path = expand_home(name)
    if path.is_dir():
        return code
    if path.is_file():
        raise ModelError(f"{where}: {path.absolute()} is a file; expected the folder of a model. {_GIVE}")
    if is_path(name):
        raise ModelError(f"{where}: there is no folder {path.absolute()}.{similar_folder(path)} {_GIVE}")
    if _hub_is_reachable():
        return code
    if not _is_cached(name):
        raise ModelError(
            f"{where}: {name!r} is neither a folder (looked for {path.absolute()}) nor a model in the hub's cache on "
            f"this machine, and the hub cannot be reached.{similar_folder(path)} {_GIVE}"
        )
    return code | {"local_files_only": True}


_GIVE = "Give a folder with config.json, model.safetensors and tokenizer.json, or the name of a model on the hub."


def loading_error(error: Exception) -> str:
    """Return in a line why a library could not load a model, in our terms if the model has code of its own."""
    if "trust_remote_code" in str(error):
        return (
            "it comes with Python code of its own, which would run with all rights of your account. Give a model of an "
            "architecture that Transformers contains; or, if you trust the authors of the code, set "
            "model.trust_custom_code: true in the experiment of a run, or give --trust-custom-code to a command on "
            "models."
        )
    return first_line(error)


def similar_folder(path: Path) -> str:
    """Return a hint with the folder beside ``path`` whose name is most like it; empty if there is none."""
    folders = [each.name for each in path.parent.iterdir() if each.is_dir()] if path.parent.is_dir() else []
    close = get_close_matches(path.name, folders, n=1, cutoff=0.6)
    return f" Did you mean {path.parent / close[0]}?" if close else ""


def _is_cached(name: str) -> bool:
    import huggingface_hub

    try:
        return any(isinstance(huggingface_hub.try_to_load_from_cache(name, file), str) for file in _CACHED)
    except ValueError:  # it cannot be the name of a model
        return False


@cache
def _hub_is_reachable() -> bool:
    """Return whether the hub answers. Through a proxy, which is not asked, it is taken to."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True
    address = urlsplit(constants.ENDPOINT)
    try:
        port = address.port or (443 if address.scheme == "https" else 80)
        socket.create_connection((address.hostname or "", port), _HUB_TIMEOUT).close()
    except OSError:
        return False
    return True
