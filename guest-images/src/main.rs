//! `varve-images`: makes guest images, and says what there is. The work is done by the library.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use varve_guest_images::images::{Image, Images, shortcomings};

/// Makes guest kernels and root file systems from Debian's packages, by the machine's own mirror
///
/// The files come to lie in target/guest of the checkout; manifest.json there lists what was made,
/// from which package versions, with sizes, checksums, and each sample function's answer for seed 1.
/// Only what changed is made again. Nothing is installed but tools (mmdebstrap, e2fsprogs), and
/// those by root only; others are told what to install.
#[derive(Parser)]
#[command(name = "varve-images", version, after_help = EXAMPLES)]
struct Options {
    /// What to make
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<Choice>,

    /// Make it again even if nothing changed, from the newest packages
    #[arg(long)]
    force: bool,

    /// Where to leave the files, instead of the checkout's target/guest
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,

    /// Print the manifest instead of a table
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  varve-images all                     everything that a demo or test needs
  varve-images kernel initramfs        the least that boots
  varve-images --force functions       with the newest packages

Boot them:
  varve run --kernel target/guest/vmlinux --initrd target/guest/initramfs.cpio \\
      --rootfs target/guest/functions.ext4:ro --vsock cid=3,uds=/tmp/vm.sock \\
      --cmdline 'console=ttyS0 reboot=k panic=1 varve.root=/dev/vda'
docs/guest-images.md describes the images, init's command line and the agent's protocol.";

/// An image, or all of them.
#[derive(Clone, Copy)]
enum Choice {
    All,
    One(Image),
}

impl ValueEnum for Choice {
    fn value_variants<'a>() -> &'a [Self] {
        &[
            Self::All,
            Self::One(Image::Kernel),
            Self::One(Image::Initramfs),
            Self::One(Image::Functions),
        ]
    }

    fn to_possible_value(&self) -> Option<clap::builder::PossibleValue> {
        match self {
            Self::All => Some(clap::builder::PossibleValue::new("all").help("All of the below")),
            Self::One(image) => image.to_possible_value(),
        }
    }
}

fn main() -> ExitCode {
    match run(Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("varve-images: error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: Options) -> anyhow::Result<()> {
    let mut images = Images::default();
    if let Some(out) = options.out {
        images = images.in_folder(out);
    }
    let wanted: Vec<Image> = options
        .images
        .iter()
        .flat_map(|choice| match choice {
            Choice::All => Image::ALL.to_vec(),
            Choice::One(image) => vec![*image],
        })
        .collect();
    let manifest =
        images.ensure(&wanted, options.force, &|text| eprintln!("varve-images: {text}"))?;
    for line in shortcomings(&manifest) {
        eprintln!("varve-images: {line}");
    }
    if options.json {
        println!("{}", serde_json::to_string_pretty(&manifest)?);
        return Ok(());
    }
    for part in manifest.values() {
        for (name, stamp) in &part.files {
            let mib = stamp.bytes as f64 / f64::from(1 << 20);
            println!("{mib:8.1} MiB  {}", images.path(name).display());
        }
    }
    Ok(())
}
