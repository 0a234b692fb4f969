//! The function image: every sample function answers, and what it answers depends on its seed alone.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::fs;

use varve_agent::protocol::{How, Invoke, InvokeReply, Request};
use varve_tests::Vm;
use varve_tests::images::image;

/// Each function's checksum for seed 1, as it was when the image was built.
fn checksums() -> BTreeMap<String, String> {
    let text = fs::read_to_string(image("manifest.json")).unwrap();
    let manifest: serde_json::Value = serde_json::from_str(&text).unwrap();
    serde_json::from_value(manifest["functions"]["facts"]["checksums"].clone()).unwrap()
}

fn invoke(vm: &mut Vm, function: &str, seed: u64) -> InvokeReply {
    let request = Invoke { function: function.into(), seed, ..Invoke::default() };
    let reply: InvokeReply = vm.agent().call(&Request::Invoke(request)).unwrap();
    assert_eq!((reply.function.as_str(), reply.seed), (function, seed));
    reply
}

#[test]
fn every_function_answers_as_when_the_image_was_made() {
    let expected = checksums();
    assert_eq!(expected.len(), 13);
    let root = image("functions.ext4");
    let drive = format!("{}:ro", root.display());
    let mut vm = Vm::builder()
        .initrd(Some(image("initramfs.cpio")))
        .option("--rootfs", &drive)
        .option("--memory", "1G")
        .arg("--entropy")
        .start();
    for (function, checksum) in &expected {
        let other = invoke(&mut vm, function, 2);
        assert!(other.start_micros.is_some(), "{other:?}");
        // In the worker that runs already: what another input left there makes no difference.
        let reply = invoke(&mut vm, function, 1);
        assert_eq!(reply.start_micros, None, "{reply:?}");
        assert_eq!(&reply.checksum, checksum, "{function}: {reply:?}");
        assert_ne!(&other.checksum, checksum, "{function}");
    }

    let request = Invoke { function: "dance".into(), seed: 1, ..Invoke::default() };
    let refused = vm.agent().call::<InvokeReply>(&Request::Invoke(request)).unwrap_err();
    assert!(refused.to_string().contains("dance"), "{refused}");

    let drives = vm.info().block;
    assert_eq!(drives.len(), 1);
    assert!(drives[0].read_only && drives[0].serial.as_deref() == Some("rootfs"), "{drives:?}");
    assert_eq!(drives[0].bytes, fs::metadata(&root).unwrap().len());
    vm.power(How::Poweroff);
    let end = vm.wait();
    assert_eq!(end.code, Some(0), "{end:?}");
}
