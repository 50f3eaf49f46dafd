# The workshop where nothing can be installed: everything built, and JupyterLab when it starts. The README has the commands.
# No container engine has run this file yet: notebooks/kernel/test_container.py runs its steps in a bare Debian instead.
FROM rust:1.95.0-slim-bookworm

# What the README asks for beside Rust, and nothing else.
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev make python3 python3-venv \
 && rm -rf /var/lib/apt/lists/*

RUN useradd --create-home workshop
USER workshop
WORKDIR /home/workshop/iris-workshop
COPY --chown=workshop . .
RUN make build

EXPOSE 8888
# All of the container's addresses, because `docker run -p` does not reach its 127.0.0.1. JupyterLab asks for its token.
CMD ["make", "lab", "LAB_ARGS=--ip=0.0.0.0 --no-browser"]
