"""Python code that came with a model, as files to keep beside its weights."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from transformers.dynamic_module_utils import get_relative_import_files
from transformers.utils import TRANSFORMERS_DYNAMIC_MODULE_NAME

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def code_of(model: PreTrainedModel) -> dict[str, str]:
    """Return the files of the code that defines ``model``: name -> text; none if Transformers itself defines it."""
    classes = (*type(model).__mro__, *type(model.config).__mro__)
    modules = {own.__module__ for own in classes if own.__module__.startswith(f"{TRANSFORMERS_DYNAMIC_MODULE_NAME}.")}
    files = {Path(str(sys.modules[module].__file__)) for module in modules}
    files |= {Path(imported) for file in files for imported in get_relative_import_files(file)}
    return {file.name: file.read_text(encoding="utf-8") for file in sorted(files)}
