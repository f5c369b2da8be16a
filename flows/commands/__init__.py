"""Commands of `winnow` that run unattended: one module each, registered in `flows.cli`."""
