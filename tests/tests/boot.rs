//! Booting: every way into a kernel, processors, memory.

#![allow(clippy::unwrap_used, reason = "tests")]

use varve_agent::protocol::{How, Info, Request};
use varve_tests::Vm;
use varve_tests::images::image;

fn info(vm: &mut Vm) -> Info {
    vm.agent().call(&Request::Info).unwrap()
}

#[test]
fn every_way_into_the_kernel() {
    for (kernel, protocol) in [("vmlinux", "pvh"), ("vmlinux", "linux"), ("bzImage", "auto")] {
        let mut vm = Vm::builder()
            .kernel(image(kernel))
            .option("--boot-protocol", protocol)
            .option("--memory", "128M")
            .start();
        let info = info(&mut vm);
        assert_eq!(info.cpus, 1, "{kernel} by {protocol}");
        vm.power(How::Poweroff);
        let end = vm.wait();
        assert_eq!(end.code, Some(0), "{kernel} by {protocol}: {end:?}");
        assert!(end.stderr.contains("guest power-off"), "{end:?}");
    }
}
