//! The kernel command line: what the user gave, and what the machine adds.

use linux_loader::cmdline::Cmdline;
use varve_devices::virtio::mmio::MMIO_LEN;
use varve_memory_tiers::GuestMemory;
use vm_memory::{GuestAddress, GuestUsize};

use super::acpi::MmioSlot;
use super::layout;

/// Why there is no command line.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CmdlineError {
    /// It does not fit, or holds what a command line cannot hold.
    #[error(
        "kernel command line: {0}; at most {max} bytes of printable ASCII",
        max = layout::CMDLINE_MAX - 1
    )]
    Bad(String),
}

/// Builds the whole line from the user's `text`: parameters that are set by the machine come
/// after them, before any arguments for init (behind `--`).
pub fn build(text: &str, extra: &[String], virtio: &[MmioSlot]) -> Result<Cmdline, CmdlineError> {
    use linux_loader::cmdline::Error;
    let bad = |e| match e {
        Error::InvalidCapacity | Error::TooLarge => CmdlineError::Bad(format!(
            "{} bytes and what the machine adds are too many",
            text.len()
        )),
        other => CmdlineError::Bad(other.to_string()),
    };
    if let Some(c) = text.chars().find(|c| !matches!(c, ' '..='~')) {
        return Err(CmdlineError::Bad(format!("{c:?} in it")));
    }
    let mut line = Cmdline::try_from(text, layout::CMDLINE_MAX).map_err(bad)?;
    for parameter in extra {
        line.insert_str(parameter).map_err(bad)?;
    }
    // For kernels without ACPI; one with ACPI finds the windows taken and goes on.
    for slot in virtio {
        let base = GuestAddress(slot.base);
        line.add_virtio_mmio_device(MMIO_LEN as GuestUsize, base, slot.gsi, None).map_err(bad)?;
    }
    Ok(line)
}

/// Puts the line into guest memory.
pub fn write(mem: &GuestMemory, line: &Cmdline) -> Result<(), CmdlineError> {
    linux_loader::loader::load_cmdline(mem, GuestAddress(layout::CMDLINE), line)
        .map_err(|e| CmdlineError::Bad(e.to_string()))
}

/// The line as text.
pub fn text(line: &Cmdline) -> String {
    line.as_cstring().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn additions_stay_in_front_of_inits_arguments() {
        let slot = MmioSlot { base: layout::VIRTIO_MMIO, gsi: 5 };
        let line = build("quiet -- shell", &["root=/dev/vda".into()], &[slot]).unwrap();
        let all = text(&line);
        let at = |needle: &str| all.find(needle).unwrap();
        assert!(at("quiet") < at("root=/dev/vda"));
        assert!(at("virtio_mmio.device=4K@0xc0001000:5") < at("-- shell"), "{all}");
    }

    #[test]
    fn refuses_what_does_not_fit() {
        assert!(build(&"x".repeat(layout::CMDLINE_MAX), &[], &[]).is_err());
        assert!(build("caf\u{e9}", &[], &[]).is_err());
        let fits = "x".repeat(layout::CMDLINE_MAX - 10);
        assert!(build(&fits, &[], &[]).is_ok());
        assert!(build(&fits, &["root=/dev/vda".into()], &[]).is_err());
    }
}
