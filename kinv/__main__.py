"""The command `kinv`: a subcommand for each tool, also `python -m kinv`."""

import argparse
import runpy
import sys

import kinv

TOOLS = {
    "train-classifier": "train a classifier, or an adversarially robust one",
    "train": "train a generator that inverts a classifier's logits",
    "export": "make one SavedModel of classifier and generator",
    "invert": "reconstruct images",
    "serve": "serve models, and a page in the browser",
    "analyze": "run the experiments, and write the report",
    "demo": "train a small inversion of rendered scenes, from nothing",
    "benchmark": "measure the speed of training and generation",
    "benchmark-serving": "measure the speed of a served model",
}


def main():
    """Runs the tool that the first argument names, with those after it."""
    parser = argparse.ArgumentParser(
        prog="kinv",
        description="Shows what an image classifier still knows at its logits.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="tools (kinv TOOL --help tells more):\n"
        + "\n".join(f"  {name:18} {does}" for name, does in TOOLS.items()),
    )
    parser.add_argument("--version", action="version", version=kinv.__version__)
    parser.add_argument("tool", choices=TOOLS, metavar="TOOL")
    tool = parser.parse_args(sys.argv[1:2]).tool
    # What argparse and messages call the command.
    sys.argv = [f"kinv {tool}", *sys.argv[2:]]
    module = tool.replace("-", "_")
    runpy.run_module(f"kinv.tools.{module}", run_name="__main__")


if __name__ == "__main__":
    main()
