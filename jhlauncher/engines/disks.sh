# What the helper container of disks.py does, on the Docker host: sh -euc THIS disks KIND GROUP ACTION [ARGUMENT ...]
#
# The host's /dev is here, its folder of image files at /disks, the folder of the devices' names, which a reboot empties,
# at /names, and what the kernel says of loop devices at /loops. Whatever is done may be cut off at any point: a disk has its name once it is complete.

kind=$1 group=$2
shift 2

refuse() {
  echo "$*" >&2
  exit 1
}

# make_file_system DEVICE: empty, without lost+found, so that it is seen to be fresh. It keeps all of its blocks
# (nodiscard) for whom it is (-m 0), and has inodes enough for small files.
make_file_system() {
  mkfs.ext4 -q -F -m 0 -b 4096 -i 8192 -E nodiscard "$1"
  debugfs -w -R "rmdir lost+found" "$1" 2>/dev/null
}

# -- an image file with a loop device

loopback_exists() { [ -f "/disks/$1" ]; }

# The host has so many bytes. What only tries would fill it for a moment, and hit others.
loopback_room() {
  free=$(df -B 1 --output=avail /disks | tail -n 1)
  [ "$1" -lt "$free" ] || refuse "the host has no room for it: it needs $1 bytes, and $free are free"
}

loopback_make() {
  loopback_room "$2"
  new=/disks/.new/$1
  mkdir -p -m 700 /disks/.new
  rm -f "$new"
  trap 'rm -f "$new"' EXIT
  (umask 077; fallocate -l "$2" "$new") # not sparse: what is promised is there
  make_file_system "$new"
  sync "$new"
  mv -T "$new" "/disks/$1"
}

loopback_device() { losetup -n -O NAME -j "/disks/$1" | head -n 1; }

# The name leads to this disk's device, and never to one that another has had before.
loopback_attach() {
  device=$(loopback_device "$1")
  [ "$device" ] || device=$(losetup --find --show "/disks/$1")
  echo 0 > "/loops/${device#/dev/}/queue/discard_max_bytes" # no fstrim gives the file's blocks back
  ln -sfn "$device" /names/.new
  mv -fT /names/.new "/names/$1"
}

loopback_size() { stat -c %s "/disks/$1"; }

loopback_extend() {
  fallocate -l "$2" "/disks/$1" || { truncate -s "$old" "/disks/$1"; exit 1; }
  losetup -c "$device"
}

loopback_remove() {
  rm -f "/names/$1"
  device=$(loopback_device "$1")
  [ -z "$device" ] || losetup -d "$device"
  rm "/disks/$1"
}

loopback_names() { find /disks -maxdepth 1 -type f ! -name '.*' -printf '%f\n'; }

# -- a logical volume; without udev, which no container has, LVM makes the devices itself

lvm_do() {
  command=$1
  shift
  "$command" --config 'activation{udev_sync=0 udev_rules=0} devices{obtain_device_list_from_udev=0}' "$@" 9>&-
}

lvm_exists() { [ "$(lvm_names | grep -Fx -e "$1")" ]; }

lvm_make() {
  new=$group/${1}_
  trap 'lvm_do lvremove -qq -y "$new" >/dev/null 2>&1 || :' EXIT
  lvm_do lvremove -qq -y "$new" 2>/dev/null || :
  lvm_do lvcreate -qq -y -Wy --addtag jhlauncher -L "${2}b" -n "${1}_" "$group"
  make_file_system "/dev/$new"
  lvm_do lvrename -qq "$group" "${1}_" "$1"
}

lvm_attach() {
  device=/dev/$group/$1
  lvm_do lvchange -qq -ay "$group/$1"
}

lvm_room() { :; } # lvextend says it, and takes nothing

lvm_size() { lvm_do lvs --noheadings --units b --nosuffix -o lv_size "$group/$1" | tr -d ' '; }

lvm_extend() { [ "$2" -le "$old" ] || lvm_do lvextend -qq -L "${2}b" "$group/$1"; }

lvm_remove() { lvm_do lvremove -qq -y "$group/$1"; }

# Those with the launcher's tag that are complete: no disk's name ends with _
lvm_names() { lvm_do lvs --noheadings -o lv_name -S 'tags=jhlauncher && lv_name!~_$' "$group" | tr -d ' '; }

# -- what is asked for

need() { "${kind}_exists" "$1" || refuse "there is no disk $1 on this host"; }

# create NAME BYTES; one that is there is taken as it is
create() { "${kind}_exists" "$1" || "${kind}_make" "$1" "$2"; }

attach() {
  for name; do
    need "$name"
    "${kind}_attach" "$name"
  done
}

may_grow() {
  need "$1"
  old=$("${kind}_size" "$1")
  [ "$2" -ge "$old" ] || refuse "the disk $1 has $old bytes: it can grow, not shrink"
  "${kind}_room" "$(($2 - old))"
  "${kind}_attach" "$1"
}

# grow NAME BYTES. A file system that is mounted must grow through its mount: other mounts of the host can't be seen
# here, but ours, of the same device, is the same file system.
grow() {
  may_grow "$1" "$2"
  "${kind}_extend" "$1" "$2"
  mount -t ext4 -o nosuid,nodev "$device" /mnt
  resize2fs "$device" >/dev/null
  umount /mnt
}

# The same of one that is not in use, where mounted ones can't be grown: both programs want the device for themselves.
grow_unused() {
  may_grow "$1" "$2"
  e2fsck -f -p "$device" >/dev/null || [ $? -lt 4 ] || refuse "Stop the servers that use it: this Docker host (without" \
    "CAP_SYS_RESOURCE) grows no file system that is mounted."
  "${kind}_extend" "$1" "$2"
  resize2fs "$device" >/dev/null
}

remove() {
  for name; do
    ! "${kind}_exists" "$name" || "${kind}_remove" "$name"
  done
}

# NAME SIZE USED of each, in bytes
list() {
  names=$("${kind}_names")
  for name in $names; do
    used=
    if "${kind}_attach" "$name" && mount -t ext4 -o nosuid,nodev "$device" /mnt; then
      used=$(df -B 1 --output=used /mnt | tail -n 1)
      umount /mnt
    fi
    echo "$name" "$("${kind}_size" "$name")" $used
  done
}

exec 9>/names/.lock
flock -w 100 9 || refuse "others are at work on this host's disks"
"$@"
