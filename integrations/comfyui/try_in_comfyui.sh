#!/bin/sh
# Try the nodes in a clone of ComfyUI: try_in_comfyui.sh PATH_OF_COMFYUI
# Makes an environment beside the clone, links this folder into custom_nodes, and lets ComfyUI load its nodes once.
set -eu

comfyui=${1:?"usage: try_in_comfyui.sh PATH_OF_COMFYUI (git clone https://github.com/comfyanonymous/ComfyUI)"}
here=$(cd "$(dirname "$0")" && pwd)
[ -f "$comfyui/main.py" ] || { echo "$comfyui holds no ComfyUI: there is no main.py" >&2; exit 1; }
python=${PYTHON:-python3}

"$python" -m venv "$comfyui/.venv-orthotune"
"$comfyui/.venv-orthotune/bin/pip" install -r "$comfyui/requirements.txt"
"$comfyui/.venv-orthotune/bin/pip" install "$here/../.."
ln -sfn "$here" "$comfyui/custom_nodes/orthotune"

cd "$comfyui"
.venv-orthotune/bin/python main.py --cpu --quick-test-for-ci 2>&1 | tee orthotune-nodes.log
if grep -q "IMPORT FAILED.*orthotune" orthotune-nodes.log; then
  echo "the nodes did not load; see $comfyui/orthotune-nodes.log" >&2
  exit 1
fi
echo "the nodes load. Start ComfyUI: cd $comfyui && .venv-orthotune/bin/python main.py"
