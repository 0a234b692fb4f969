"""Leads machines through their life with bandsox, a Python library for Firecracker: one step for each
line on standard input, answered by a line. What it is given is in the arguments, NAME=VALUE."""

import os
import sys

from bandsox.vm import MicroVM

given = dict(word.split("=", 1) for word in sys.argv[1:])
folder = given["folder"]
state, memory, vsock = (os.path.join(folder, name) for name in ("state", "memory", "v.sock"))


def machine(name):
    """A process of the library's own making; it is given `varve` where it wants `firecracker`."""
    vm = MicroVM(name, os.path.join(folder, name + ".sock"), firecracker_bin=given["binary"])
    vm.start_process()
    return vm


def boot():
    vm = machine("first")
    client = vm.client
    # Its put_boot_source has no initrd, without which Debian's kernel finds no drive.
    source = {"kernel_image_path": given["kernel"], "initrd_path": given["initrd"],
              "boot_args": given["boot_args"]}
    client._request("PUT", "/boot-source", source)
    client.put_drives("rootfs", given["rootfs"], is_root_device=True, is_read_only=True,
                      rate_limit_bandwidth_mbps=1000, rate_limit_iops=100000)
    client.put_machine_config(vcpu_count=1, mem_size_mib=128)
    client.put_entropy()
    client.put_vsock("vsock0", 3, vsock)
    vm.start()
    return vm


def snapshot(vm):
    vm.pause()
    vm.snapshot(state, memory)
    vm.resume()
    return vm


def restore(vm):
    # Firecracker leaves the socket where it is, and wants it out of the way: so do its users.
    vm.stop()
    if os.path.exists(vsock):
        os.unlink(vsock)
    vm = machine("second")
    vm.load_snapshot(state, memory, enable_networking=False)
    vm.resume()
    return vm


def refused(vm):
    """Errors arrive as the library expects them."""
    try:
        vm.start()
    except Exception as error:
        assert "fault_message" in str(error), error
        return vm
    raise AssertionError("a machine that runs was started again")


def main():
    vm = boot()
    try:
        print("boot", flush=True)
        for line in sys.stdin:
            step = line.strip()
            vm = {"snapshot": snapshot, "restore": restore, "refused": refused}[step](vm)
            print(step, flush=True)
    finally:
        vm.stop()


main()
