"""Where the program `tanist` begins.

Loading its modules takes longer than a person needs to change their mind: Ctrl-C ends it then
as any program without a word of its own, not with a stack.
"""

from __future__ import annotations

import signal


def main() -> None:
    usual = signal.getsignal(signal.SIGINT)
    if usual is signal.default_int_handler:  # Who is started with Ctrl-C ignored goes on so.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    # Here, since this is what takes long.
    from broker.cli import main as commands

    signal.signal(signal.SIGINT, usual)
    commands()


if __name__ == "__main__":
    main()
