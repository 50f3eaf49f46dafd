"""Make what the bench drives: each peer's folder as it would be deployed, and its zip.

`python prepare.py FOLDER` fills FOLDER/{awslambdaric,plain,sklearn,onnx} and FOLDER/*.zip, and does nothing when
they are current. Packages come from requirements.txt, with hashes. AWS's managed Python runtime brings
`awslambdaric` along, so it is in nobody's zip.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
DATA = HERE.parents[1] / "data" / "iris.csv"
PEERS = {
    "awslambdaric": ["awslambdaric", "simplejson", "snapshot-restore-py"],
    "plain": [],
    "sklearn": ["scikit-learn", "numpy", "scipy", "joblib", "threadpoolctl", "narwhals", "cloudpickle"],
    "onnx": ["onnxruntime", "numpy", "flatbuffers", "packaging", "protobuf"],
    # Not a peer: what writes model.onnx from the scikit-learn model.
    "export": ["skl2onnx", "onnx", "ml-dtypes", "protobuf", "typing-extensions"],
}
# The fit of notebook 1 and of tests/reference.json, then the same fit as an ONNX graph in double precision.
FIT = f"""
import json, joblib, numpy as np
from sklearn.linear_model import LogisticRegression
header, *rows = np.genfromtxt({str(DATA)!r}, delimiter=",", dtype=str)
rows = np.array(rows)
model = LogisticRegression(C=1.0, tol=1e-12, max_iter=10_000).fit(rows[:, :4].astype(float), rows[:, 4])
joblib.dump(model, "sklearn/model.joblib")
names = {{"features": header[:4].tolist(), "target": str(header[4]), "classes": model.classes_.tolist(),
          "weights": model.coef_.tolist(), "intercepts": model.intercept_.tolist()}}
for folder in ("plain", "sklearn", "onnx"):
    open(folder + "/model.json", "w").write(json.dumps(names))

from skl2onnx import to_onnx
from skl2onnx.common.data_types import DoubleTensorType
options = {{id(model): {{"zipmap": False}}}}
graph = to_onnx(model, initial_types=[("instances", DoubleTensorType([None, 4]))], options=options)
open("onnx/model.onnx", "wb").write(graph.SerializeToString())
"""


def install(names: list[str], folder: Path) -> None:
    """The locked versions of `names` into `folder`."""
    lock = (HERE / "requirements.txt").read_text()
    entries = re.findall(r"^[a-z].*(?:\n +--hash.*)+", lock, re.MULTILINE)
    chosen = folder.with_suffix(".txt")
    chosen.write_text("\n".join(e for e in entries if re.split("==", e)[0] in names) + "\n")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
    subprocess.run(
        [*pip, "--no-deps", "--require-hashes", "--target", folder, "--requirement", chosen], check=True
    )


def prepare(root: Path) -> None:
    """Fill `root` from nothing."""
    for name, packages in PEERS.items():
        print(f"bench: {name}: {' '.join(packages) or 'no packages'}", flush=True)
        (root / name).mkdir(parents=True)
        if packages:
            install(packages, root / name)
        if (function := HERE / f"{name}_fn.py").exists():
            shutil.copy(function, root / name / "fn.py")
    paths = os.pathsep.join(str(root / name) for name in ("sklearn", "export"))
    subprocess.run([sys.executable, "-c", FIT], check=True, cwd=root, env={**os.environ, "PYTHONPATH": paths})
    for name in ("plain", "sklearn", "onnx"):
        # As pip leaves it, but for bytecode: what `zip -r` of the folder would send to Lambda.
        files = sorted(p for p in (root / name).rglob("*") if p.is_file() and "__pycache__" not in p.parts)
        with zipfile.ZipFile(root / f"{name}.zip", "w", zipfile.ZIP_DEFLATED) as out:
            for file in files:
                out.write(file, file.relative_to(root / name))
    for name in PEERS:
        # A read-only Lambda compiles this at every cold start; here it is done before: to the peers' advantage.
        subprocess.run([sys.executable, "-m", "compileall", "-q", root / name], check=False)


def main() -> None:
    root = Path(sys.argv[1]).resolve()
    if sys.version_info < (3, 11):
        sys.exit("make bench needs Python 3.11 or newer (scikit-learn 1.9 does): try PYTHON=python3.12")
    inputs = [*sorted(HERE.glob("*.py")), HERE / "requirements.txt", DATA]
    wanted = hashlib.sha256(b"".join(p.read_bytes() for p in inputs) + sys.version.encode()).hexdigest()
    stamp = root / "stamp"
    if stamp.exists() and stamp.read_text() == wanted:
        return
    shutil.rmtree(root, ignore_errors=True)
    prepare(root)
    stamp.write_text(wanted)


if __name__ == "__main__":
    main()
