//! What a test asks the guest, through its agent.

use varve_agent::client::Error;
use varve_agent::protocol::{
    Action, Block, Direction, Exec, ExecReply, Info, Memory, MemoryReply, Request, Transfer,
};

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
