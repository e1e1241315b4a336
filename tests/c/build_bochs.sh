#!/bin/sh
# Makes FOLDER/bochs-3.0/bochs, the one emulator with AMX, from Debian's source. Needs apt-get and a C++ compiler.
#     sh tests/c/build_bochs.sh FOLDER
set -eu
mkdir -p "$1/apt/lists/partial" "$1/apt/cache/archives/partial"
cd "$1"
echo "deb-src [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian trixie main" > apt/sources
apt_get() {
  apt-get -qq -o Dir::Etc::sourcelist="$PWD/apt/sources" -o Dir::Etc::sourceparts=/dev/null \
    -o Dir::State::Lists="$PWD/apt/lists" -o Dir::Cache="$PWD/apt/cache" "$@"
}
# What is not needed may be missing; if the archive of the source is, tar says so.
apt_get update || true
apt_get source --download-only bochs || true
tar xf bochs_3.0*.orig.tar.xz
cd bochs-3.0
./configure --enable-cpu-level=6 --enable-x86-64 --enable-avx --enable-evex --enable-amx --enable-memtype \
  --enable-all-optimizations --with-nogui --disable-docbook --disable-cdrom CFLAGS=-O2 CXXFLAGS=-O2
make -j2 bochs
