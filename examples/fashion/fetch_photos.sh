#!/usr/bin/env bash
# Put the Fashion-MNIST photos where stablerep.data.labelled looks for them: the Debian package where apt-get is there
# (installed as root, unpacked into the user's cache otherwise), torchvision's mirror elsewhere. Does nothing where they are.
# Usage: fetch_photos.sh [PYTHON]
set -euo pipefail

system=/usr/share/datasets/fashion-mnist
cache="$HOME/.cache/stablerep/fashion-mnist"
files=(train-images-idx3-ubyte.gz train-labels-idx1-ubyte.gz t10k-images-idx3-ubyte.gz t10k-labels-idx1-ubyte.gz)
python="${1:-python3}"

complete() {
    for file in "${files[@]}"; do
        [ -s "$1/$file" ] || return 1
    done
}

keep() { # whole or not at all: a broken run leaves nothing that looks complete
    complete "$1" && mkdir -p "$(dirname "$cache")" && rm -rf "$cache.new" "$cache" && cp -rL "$1" "$cache.new" &&
        mv "$cache.new" "$cache"
}

install_package() {
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || return 1
    apt-get install -y -q dataset-fashion-mnist || { apt-get update -q && apt-get install -y -q dataset-fashion-mnist; }
    complete "$system"
}

unpack_package() {
    command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || return 1
    (cd "$scratch" && apt-get download -q dataset-fashion-mnist && dpkg-deb -x dataset-fashion-mnist_*.deb unpacked) &&
        keep "$scratch/unpacked$system"
}

from_torchvision() {
    "$python" -c "import sys, torchvision; torchvision.datasets.FashionMNIST(sys.argv[1], download=True)" "$scratch" &&
        keep "$scratch/FashionMNIST/raw"
}

if complete "$system" || complete "$cache"; then
    exit 0
fi
scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT
export DEBIAN_FRONTEND=noninteractive
for way in install_package unpack_package from_torchvision; do
    if "$way" </dev/null; then
        exit 0
    fi
done
echo "Fashion-MNIST could not be fetched; put the four files ${files[*]} into $cache" >&2
exit 1
