"""How JupyterLab starts here. `make setup` copies this into .venv, where every `jupyter lab` from there reads it."""

import os
import signal
from pathlib import Path

c = get_config()  # noqa: F821  (Jupyter defines it)

# The whole project in the file browser, wherever Jupyter was started; this file is in .venv/etc/jupyter.
c.ServerApp.root_dir = str(Path(__file__).resolve().parents[3])
# In a container one often is root. It listens on this machine only, and asks for a token.
c.ServerApp.allow_root = True
# Closing the terminal ends Jupyter in order; otherwise its kernels would live on.
signal.signal(signal.SIGHUP, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
