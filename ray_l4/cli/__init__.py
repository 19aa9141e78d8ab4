"""The command line.

At their top, the modules of this room import only the standard library, typer and each other; a command imports the
rest when it runs. Help, tables and messages about a mistake then come within 0.4 CPU-seconds, where importing PyTorch
and Ray takes several. ``tests/cli/test_cli_imports.py`` checks it.
"""
