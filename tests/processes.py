"""Fresh processes that import the scoretk that is tested, whatever else is installed, and ports where they meet."""

import os
import socket
from pathlib import Path

import scoretk

TESTED = Path(scoretk.__file__).resolve()
IS_TESTED = f"import scoretk, pathlib; assert str(pathlib.Path(scoretk.__file__).resolve()) == {str(TESTED)!r}"
"""Code for such a process, which ends it where it has found another scoretk."""


def environment(*folders, **more):
    """This process's, with the tested scoretk and these folders on the path of imports, and more variables.

    The checkout stands first: from another working directory, and with a path of its own, a process would import the scoretk
    that is installed.
    """
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, (TESTED.parent.parent, *folders))),
        **more,
    }


def held_port():
    """A socket with a port on which a store of ranks can listen, and which the system gives to nobody else while it is open."""
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("localhost", 0))
    return held
