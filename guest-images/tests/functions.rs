//! Runs the sample functions' own tests, which are in Python; what the machine lacks is skipped there.

use std::path::Path;
use std::process::Command;

#[test]
fn sample_functions() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("functions");
    let run = Command::new("python3").args(["-B", "-m", "unittest"]).current_dir(folder).output();
    let output = match run {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            varve_skip::skip!("python3", "apt-get install python3");
            return;
        }
        run => run.expect("python3 can be started"),
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
