#!/bin/sh
# Writes into $1 the root of the image, from the Debian this runs in: the program in /opt/cbq-exporter, what its
# interpreter needs of the system, and no more. Neither shell nor package manager; scanners find the packages in
# /var/lib/dpkg/status.d, as in other images without one.
set -eu
root=$1
packages="base-files ca-certificates netbase tzdata
    libc6 libgcc-s1 zlib1g libbz2-1.0 liblzma5 libexpat1 libffi8 libssl3 libuuid1
    python3.11-minimal libpython3.11-minimal libpython3.11-stdlib"
# Not needed to run: documentation, translations, encodings of texts that nobody sends, parts of the library for making
# programs, and time zones a second and a third time.
left_out='^/usr/share/(doc|man|lintian|locale|python3|bug|i18n)/|/(lib2to3|pydoc_data|ensurepip|idlelib)/'
left_out="$left_out|^/usr/lib/[^/]+/gconv/|^/usr/share/zoneinfo/(right|posix)/"

mkdir -p "$root/usr" "$root/var/lib/dpkg/status.d" "$root/opt" "$root/etc/cbq-exporter"
for name in bin lib lib64 sbin; do
    mkdir "$root/usr/$name"
    ln -s "usr/$name" "$root/$name"
done
for name in dev proc run sys; do mkdir "$root/$name"; done
mkdir -m 1777 "$root/tmp"

for package in $packages; do
    dpkg -s "$package" > "$root/var/lib/dpkg/status.d/$package"
    dpkg -L "$package" | grep -vE "$left_out" | while read -r path; do
        if [ -L "$path" ] || [ -f "$path" ]; then cp -P --parents "$path" "$root"; fi
    done
done
install -m 0644 "$(dirname "$0")/config.yaml" "$root/etc/cbq-exporter/"
cp --parents /etc/ssl/certs/ca-certificates.crt "$root"
python3 -m compileall -q "$root/usr/lib/python3.11" # the root may be read-only

printf '%s\n' 'root:x:0:0::/:/' 'cbq-exporter:x:10001:10001::/var/lib/cbq-exporter:/' > "$root/etc/passwd"
printf '%s\n' 'root:x:0:' 'cbq-exporter:x:10001:' > "$root/etc/group"
echo 'hosts: files dns' > "$root/etc/nsswitch.conf"
install -d -m 0700 -o 10001 -g 10001 "$root/var/lib/cbq-exporter"

cp -a /opt/cbq-exporter "$root/opt/"
ln -sf /usr/bin/python3.11 "$root/opt/cbq-exporter/bin/python3"
