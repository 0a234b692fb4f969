//! The keyboard controller (Intel 8042) with a keyboard of three keys: a guest resets the machine
//! by it, and Ctrl-Alt-Del asks the guest to restart or shut down. It has no mouse.
//!
//! Every command is answered at once, the refusal of a mouse too: a driver that probes for more
//! than there is waits for nothing.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use vm_superio::Trigger;

use crate::bus::BusDevice;
use crate::interrupt::IrqLine;
use crate::metrics::I8042Metrics;
use crate::state::{self, Savable, StateError};
use crate::stop::{SharedStopSink, StopReason};

/// First port of the controller (data register; the command register is four further).
pub const I8042_BASE: u64 = 0x60;
/// Ports it occupies.
pub const I8042_LEN: u64 = 5;
/// Interrupt of the keyboard.
pub const I8042_IRQ: u32 = 1;

const VERSION: u32 = 2;
const DATA: u64 = 0;
const COMMAND: u64 = 4;

/// Commands to the controller, written to the command register.
mod command {
    pub(super) const READ_CONTROL: u8 = 0x20;
    pub(super) const WRITE_CONTROL: u8 = 0x60;
    pub(super) const DISABLE_MOUSE: u8 = 0xa7;
    pub(super) const ENABLE_MOUSE: u8 = 0xa8;
    pub(super) const TEST_MOUSE: u8 = 0xa9;
    pub(super) const TEST: u8 = 0xaa;
    pub(super) const TEST_KEYBOARD: u8 = 0xab;
    pub(super) const DISABLE_KEYBOARD: u8 = 0xad;
    pub(super) const ENABLE_KEYBOARD: u8 = 0xae;
    pub(super) const READ_OUTPUT_PORT: u8 = 0xd0;
    pub(super) const WRITE_OUTPUT_PORT: u8 = 0xd1;
    /// These three put a byte where the keyboard's or mouse's would be, or send it to the mouse.
    pub(super) const ECHO_KEYBOARD: u8 = 0xd2;
    pub(super) const ECHO_MOUSE: u8 = 0xd3;
    pub(super) const WRITE_MOUSE: u8 = 0xd4;
    pub(super) const RESET: u8 = 0xfe;
}

/// Bits of the status register, which is read from the command register's port.
mod status {
    pub(super) const DATA_TO_READ: u8 = 1 << 0;
    pub(super) const SYSTEM_UP: u8 = 1 << 2;
    pub(super) const PARAMETER_WANTED: u8 = 1 << 3;
    pub(super) const UNLOCKED: u8 = 1 << 4;
}

/// Bits of the control byte.
mod control {
    pub(super) const INTERRUPT: u8 = 1 << 0;
    pub(super) const SYSTEM_UP: u8 = 1 << 2;
    pub(super) const KEYBOARD_OFF: u8 = 1 << 4;
    pub(super) const MOUSE_OFF: u8 = 1 << 5;
}

/// What the keyboard answers to any byte, and to some in addition.
const ACK: u8 = 0xfa;
const KEYBOARD_RESET: u8 = 0xff;
const KEYBOARD_ID: u8 = 0xf2;

/// Ctrl, Alt and Del pressed, and released in turn (scan code set 2; Del is an extended key).
const CTRL_ALT_DEL: [u8; 11] = [0x14, 0x11, 0xe0, 0x71, 0xe0, 0xf0, 0x71, 0xf0, 0x11, 0xf0, 0x14];

/// Bytes that wait to be read, at most.
const BUFFER: usize = 16;

/// The guest has not read what was typed before.
#[derive(Debug, thiserror::Error)]
#[error("keyboard buffer is full ({0} bytes): the guest reads none of it")]
pub struct KeyboardFull(usize);

/// What a snapshot keeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct I8042StateV2 {
    control: u8,
    output_port: u8,
    /// The command that waits for its parameter.
    pending: Option<u8>,
    buffer: VecDeque<u8>,
}

impl I8042StateV2 {
    fn new() -> I8042StateV2 {
        let control = control::SYSTEM_UP | control::INTERRUPT | control::MOUSE_OFF;
        I8042StateV2 { control, output_port: 0, pending: None, buffer: VecDeque::new() }
    }
}

