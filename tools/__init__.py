"""One script per verb; installed they are `kinv.tools` and the command kinv."""
