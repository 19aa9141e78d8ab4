"""Bad input from outside, made at random: every command must end in a message and an exit code of the table.

::

    python -m analysis.fuzz --inputs 20000 [--seed N] [--kind KIND ...] [--workers N] [--out FOLDER]

An input (``inputs.py``) is a command line with the files that it reads: a configuration, a data file, a topology, a run
directory or a text, damaged by ``hypothesis`` (``mutations.py``). Worker processes (``workers.py``) run the inputs
through the entry point of ``ray-l4`` itself (``calls.py``). A traceback, an exit code that the kind of input does not
allow, and a command that takes longer than 10 seconds are failures; each is written to ``FOLDER`` to be looked at.
"""
