"""``completion``: what a shell needs to complete commands, options and names."""

from __future__ import annotations

import click

from cbq_exporter.cli import options

PROGRAM = "cbq-exporter"
# Where the shell puts what it wants to know when it asks the program; the name is click's rule.
_VARIABLE = "_CBQ_EXPORTER_COMPLETE"


@click.command
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@options.debug
def completion(shell: str) -> int:
    """Print what makes a shell complete commands, options and names.

    \b
    bash:
      cbq-exporter completion bash \\
        > ~/.local/share/bash-completion/completions/cbq-exporter
    zsh, with ~/.zfunc in fpath:
      cbq-exporter completion zsh > ~/.zfunc/_cbq-exporter
    fish:
      cbq-exporter completion fish \\
        > ~/.config/fish/completions/cbq-exporter.fish
    """
    from click.shell_completion import get_completion_class

    from cbq_exporter.cli.main import app

    kind = get_completion_class(shell)
    assert kind is not None
    made = kind(app, {}, PROGRAM, _VARIABLE)
    # Not source(), which also runs bash to look at its version.
    click.echo((made.source_template % made.source_vars()).strip())
    return 0