/// The controller at ports 0x60 to 0x64.
pub struct I8042 {
    chip: Mutex<I8042StateV2>,
    line: IrqLine,
    stop: SharedStopSink,
    metrics: Arc<I8042Metrics>,
}

impl I8042 {
    /// A controller that raises `line` for its keyboard and reports a reset to `stop`.
    pub fn new(line: IrqLine, stop: SharedStopSink) -> I8042 {
        I8042 { chip: Mutex::new(I8042StateV2::new()), line, stop, metrics: Arc::default() }
    }

    /// What it counts.
    pub fn metrics(&self) -> Arc<I8042Metrics> {
        self.metrics.clone()
    }

    fn chip(&self) -> MutexGuard<'_, I8042StateV2> {
        // Plain data: a panic of another holder leaves nothing half done.
        self.chip.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Types Ctrl-Alt-Del. What the guest makes of it is its own: Linux restarts, or signals init.
    pub fn ctrl_alt_del(&self) -> Result<(), KeyboardFull> {
        let mut chip = self.chip();
        if chip.buffer.len() + CTRL_ALT_DEL.len() > BUFFER {
            return Err(KeyboardFull(chip.buffer.len()));
        }
        chip.buffer.extend(CTRL_ALT_DEL);
        self.interrupt(&chip);
        Ok(())
    }

    /// Interrupts for what there is to read, if the guest wants to be.
    fn interrupt(&self, chip: &I8042StateV2) {
        if !chip.buffer.is_empty()
            && chip.control & control::INTERRUPT != 0
            && let Err(e) = self.line.trigger()
        {
            self.metrics.error_count.inc();
            log::error!("keyboard interrupt: {e}");
        }
    }

    fn command(&self, chip: &mut I8042StateV2, byte: u8) {
        chip.pending = None;
        match byte {
            command::READ_CONTROL => chip.answer(&[chip.control]),
            command::READ_OUTPUT_PORT => chip.answer(&[chip.output_port]),
            command::TEST => chip.answer(&[0x55]),
            command::TEST_KEYBOARD => chip.answer(&[0]),
            // The clock line of what is not there is stuck.
            command::TEST_MOUSE => chip.answer(&[1]),
            command::DISABLE_KEYBOARD => chip.control |= control::KEYBOARD_OFF,
            command::ENABLE_KEYBOARD => chip.control &= !control::KEYBOARD_OFF,
            command::DISABLE_MOUSE => chip.control |= control::MOUSE_OFF,
            command::ENABLE_MOUSE => chip.control &= !control::MOUSE_OFF,
            command::WRITE_CONTROL
            | command::WRITE_OUTPUT_PORT
            | command::ECHO_KEYBOARD
            | command::ECHO_MOUSE
            | command::WRITE_MOUSE => chip.pending = Some(byte),
            command::RESET => {
                self.metrics.reset_count.inc();
                self.stop.stop(StopReason::Reset);
            }
            _ => {}
        }
    }

    fn data(&self, chip: &mut I8042StateV2, byte: u8) {
        match chip.pending.take() {
            Some(command::WRITE_CONTROL) => chip.control = byte,
            Some(command::WRITE_OUTPUT_PORT) => chip.output_port = byte,
            // Without the mouse's bit in the status register, so that none is found by its echo.
            Some(command::ECHO_KEYBOARD | command::ECHO_MOUSE) => chip.answer(&[byte]),
            Some(_) => {}
            None => {
                match byte {
                    KEYBOARD_RESET => chip.answer(&[ACK, 0xaa]),
                    KEYBOARD_ID => chip.answer(&[ACK, 0xab, 0x83]),
                    _ => chip.answer(&[ACK]),
                }
                self.interrupt(chip);
            }
        }
    }
}

impl I8042StateV2 {
    /// Replaces what nobody has read by an answer.
    fn answer(&mut self, bytes: &[u8]) {
        self.buffer.clear();
        self.buffer.extend(bytes);
    }

