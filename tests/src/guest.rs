//! What a test asks the guest, through its agent.

use std::process::Command;

use varve_agent::client::Error;
use varve_agent::protocol::{
    Action, Block, Direction, Exec, ExecReply, Info, Invoke, InvokeReply, Memory, MemoryReply,
    Request, Transfer,
};

use crate::Vm;

/// A sample function in the words of the guest's shell, started by the agent as others are: it works
/// on data of its seed and answers with their checksum.
const FUNCTION: &str = r#"
mkdir -p /opt/varve /scratch
cat >/opt/varve/worker.py <<'END'
#!/bin/sh
echo '{"ready": true}'
while read line; do
    seed=$(echo "$line" | sed 's/.*"seed": *\([0-9]*\).*/\1/')
    yes "data of $seed" | head -c 2000000 >/scratch/data
    echo '{"ok": true, "checksum": "'$(sha256sum /scratch/data | cut -c1-64)'"}'
done
END
cat >/bin/python3 <<'END'
#!/bin/sh
exec sh "$1"
END
chmod +x /bin/python3
"#;

/// What the sample function answers, as the host computes it.
pub fn checksum_of(seed: u64) -> String {
    let script = format!("yes 'data of {seed}' | head -c 2000000 | sha256sum | cut -c1-64");
    let output = Command::new("sh").arg("-c").arg(script).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().into()
}

impl Vm {
    /// Puts the sample function into a guest whose file system can be written.
    pub fn install_function(&mut self) {
        self.sh(FUNCTION);
    }

    /// Calls the sample function.
    ///
    /// # Panics
    ///
    /// If the answer is not [`checksum_of`] the seed.
    pub fn call_function(&mut self, seed: u64) {
        let call = Invoke { function: "count".into(), seed, ..Invoke::default() };
        let request = Request::Invoke(call);
        let reply: InvokeReply = match self.agent().call(&request) {
            // A guest that has not yet taken note that it was restored accepts a connection, and then
            // resets it with all others.
            Err(Error::Closed) => self.agent().call(&request).unwrap(),
            reply => reply.unwrap(),
        };
        assert_eq!(reply.checksum, checksum_of(seed), "{reply:?}");
    }

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

    /// One number of a file of the guest's kernel: the first word after `key`, or the first at all.
    ///
    /// # Panics
    ///
    /// If there is none.
    pub fn number(&mut self, file: &str, key: &str) -> u64 {
        let text = self.sh(&format!("cat {file}"));
        let mut words = text.split_whitespace();
        if !key.is_empty() {
            words.find(|&word| word == key);
        }
        let word = words.next().unwrap_or_else(|| panic!("no {key:?} in {file}: {text}"));
        word.parse().unwrap_or_else(|_| panic!("{key:?} in {file} is {word:?}"))
    }

    /// Moves data between a drive and the guest, past the guest's page cache; what is written is
    /// the pattern of `seed`, and flushed.
    ///
    /// # Errors
    ///
    /// What the agent answers.
    pub fn block(
        &mut self,
        device: &str,
        direction: Direction,
        offset: u64,
        bytes: u64,
        seed: u64,
    ) -> Result<Transfer, Error> {
        let request = Block { device: device.into(), direction, offset, bytes, seed };
        self.agent().call(&Request::Block(request))
    }

    /// Works on a region of the guest's memory, which has `mib` MiB when it is new.
    ///
    /// # Panics
    ///
    /// If the agent cannot do it, or finds a word that is wrong.
    pub fn memory(&mut self, name: &str, action: Action, mib: u64, seed: u64) {
        let mib = (action == Action::Allocate).then_some(mib);
        let request = Memory { name: name.into(), action, mib, seed, threads: None };
        let _: MemoryReply = self.agent().call(&Request::Memory(request)).unwrap();
    }
}

/// The request that runs a shell's script.
pub fn shell(script: &str) -> Request {
    let argv = ["sh", "-c", script].map(str::to_owned).to_vec();
    Request::Exec(Exec { argv, stdin: String::new(), timeout_s: None })
}
