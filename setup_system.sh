#!/bin/sh
# The few system libraries Open3D needs to import and to draw without a display. Installs what is missing where it may
# (Debian and Ubuntu, as root); elsewhere says what to install and goes on: `make venv` then tells whether it was enough.
set -eu

# library file -> Debian package
need="libusb-1.0.so.0:libusb-1.0-0 libgomp.so.1:libgomp1 libGL.so.1:libgl1 libX11.so.6:libx11-6 libEGL.so.1:libegl1 libEGL_mesa.so.0:libegl-mesa0"

found() {
    for cache in "$(command -v ldconfig || true)" /sbin/ldconfig /usr/sbin/ldconfig; do
        if [ -x "$cache" ]; then
            "$cache" -p | grep -q "$1" && return 0
            return 1
        fi
    done
    return 1
}

missing=""
for entry in $need; do
    found "${entry%%:*}" || missing="$missing ${entry##*:}"
done
# llvmpipe, which draws without a graphics card, is a driver and in no library cache
driver=""
for file in /usr/lib/*/dri/swrast_dri.so /usr/lib/*/libgallium*.so /usr/lib*/dri/swrast_dri.so; do
    [ -e "$file" ] && driver="$file"
done
[ -n "$driver" ] || missing="$missing libgl1-mesa-dri"

[ -z "$missing" ] && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "installing system libraries for Open3D:$missing"
    apt-get update -qq
    # shellcheck disable=SC2086
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
else
    echo "Open3D needs these system libraries, which are missing here:$missing" >&2
    echo "as an administrator: apt-get install$missing" >&2
fi