    fn status(&self) -> u8 {
        let bit = |on: bool, bit| if on { bit } else { 0 };
        status::UNLOCKED
            | bit(self.control & control::SYSTEM_UP != 0, status::SYSTEM_UP)
            | bit(self.pending.is_some(), status::PARAMETER_WANTED)
            | bit(!self.buffer.is_empty(), status::DATA_TO_READ)
    }
}

impl BusDevice for I8042 {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let [byte] = data else { return self.metrics.missed_read_count.inc() };
        let mut chip = self.chip();
        self.metrics.read_count.inc();
        *byte = match offset {
            DATA => {
                let byte = chip.buffer.pop_front().unwrap_or(0);
                // One interrupt a byte.
                self.interrupt(&chip);
                byte
            }
            COMMAND => chip.status(),
            _ => 0,
        };
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let &[byte] = data else { return self.metrics.missed_write_count.inc() };
        let mut chip = self.chip();
        self.metrics.write_count.inc();
        match offset {
            DATA => self.data(&mut chip, byte),
            COMMAND => self.command(&mut chip, byte),
            _ => {}
        }
    }
}

impl Savable for I8042 {
    fn version(&self) -> u32 {
        VERSION
    }

    fn save(&self) -> Vec<u8> {
        state::encode(&*self.chip())
    }

