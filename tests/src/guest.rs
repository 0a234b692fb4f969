//! What a test asks the guest, through its agent.

use varve_agent::protocol::{Exec, ExecReply, Info, Request};

use crate::Vm;

impl Vm {
    /// The machine as its guest sees it.
    pub fn info(&mut self) -> Info {
        self.agent().call(&Request::Info).unwrap()
    }

    /// Runs a shell's script in the guest (which the plain initramfs can not) and returns its output.
    ///
    /// # Panics
    ///
    /// If the script fails.
    pub fn sh(&mut self, script: &str) -> String {
        let reply: ExecReply = self.agent().call(&shell(script)).unwrap();
        assert_eq!(reply.code, Some(0), "{script}: {reply:?}");
        reply.stdout
    }
}

/// The request that runs a shell's script.
pub fn shell(script: &str) -> Request {
    let argv = ["sh", "-c", script].map(str::to_owned).to_vec();
    Request::Exec(Exec { argv, stdin: String::new(), timeout_s: None })
}
