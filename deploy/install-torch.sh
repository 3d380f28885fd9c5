#!/bin/sh
# install-torch.sh PYTHON REQUIREMENT: installs torch, without CUDA where there is no NVIDIA GPU.
#
# PyPI's own wheel for Linux brings gigabytes of CUDA libraries that a CPU machine has no use for. The CPU build has
# the local version `+cpu`: pip may have it at hand (find-links, a mirror), else PyTorch's index has it, and where
# neither can be reached PyPI's wheel does as well, only larger. A REQUIREMENT that is not `torch==X.Y.Z` is
# installed as it is. TORCH_CUDA=1 asks for the CUDA build on a machine without a GPU (an image to be run elsewhere).
set -eu
python=$1 requirement=$2
index=https://download.pytorch.org/whl/cpu
pip="$python -m pip install --quiet --quiet"

case $requirement in
torch==*+*) is_plain=no ;;
torch==*) is_plain=yes ;;
*) is_plain=no ;;
esac
if [ $is_plain = no ] || [ -n "${TORCH_CUDA:-}" ] || command -v nvidia-smi >/dev/null || [ "$(uname -s)" != Linux ]; then
  exec $pip "$requirement"
fi
$pip "$requirement+cpu" 2>/dev/null && exit
echo "no CPU build of $requirement in pip's index; trying $index"
$pip --retries 1 --timeout 15 --extra-index-url "$index" "$requirement+cpu" 2>/dev/null && exit
echo "not there either; taking the build of pip's index"
exec $pip "$requirement"
