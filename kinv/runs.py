"""The directory of a training run: whose it is, and what it was made with."""

import pathlib

from kinv import errors, files

# Options that may differ between any run and its resumption.
MAY_CHANGE = {"resume", "out", "strategy", "data_dir", "verbose"}


def open_run(path, options, may_change=()):
    """Opens a run directory: that of a run to be resumed, or a new one.

    Args:
        path: the directory. Its `config.json` records the run's options.
        options: dict of the options given now. `resume` asks to continue the
            run, if it had begun.
        may_change: names of options that are free to differ then, besides
            `MAY_CHANGE`.

    Returns:
        Whether the run had begun; if not, the directory is new or empty.

    Raises:
        errors.InputError: naming the first option that differs, or because a
            new directory cannot be had there (`files.new_directory`).
    """
    config = pathlib.Path(path) / "config.json"
    if not (options["resume"] and config.exists()):
        files.new_directory(path)
        return False
    recorded = files.read_json(config)["options"]
    free = MAY_CHANGE.union(may_change)
    for name, value in options.items():
        if name not in free and recorded.get(name) != value:
            flag = "--" + name.replace("_", "-")
            raise errors.InputError(
                f"Expected the options that {config} records, to resume the "
                f"run: {flag} {recorded.get(name)}. Received: {flag} {value}. "
                "Repeat the option, or start a new run in another directory."
            )
    return True


def record(path, options, **facts):
    """Writes `config.json`, the first file of a run.

    Args:
        path: directory of the run.
        options: dict of its options.
        **facts: what else describes it, as JSON can express it.
    """
    files.write_json(
        pathlib.Path(path) / "config.json",
        {
            "options": options,
            **facts,
            "versions": files.versions(),
            "git_commit": files.git_commit(),
        },
    )
