"""The inbox of a run: examples that arrived after it began, kept until a stage learns them, each exactly once.

::

    RUN_DIR/inbox/
        .lock                     held by whoever writes below, for as long as one write takes
        learned.json              the assignments: which stage learns which segments (``assignments.py``)
        TASK/                     the task's name as ``store/names.file_part`` writes it
            segments/NUMBER.COUNT.CHECKSUM.jsonl   examples to learn (``segments.py``)
            tests/NUMBER.COUNT.CHECKSUM.jsonl      test examples of a task that the run does not know
            task.yaml             metric, question, ... of such a task
            *.jsonl *.csv *.tsv *.parquet          files that a person put there (``tasks/dropped_files.py``)
    RUN_DIR/data/inbox-NUMBER.TASK/                what one stage learns (``stage_data.py``)

**Nothing acknowledged is lost.** A segment is written beside its place, forced to disk, and renamed; the folder is
forced to disk as well. Only then are its examples acknowledged. Whoever is killed before that leaves a temporary file,
which the next writer removes. Segments are never changed. What arrives while a segment is written goes into the next
one together.

**Nothing is stored twice.** The id of an example is a digest of its texts. A writer knows the ids of all segments of
the task, also of those that were learned; before each write it reads segments that another process has added. So a
client that got no answer may send its example again. A file that a person put there is read like any other
examples, and as often as it changes: only what is new in it becomes a segment. The file itself is left alone.

**Each segment is learned exactly once.** ``assignments.take`` gives waiting segments to a stage by one write of
``learned.json``: this is the moment from which they are assigned, to a number that is never given again. Everything
else follows from the record, and can be done again after a crash with the same result: the data folder of the stage is
made from the segments that the record names, and its name tells whether the stage is in the run's stream already. An
assignment whose folder is not in the stream is *pending*, and ``take`` returns it instead of making another one. So
whoever learns calls ``take``, extends the run by what it returns, and may be killed between any two operations::

    found = take(run, tasks)                            # the same ones again until they are in the stream
    extend(run, [stage_task(each) for each in found])   # the manifest, then config.yaml, names the data folders

(``stage_task``: ``tasks/inbox_tasks.py``.) A run whose extension was interrupted is resumed, as any other.

An assignment that no stage can learn, whatever is tried, is set aside (``assignments.set_aside``): it is not pending
any more, its segments and its data folder stay, and a person is told what to do.

Damaged segments are reported and never assigned; restored from a copy, they wait as before.
"""
