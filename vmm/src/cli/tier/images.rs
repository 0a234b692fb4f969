//! `varve tier init`, `publish`, `list`, `status`, `revoke` and `gc`.

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::json;
use varve_shared::{Device, Freed, Places, Uri};
use varve_snapshot::ManifestReader;

use crate::cli::out::{human, outln, progress};
use crate::words::word;

/// Options of `varve tier init`.
#[derive(Debug, Args)]
pub struct InitArgs {
    /// The device: devdax:/dev/daxX.Y, with ,host=N for the number of this host, which will own it
    #[arg(value_name = "URI", value_parser = word::<Uri>)]
    at: Uri,

    /// Also if it holds something already
    #[arg(long)]
    force: bool,
}

/// Options of `varve tier publish`.
#[derive(Debug, Args)]
pub struct PublishArgs {
    /// Folder of the tiered snapshot
    dir: PathBuf,

    /// The store
    #[arg(long, value_name = "URI", value_parser = word::<Uri>)]
    to: Uri,

    /// Image to publish (repeatable): ro for tiered, memory for template
    #[arg(long = "image", value_name = "NAME", default_value = "ro")]
    images: Vec<String>,
}

/// Options of `varve tier list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Folder of the snapshot
    dir: PathBuf,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Options of `varve tier status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// The stores
    #[arg(value_name = "URI", required = true, value_parser = word::<Uri>)]
    at: Vec<Uri>,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Options of `varve tier revoke`.
#[derive(Debug, Args)]
pub struct RevokeArgs {
    /// Folder of the snapshot
    dir: PathBuf,

    /// Image to revoke (repeatable) [default: all]
    #[arg(long = "image", value_name = "NAME")]
    images: Vec<String>,
}

/// Options of `varve tier gc`.
#[derive(Debug, Args)]
pub struct GcArgs {
    /// The stores
    #[arg(value_name = "URI", required = true, value_parser = word::<Uri>)]
    at: Vec<Uri>,

    /// This host of those that share a device is dead, and uses nothing any more
    #[arg(long, value_name = "N")]
    dead_host: Option<usize>,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Makes a store of a device.
pub fn init(args: &InitArgs) -> Result<ExitCode, Box<dyn Error>> {
    let Uri::Device { path, host, state } = &args.at else {
        return Err(format!("{}: only a device is prepared, folders need not be", args.at).into());
    };
    Device::open(path, *host, state)?.init(args.force)?;
    outln!("{} is an empty store of host {host}", path.display());
    Ok(ExitCode::SUCCESS)
}

/// Brings images into a store.
pub fn publish(args: &PublishArgs) -> Result<ExitCode, Box<dyn Error>> {
    let snapshot = ManifestReader::open(&args.dir)?;
    for image in &args.images {
        let entry = snapshot.named(image)?;
        let place = varve_shared::publish(&snapshot, entry, &args.to, progress(entry.bytes))?;
        outln!("image {image}: {} at {}", human(place.bytes), place.at);
    }
    Ok(ExitCode::SUCCESS)
}

/// Shows where a snapshot's images are.
pub fn list(args: &ListArgs) -> Result<ExitCode, Box<dyn Error>> {
    let places = Places::read(&args.dir)?;
    if args.json {
        outln!("{}", serde_json::to_string_pretty(&places.images)?);
        return Ok(ExitCode::SUCCESS);
    }
    for (image, place) in places.images {
        let state = if place.complete { "" } else { " (interrupted: publish it again)" };
        outln!("image {image}: {} at {}{state}", human(place.bytes), place.at);
    }
    Ok(ExitCode::SUCCESS)
}

/// Shows what stores keep.
pub fn status(args: &StatusArgs) -> Result<ExitCode, Box<dyn Error>> {
    let mut shown = Vec::new();
    for uri in &args.at {
        let images = varve_shared::status(uri)?;
        let total: u64 = images.iter().map(|i| i.held.key.bytes).sum();
        if !args.json {
            outln!("{uri}: {} images, {}", images.len(), human(total));
        }
        for image in images {
            let (held, snapshots) = (image.held, image.snapshots);
            let state = if held.published { "published" } else { "revoked" };
            if args.json {
                shown.push(json!({
                    "store": uri, "digest": held.key.digest.to_string(), "bytes": held.key.bytes,
                    "state": state, "epoch": held.epoch, "machines": held.users,
                    "snapshots": snapshots,
                }));
                continue;
            }
            outln!(
                "  {}  {}, {state}, used by {} machines and {} snapshots",
                held.key.digest.short(),
                human(held.key.bytes),
                held.users,
                snapshots.len()
            );
            snapshots.iter().for_each(|s| outln!("    {}", s.display()));
        }
    }
    if args.json {
        outln!("{}", serde_json::to_string_pretty(&shown)?);
    }
    Ok(ExitCode::SUCCESS)
}

/// Takes back what a snapshot published.
pub fn revoke(args: &RevokeArgs) -> Result<ExitCode, Box<dyn Error>> {
    for done in varve_shared::revoke(&args.dir, &args.images)? {
        let (image, at) = (done.image, done.at);
        match done.freed {
            _ if done.snapshots > 0 => outln!("image {image}: revoked; others use it at {at}"),
            Freed::Yes => outln!("image {image}: revoked, and freed at {at}"),
            Freed::InUse(by) => {
                outln!("image {image}: revoked; {by} still use it: varve tier gc {at} frees it");
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Frees what nobody uses.
pub fn gc(args: &GcArgs) -> Result<ExitCode, Box<dyn Error>> {
    let mut shown = Vec::new();
    for uri in &args.at {
        if let Some(dead) = args.dead_host {
            let Uri::Device { path, host, state } = uri else {
                return Err(format!("{uri}: only devices are shared by hosts").into());
            };
            Device::open(path, *host, state)?.fence(dead)?;
        }
        let done = varve_shared::gc(uri)?;
        let freed: u64 = done.freed.iter().map(|key| key.bytes).sum();
        if args.json {
            let keys: Vec<_> = done.freed.iter().map(|key| key.digest.to_string()).collect();
            let in_use = done.in_use.iter();
            let in_use: Vec<_> = in_use
                .map(|(key, by)| json!({ "digest": key.digest.to_string(), "by": by }))
                .collect();
            shown.push(json!({
                "store": uri, "freed": keys, "freed_bytes": freed, "in_use": in_use,
                "forgotten": done.forgotten, "cleaned": done.cleaned,
            }));
            continue;
        }
        outln!("{uri}: {} images freed, {}", done.freed.len(), human(freed));
        for (key, by) in done.in_use {
            outln!("  {}  is revoked, and {by} still use it", key.digest.short());
        }
    }
    if args.json {
        outln!("{}", serde_json::to_string_pretty(&shown)?);
    }
    Ok(ExitCode::SUCCESS)
}