    fn restore(&mut self, version: u32, bytes: &[u8]) -> Result<(), StateError> {
        let chip = match version {
            // Once it had a reset command and no state.
            1 => state::decode::<()>(version, 1, bytes).map(|()| I8042StateV2::new())?,
            _ => state::decode::<I8042StateV2>(version, VERSION, bytes)?,
        };
        if chip.buffer.len() > BUFFER {
            let len = chip.buffer.len();
            return Err(StateError::Invalid(format!("{len} bytes from a keyboard of {BUFFER}")));
        }
        // An interrupt for what has not been read may have been on its way.
        self.interrupt(&chip);
        *self.chip() = chip;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stop::Recorded;

    struct Rig {
        chip: I8042,
        line: IrqLine,
        stop: Arc<Recorded>,
    }

    impl Rig {
        fn new() -> Rig {
            let (line, stop) = (IrqLine::new().unwrap(), Arc::new(Recorded::default()));
            Rig { chip: I8042::new(line.clone(), stop.clone()), line, stop }
        }

        fn command(&self, byte: u8) {
            self.chip.write(COMMAND, &[byte]);
        }

        fn data(&self, byte: u8) {
            self.chip.write(DATA, &[byte]);
        }

        fn status(&self) -> u8 {
            let mut byte = [0];
            self.chip.read(COMMAND, &mut byte);
            byte[0]
        }

        /// Everything there is to read, as a driver that polls does.
        fn read(&self) -> Vec<u8> {
            let mut bytes = Vec::new();
            while self.status() & status::DATA_TO_READ != 0 {
                let mut byte = [0];
                self.chip.read(DATA, &mut byte);
                bytes.push(byte[0]);
            }
            bytes
        }

        fn interrupts(&self) -> u64 {
            self.line.event().read().unwrap_or(0)
        }
    }

    #[test]
    fn only_the_reset_command_resets() {
        let rig = Rig::new();
        rig.data(0xfe);
        rig.command(0xd1);
        rig.chip.write(COMMAND, &[0xfe, 0xfe]);
        assert!(rig.stop.reasons().is_empty());
        rig.command(0xfe);
        assert_eq!(rig.stop.reasons(), [StopReason::Reset]);
    }

    #[test]
    fn a_driver_finds_a_controller_a_keyboard_and_no_mouse() {
        let rig = Rig::new();
        assert!(rig.read().is_empty());
        assert_eq!(rig.status(), status::UNLOCKED | status::SYSTEM_UP);
        for (command, answer) in [(0xaa, 0x55), (0xab, 0), (0xa9, 1)] {
            rig.command(command);
            assert_eq!(rig.read(), [answer], "{command:#x}");
        }
        // The mouse's echo comes without its mark (bit 5), so it is the keyboard's.
        rig.command(0xd3);
        rig.data(0x5a);
        assert_eq!(rig.status() & 0x21, 0x01);
        assert_eq!(rig.read(), [0x5a]);
        rig.command(0xd4);
        rig.data(0xf2);
        assert!(rig.read().is_empty(), "nobody answers");
        // Registers hold what was written, with one parameter each.
        for (write, read, value) in [(0x60, 0x20, 0x45), (0xd1, 0xd0, 0x9a)] {
            rig.command(write);
            assert_ne!(rig.status() & status::PARAMETER_WANTED, 0);
            rig.data(value);
            assert_eq!(rig.status() & status::PARAMETER_WANTED, 0);
            rig.command(read);
            assert_eq!(rig.read(), [value]);
        }
        rig.command(0xad);
        rig.command(0x20);
        assert_eq!(rig.read(), [0x55]);
        rig.command(0xae);
        rig.command(0x20);
        assert_eq!(rig.read(), [0x45]);
        assert_eq!(rig.interrupts(), 0, "answers of the controller are polled");
        for (byte, answer) in
            [(0xf2, &[0xfa, 0xab, 0x83][..]), (0xff, &[0xfa, 0xaa]), (0xed, &[0xfa])]
        {
            rig.data(byte);
            assert!(rig.interrupts() > 0);
            assert_eq!(rig.read(), answer, "{byte:#x}");
        }
    }

    #[test]
    fn three_keys_go_down_and_up() {
        let rig = Rig::new();
        rig.chip.ctrl_alt_del().unwrap();
        let mut keys = Vec::new();
        // As an interrupt handler reads: one byte an interrupt.
        while rig.interrupts() > 0 {
            let mut byte = [0];
            rig.chip.read(DATA, &mut byte);
            keys.push(byte[0]);
        }
        assert_eq!(keys, CTRL_ALT_DEL);
        let (mut down, mut up) = (Vec::new(), Vec::new());
        let mut bytes = keys.into_iter().filter(|&b| b != 0xe0);
        while let Some(byte) = bytes.next() {
            if byte == 0xf0 { up.extend(bytes.next()) } else { down.push(byte) }
        }
        assert_eq!(
            (down.as_slice(), up.as_slice()),
            (&[0x14, 0x11, 0x71][..], &[0x71, 0x11, 0x14][..])
        );
        // Nobody reads: the second is refused whole.
        rig.chip.ctrl_alt_del().unwrap();
        assert!(rig.chip.ctrl_alt_del().is_err());
        assert_eq!(rig.read(), CTRL_ALT_DEL);
        // A driver that wants no interrupts gets none.
        rig.interrupts();
        rig.command(0x60);
        rig.data(0x04);
        rig.chip.ctrl_alt_del().unwrap();
        assert_eq!(rig.interrupts(), 0);
    }

    #[test]
    fn what_was_typed_survives_a_snapshot() {
        let rig = Rig::new();
        rig.command(0x60);
        rig.data(0x05);
        rig.chip.ctrl_alt_del().unwrap();
        let mut other = Rig::new();
        other.chip.restore(VERSION, &rig.chip.save()).unwrap();
        assert!(other.interrupts() > 0, "it may have been on its way");
        assert_eq!(other.chip.save(), rig.chip.save());
        assert_eq!(other.read(), CTRL_ALT_DEL);
        other.chip.restore(1, &[]).unwrap();
        assert!(other.read().is_empty());
        let long = I8042StateV2 { buffer: [0; 17].into(), ..I8042StateV2::new() };
        assert!(other.chip.restore(VERSION, &state::encode(&long)).is_err());
        assert!(other.chip.restore(3, &rig.chip.save()).is_err());
    }

    #[test]
    fn any_bytes_are_survived() {
        let rig = Rig::new();
        let mut seed = 1u32;
        for _ in 0..100_000 {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let [a, b, c, _] = seed.to_be_bytes();
            if b != 0xfe {
                rig.chip.write(u64::from(a % 6), &[b]);
            }
            let mut data = vec![0; usize::from(c % 3)];
            rig.chip.read(u64::from(c >> 4), &mut data);
            assert!(rig.chip.chip().buffer.len() <= BUFFER);
        }
        assert!(rig.stop.reasons().is_empty());
    }
}
