"""The command line.

Modules that ``main`` imports have only light imports at their top (the standard library, typer, ``ray_l4.errors``). A
command imports the rest when it runs. Help, tables and messages about a mistake then take less than 0.4 CPU-seconds,
where the import of PyTorch and Ray takes several. ``tests/cli/test_cli_imports.py`` checks it.
"""
